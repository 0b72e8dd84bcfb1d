// The main function of every test program, compiled once: with Catch2 2 it costs twenty seconds.
#define CATCH_CONFIG_RUNNER
#include <cstdio>

#include "catch.hpp"

// Why this program's tests cannot run here, or nullptr; defined where that may be so (cuda/device/needs_gpu.cpp).
[[gnu::weak]] const char* why_skipped();

int main(int argc, char** argv) {
  const char* const why = why_skipped == nullptr ? nullptr : why_skipped();
  if (why != nullptr) {
    std::printf("skipped: %s\n", why);
    return 77;  // what ctest is told to count as skipped
  }
  // Catch2 returns the number of failures, and 77 of them would count as skipped.
  return Catch::Session().run(argc, argv) == 0 ? 0 : 1;
}
