#pragma once
#include <cuda_runtime_api.h>

#include "terrace/core/error.hpp"

namespace terrace::cuda {

/// What a CUDA error means to a cache: out_of_memory, unavailable (no device, or a driver that is too old for the
/// runtime), invalid_argument, else io_error.
inline errc code_of(cudaError_t why) noexcept {
  switch (why) {
    case cudaErrorMemoryAllocation:
      return errc::out_of_memory;
    case cudaErrorNoDevice:
    case cudaErrorInvalidDevice:
    case cudaErrorDevicesUnavailable:
    case cudaErrorInsufficientDriver:
    case cudaErrorSystemDriverMismatch:
    case cudaErrorSystemNotReady:
    case cudaErrorCompatNotSupportedOnDevice:
    case cudaErrorInitializationError:
    case cudaErrorStubLibrary:
      return errc::unavailable;
    case cudaErrorInvalidValue:
      return errc::invalid_argument;
    default:
      return errc::io_error;
  }
}

/// The error for `why`, with one sentence of ours before the runtime's.
inline error error_of(cudaError_t why, const char* text) noexcept {
  return {code_of(why), text, static_cast<int>(why),
          [](int number) noexcept { return cudaGetErrorString(static_cast<cudaError_t>(number)); }};
}

/// `if (const cudaError_t e = cudaMalloc(...); e != cudaSuccess) return fail(e, "no memory for a vram tier")`. Clears
/// the error in the runtime, which would otherwise report it again to the engine's next call; a sticky one stays.
inline failure<error> fail(cudaError_t why, const char* text) noexcept {
  static_cast<void>(cudaGetLastError());
  return failure<error>{error_of(why, text)};
}

}  // namespace terrace::cuda
