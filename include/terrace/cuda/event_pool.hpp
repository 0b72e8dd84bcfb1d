#pragma once
#include <cuda_runtime_api.h>

#include <vector>

#include "terrace/cuda/device.hpp"

namespace terrace::cuda {

/// Events of one device, without timing. Reusing one is much cheaper than making one.
class event_pool {
 public:
  explicit event_pool(int device) noexcept : device_(device) {}
  event_pool(const event_pool&) = delete;
  event_pool& operator=(const event_pool&) = delete;
  ~event_pool() {
    for (const cudaEvent_t event : free_) static_cast<void>(cudaEventDestroy(event));
  }

  /// An event that nobody else has. Errors: what the runtime says.
  result<cudaEvent_t> take() {
    if (!free_.empty()) {
      const cudaEvent_t event = free_.back();
      free_.pop_back();
      return event;
    }
    const device_scope scope(device_);
    cudaEvent_t event = nullptr;
    if (const cudaError_t e = cudaEventCreateWithFlags(&event, cudaEventDisableTiming); e != cudaSuccess)
      return fail(e, "a CUDA device gives no event");
    return event;
  }
  /// It may be recorded again at once: an enqueued wait refers to what had been recorded by then.
  void give_back(cudaEvent_t event) { free_.push_back(event); }

 private:
  int device_;
  std::vector<cudaEvent_t> free_;
};

}  // namespace terrace::cuda
