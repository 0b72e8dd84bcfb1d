// Linked into the tests that need a device: says where there is none.
#include <cuda_runtime_api.h>

const char* why_skipped() {
  int devices = 0;
  const bool found = cudaGetDeviceCount(&devices) == cudaSuccess && devices != 0;
  return found ? nullptr : "there is no CUDA device";
}
