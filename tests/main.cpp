// The main function of every test program, compiled once: with Catch2 2 it costs twenty seconds.
#define CATCH_CONFIG_RUNNER
#include "catch.hpp"

#if defined(TERRACE_TEST_NEEDS_GPU)
#include <cuda_runtime_api.h>

#include <cstdio>
#endif

int main(int argc, char** argv) {
#if defined(TERRACE_TEST_NEEDS_GPU)
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::puts("skipped: there is no CUDA device");
    return 77;  // what ctest is told to count as skipped
  }
#endif
  // Catch2 returns the number of failures, and 77 of them would count as skipped.
  return Catch::Session().run(argc, argv) == 0 ? 0 : 1;
}
