#pragma once
#include <cstddef>
#include <cstdint>

#include "terrace/core/error.hpp"

// What cudaStream_t points to. Named here so that declarations of kernels need no toolkit.
struct CUstream_st;

namespace terrace::cuda {

/// A CUDA stream: the type of cudaStream_t. Null is the default stream.
using stream_handle = ::CUstream_st*;

/// How many blocks of threads run, and what shared memory each gets. The number of threads is the kernel's own.
struct launch_shape {
  std::uint32_t x = 1, y = 1, z = 1;
  std::size_t shared_bytes = 0;

  constexpr bool empty() const noexcept { return x == 0 || y == 0 || z == 0; }
};

/// Shared memory that a block of threads can get on every device of compute capability 8.0 or higher, if it asks.
inline constexpr std::size_t least_shared_bytes = 99u << 10;
/// The same for the current device; 0 where there is none. Defined where `launch` is.
std::size_t most_shared_bytes() noexcept;

/// Runs a kernel on `stream`: the only way to do so. A kernel is a trivially copyable type that carries its
/// arguments, at most 4 KiB, with
///
///     static constexpr std::uint32_t threads = 128;     // of a block, a multiple of 32
///     template <block_context Block>                    // cuda/block_context.hpp
///     TERRACE_DEVICE void operator()(Block& block) const;
///
/// Enqueues and returns; a launch of no blocks does nothing. What the arguments point to must stay until the work is
/// done. Errors: CUDA's, if the launch was refused (cuda/error.hpp). Errors of the run itself show at a later call,
/// as always with CUDA.
///
/// Under nvcc it is defined by cuda/launch.cuh. A program without nvcc has no definition of it: the tests provide one
/// that emulates a device.
template <class Kernel>
result<void> launch(const Kernel& kernel, const launch_shape& shape, stream_handle stream) noexcept;

}  // namespace terrace::cuda

#if defined(__CUDACC__)
#include "terrace/cuda/launch.cuh"
#endif
