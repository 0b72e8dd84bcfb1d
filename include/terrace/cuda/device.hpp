#pragma once
#include <cuda_runtime_api.h>

#include <cstddef>
#include <string>

#include "terrace/cuda/error.hpp"

namespace terrace::cuda {

/// What the runtime says of a device.
struct device_properties {
  int ordinal = 0;
  std::string name;
  std::size_t memory_bytes = 0;  ///< all of it
  std::size_t free_bytes = 0;    ///< now
  std::size_t l2_bytes = 0;
  int multiprocessors = 0;
  int compute_capability = 0;  ///< 90 for sm_90
};

/// Makes `ordinal` the calling thread's device for as long as it lives.
class device_scope {
 public:
  explicit device_scope(int ordinal) noexcept {
    status_ = cudaGetDevice(&before_);
    if (status_ != cudaSuccess || before_ == ordinal) return;
    status_ = cudaSetDevice(ordinal);
    changed_ = status_ == cudaSuccess;
  }
  /// Whether it is the thread's device now: a device may refuse, for example because another process has it alone.
  cudaError_t status() const noexcept { return status_; }
  device_scope(const device_scope&) = delete;
  device_scope& operator=(const device_scope&) = delete;
  ~device_scope() {
    if (changed_) static_cast<void>(cudaSetDevice(before_));
  }

 private:
  int before_ = 0;
  bool changed_ = false;
  cudaError_t status_ = cudaSuccess;
};

/// Whether there is a device of this number that works, and what it is. Errors: unavailable, with the reason: no
/// device, or a driver that is older than the runtime needs. The first call of a process initialises CUDA, which
/// takes some hundred milliseconds.
inline result<device_properties> probe_device(int ordinal = 0) {
  int count = 0;
  if (const cudaError_t e = cudaGetDeviceCount(&count); e != cudaSuccess)
    return fail(e, "no CUDA device can be used here");
  if (ordinal < 0 || ordinal >= count)
    return fail(cudaErrorInvalidDevice, "there is no CUDA device of this number");
  const device_scope scope(ordinal);
  if (scope.status() != cudaSuccess) return fail(scope.status(), "a CUDA device cannot be used");
  cudaDeviceProp what{};
  if (const cudaError_t e = cudaGetDeviceProperties(&what, ordinal); e != cudaSuccess)
    return fail(e, "a CUDA device does not say what it is");
  device_properties p;
  p.ordinal = ordinal;
  p.name = what.name;
  p.l2_bytes = static_cast<std::size_t>(what.l2CacheSize);
  p.multiprocessors = what.multiProcessorCount;
  p.compute_capability = what.major * 10 + what.minor;
  if (const cudaError_t e = cudaMemGetInfo(&p.free_bytes, &p.memory_bytes); e != cudaSuccess)
    return fail(e, "a CUDA device cannot be used");
  return p;
}

}  // namespace terrace::cuda
