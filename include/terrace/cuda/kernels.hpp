#pragma once
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <span>

#include "terrace/core/layout.hpp"
#include "terrace/cuda/attention.hpp"
#include "terrace/cuda/host_link.hpp"

namespace terrace::cuda {

/// The kernels that host code needs, as functions, so that headers for a plain compiler can call what nvcc has
/// compiled. `device_kernels()` of cuda/kernels.cuh has Terrace's own; without any of them blocks travel by copies,
/// and what lies encoded in host memory is decoded there.
struct kernel_set {
  /// Copies many small pieces at once.
  copy_kernel copy = nullptr;
  /// Decodes encoded[i] to raw[i], blocks of `group`. The arrays are in pinned memory, and stay until it has run.
  cudaError_t (*decode)(const layer_group& group, std::uint32_t format_id, const std::byte* const* encoded,
                        std::byte* const* raw, std::uint32_t count, cudaStream_t stream) = nullptr;
  /// Whether `decode` can for a group; absent: it can for all. Blocks of other groups are decoded on the host.
  bool (*decodes)(const layer_group& group) = nullptr;
  /// See block_mass of cuda/mass.hpp. Without it policies are not told what mass blocks draw.
  cudaError_t (*mass)(const attention_args& args, const float* lse, std::uint32_t entries, float* shares,
                      cudaStream_t stream) = nullptr;
};

}  // namespace terrace::cuda
