#pragma once
#if !defined(__CUDACC__)
#error "terrace/cuda/launch.cuh needs nvcc; declarations for every compiler are in terrace/cuda/launch.hpp"
#endif

#include <cuda_runtime_api.h>

#include <type_traits>

#include "terrace/cuda/device_block.cuh"
#include "terrace/cuda/error.hpp"
#include "terrace/cuda/launch.hpp"

namespace terrace::cuda {

/// The only `__global__` function: hands the machine to a kernel.
template <class Kernel>
__global__ void __launch_bounds__(Kernel::threads) run_kernel(const __grid_constant__ Kernel kernel) {
  device_block block;
  kernel(block);
}

inline std::size_t most_shared_bytes() noexcept {
  int device = 0, bytes = 0;
  cudaError_t status = cudaGetDevice(&device);
  if (status == cudaSuccess)
    status = cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (status == cudaSuccess) return static_cast<std::size_t>(bytes);
  static_cast<void>(cudaGetLastError());
  return 0;
}

template <class Kernel>
result<void> launch(const Kernel& kernel, const launch_shape& shape, stream_handle stream) noexcept {
  static_assert(std::is_trivially_copyable_v<Kernel> && sizeof(Kernel) <= 4096,
                "a kernel is its arguments: at most 4 KiB that can be copied as bytes");
  static_assert(Kernel::threads % warp_threads == 0, "a block of threads is made of whole warps");
  constexpr std::size_t granted = 48u << 10;  // without asking
  if (shape.empty()) return {};
  cudaError_t status = cudaSuccess;
  if (shape.shared_bytes > granted) {
    status = cudaFuncSetAttribute(run_kernel<Kernel>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(shape.shared_bytes));
    // A kernel that asks for so much wants several of its blocks on an SM, not a large L1.
    if (status == cudaSuccess)
      status = cudaFuncSetAttribute(run_kernel<Kernel>, cudaFuncAttributePreferredSharedMemoryCarveout,
                                    cudaSharedmemCarveoutMaxShared);
  }
  if (status == cudaSuccess) {
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(shape.x, shape.y, shape.z);
    config.blockDim = dim3(Kernel::threads);
    config.dynamicSmemBytes = shape.shared_bytes;
    config.stream = stream;
    status = cudaLaunchKernelEx(&config, run_kernel<Kernel>, kernel);
  }
  if (status == cudaSuccess) return {};
  return fail(status, "the device refused to run a kernel");
}

}  // namespace terrace::cuda
