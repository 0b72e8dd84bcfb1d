#pragma once
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <memory>

#include "terrace/cuda/page_tables.hpp"

namespace runner {

/// The engine's own stream, and what its work costs to watch. Ends after all work on it.
class device_stream {
 public:
  static terrace::result<std::unique_ptr<device_stream>> make() {
    std::unique_ptr<device_stream> s(new device_stream);
    cudaError_t e = cudaStreamCreateWithFlags(&s->stream_, cudaStreamNonBlocking);
    for (cudaEvent_t* event : {&s->begin_, &s->end_})
      if (e == cudaSuccess) e = cudaEventCreateWithFlags(event, cudaEventDefault);
    if (e != cudaSuccess) return terrace::cuda::fail(e, "a CUDA device gives no stream");
    return s;
  }
  device_stream(const device_stream&) = delete;
  device_stream& operator=(const device_stream&) = delete;
  ~device_stream() {
    for (const cudaEvent_t event : {begin_, end_})
      if (event != nullptr) static_cast<void>(cudaEventDestroy(event));
    if (stream_ != nullptr) static_cast<void>(cudaStreamDestroy(stream_));
  }

  cudaStream_t get() const noexcept { return stream_; }

  /// Waits for all work enqueued on it. The runner has nothing else to do; an engine would go on.
  terrace::result<void> finish() const {
    if (const cudaError_t e = cudaStreamSynchronize(stream_); e != cudaSuccess)
      return terrace::cuda::fail(e, "work on a CUDA stream failed");
    return {};
  }
  /// Enqueues a copy. Errors: what the runtime says.
  terrace::result<void> copy(void* to, const void* from, std::size_t bytes) const {
    if (const cudaError_t e = cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream_); e != cudaSuccess)
      return terrace::cuda::fail(e, "a copy on a CUDA stream failed");
    return {};
  }

  /// Bytes a second that plain copies of pinned memory to the device reach: the best of five, 64 MiB each.
  terrace::result<double> link_bytes_per_s() const {
    constexpr std::size_t bytes = std::size_t{64} << 20;
    auto host = terrace::cuda::host_tables::make(bytes);
    if (!host) return terrace::propagate(host.error());
    auto device = terrace::cuda::device_tables::make(bytes);
    if (!device) return terrace::propagate(device.error());
    double best = 0;
    for (int i = 0; i < 5; ++i) {
      float milliseconds = 0;
      cudaError_t e = cudaEventRecord(begin_, stream_);
      if (e == cudaSuccess)
        e = cudaMemcpyAsync(device->data(), (*host)->data(), bytes, cudaMemcpyHostToDevice, stream_);
      if (e == cudaSuccess) e = cudaEventRecord(end_, stream_);
      if (e == cudaSuccess) e = cudaEventSynchronize(end_);
      if (e == cudaSuccess) e = cudaEventElapsedTime(&milliseconds, begin_, end_);
      if (e != cudaSuccess) return terrace::cuda::fail(e, "a copy over the link could not be timed");
      if (milliseconds > 0) best = std::max(best, static_cast<double>(bytes) * 1e3 / milliseconds);
    }
    return best;
  }

 private:
  device_stream() = default;
  cudaStream_t stream_ = nullptr;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
};

/// How much device memory has been taken since this began, by everyone on the device.
class device_memory_meter {
 public:
  device_memory_meter() { static_cast<void>(cudaMemGetInfo(&free_, &total_)); }
  void sample() {
    std::size_t free = 0, total = 0;
    if (cudaMemGetInfo(&free, &total) == cudaSuccess && free < free_) peak_ = std::max(peak_, free_ - free);
  }
  std::size_t peak() const noexcept { return peak_; }

 private:
  std::size_t free_ = 0, total_ = 0, peak_ = 0;
};

}  // namespace runner
