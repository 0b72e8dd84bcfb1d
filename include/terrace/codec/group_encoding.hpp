#pragma once
// What encoders of groups of 32 values share, for each instruction set: codec/group_encoding_kernel.hpp.
#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "terrace/core/any_element.hpp"

#define TERRACE_KERNEL "terrace/codec/group_encoding_kernel.hpp"
#include "terrace/core/for_each_isa.hpp"
