#pragma once
// An assertion catches nothing: Terrace throws nothing, and tests compile faster.
#define CATCH_CONFIG_FAST_COMPILE
// Catch2 under either of its names: version 3 has many headers, version 2 (Debian 12) has one.
#if __has_include(<catch2/catch_all.hpp>)
#include <catch2/catch_all.hpp>
#else
#include <catch2/catch.hpp>
#endif
