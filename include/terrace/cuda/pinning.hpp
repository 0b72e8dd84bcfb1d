#pragma once
#include <cuda_runtime_api.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <thread>

#include "terrace/core/bytes.hpp"
#include "terrace/cuda/device.hpp"

namespace terrace::cuda {

/// While it lives, this thread may pin memory, without harm, even if some thread is capturing a stream into a graph:
/// in the mode that threads begin with, pinning would fail, and the capture with it.
class beside_captures {
 public:
  beside_captures() noexcept { exchange(); }
  beside_captures(const beside_captures&) = delete;
  beside_captures& operator=(const beside_captures&) = delete;
  ~beside_captures() { exchange(); }

 private:
  void exchange() noexcept { static_cast<void>(cudaThreadExchangeStreamCaptureMode(&mode_)); }
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

/// Keeps host memory page-locked for CUDA, chunk by chunk, for as long as it lives. Pinning costs about 0.1 s/GB and
/// fails for very large ranges at once, so a thread of its own does it in the background: the memory can be used from
/// the start, and copies of what is not pinned yet go through the driver's own buffers. A chunk that the system
/// refuses to pin (RLIMIT_MEMLOCK) stays unpinned, and so do those after it; see `pinned_bytes()`.
class pinning {
 public:
  /// A copy must not cross a chunk's end: to the driver, each chunk is an allocation of its own.
  static constexpr std::size_t chunk = std::size_t{64} << 20;

  /// `memory` must outlive this, and nothing else may pin it. With `at_once` the constructor returns when all is
  /// done: for small buffers that the very next copy uses.
  pinning(int device, mutable_bytes memory, bool at_once = false) : memory_(memory), device_(device) {
    if (!at_once) {
      // The thread is its own: to go back to its first device would set that one up, too.
      thread_ = std::thread([this] {
        if (cudaSetDevice(device_) == cudaSuccess) pin_all();
      });
      return;
    }
    const device_scope scope(device_);
    pin_all();
  }
  pinning(const pinning&) = delete;  // the thread holds its address
  pinning& operator=(const pinning&) = delete;
  /// Precondition: no copy from or to the memory is in flight.
  ~pinning() {
    stop_.store(true, std::memory_order_relaxed);
    finish();
    const device_scope scope(device_);
    const std::size_t pinned = pinned_bytes();
    for (std::size_t at = 0; at < pinned; at += chunk)
      if (cudaHostUnregister(memory_.data() + at) != cudaSuccess) static_cast<void>(cudaGetLastError());
  }

  /// Waits until everything that can be pinned is.
  void finish() {
    if (thread_.joinable()) thread_.join();
  }
  mutable_bytes memory() const noexcept { return memory_; }
  /// From the beginning of the memory. Any thread.
  std::size_t pinned_bytes() const noexcept { return pinned_.load(std::memory_order_acquire); }
  bool contains(const void* p) const noexcept { return offset_of(p) < memory_.size(); }
  /// Whether [p, p + bytes) is pinned by now. Precondition: contains(p).
  bool covers(const void* p, std::size_t bytes) const noexcept {
    return offset_of(p) + bytes <= pinned_bytes();
  }
  /// How many bytes from `p` on lie in the same chunk. Precondition: contains(p).
  std::size_t left_in_chunk(const void* p) const noexcept { return chunk - offset_of(p) % chunk; }

 private:
  std::size_t offset_of(const void* p) const noexcept {  // what lies before wraps to beyond the memory
    return reinterpret_cast<std::uintptr_t>(p) - reinterpret_cast<std::uintptr_t>(memory_.data());
  }
  void pin_all() noexcept {
    const beside_captures relaxed;
    for (std::size_t at = 0; at < memory_.size() && !stop_.load(std::memory_order_relaxed); at += chunk) {
      const std::size_t bytes = std::min(chunk, memory_.size() - at);
      if (cudaHostRegister(memory_.data() + at, bytes, cudaHostRegisterPortable | cudaHostRegisterMapped) !=
          cudaSuccess) {
        static_cast<void>(cudaGetLastError());
        return;
      }
      pinned_.store(at + bytes, std::memory_order_release);
    }
  }

  mutable_bytes memory_;
  int device_;
  std::atomic<std::size_t> pinned_{0};
  std::atomic<bool> stop_{false};
  std::thread thread_;  // last: it uses the others
};

}  // namespace terrace::cuda
