#pragma once
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "terrace/core/bytes.hpp"
#include "terrace/cuda/device.hpp"

namespace terrace::cuda {

/// Arrays of one window or one step, as the host writes them, in pinned memory.
class host_tables {
 public:
  static result<std::unique_ptr<host_tables>> make(std::size_t bytes) {
    void* memory = nullptr;
    if (const cudaError_t e = cudaHostAlloc(&memory, bytes, cudaHostAllocPortable); e != cudaSuccess)
      return fail(e, "no pinned memory for the tables of a batch");
    std::unique_ptr<host_tables> tables(new host_tables(static_cast<std::byte*>(memory)));
    if (const cudaError_t e = cudaEventCreateWithFlags(&tables->read_, cudaEventDisableTiming);
        e != cudaSuccess)
      return fail(e, "a CUDA device gives no event");
    return tables;
  }
  host_tables(const host_tables&) = delete;
  host_tables& operator=(const host_tables&) = delete;
  ~host_tables() {
    if (read_ != nullptr) {
      static_cast<void>(cudaEventSynchronize(read_));
      static_cast<void>(cudaEventDestroy(read_));
    }
    static_cast<void>(cudaFreeHost(memory_));
  }

  std::byte* data() noexcept { return memory_; }
  /// Whether the device has read what it was told to; then they can be written again.
  bool free() const noexcept {
    if (!busy_ || cudaEventQuery(read_) == cudaSuccess) return true;
    static_cast<void>(cudaGetLastError());  // even "not ready" would show at the engine's next launch
    return false;
  }
  /// Call when everything on `stream` that reads them has been enqueued.
  cudaError_t used_by(cudaStream_t stream) noexcept {
    busy_ = true;
    return cudaEventRecord(read_, stream);
  }

 private:
  explicit host_tables(std::byte* memory) noexcept : memory_(memory) {}
  std::byte* memory_;
  cudaEvent_t read_ = nullptr;
  bool busy_ = false;
};

/// As many host_tables as the host is ahead of the device, so that it never waits for it: one is made when all others
/// are still to be read.
class table_pool {
 public:
  explicit table_pool(std::size_t bytes) noexcept : bytes_(bytes) {}
  /// Tables that nobody reads. Errors: out_of_memory.
  result<host_tables*> take() {
    if (!tables_.empty()) {
      next_ = (next_ + 1) % tables_.size();  // the one that was taken longest ago is free first
      if (tables_[next_]->free()) return tables_[next_].get();
    }
    auto made = host_tables::make(bytes_);
    if (!made) return propagate(made.error());
    tables_.insert(tables_.begin() + static_cast<std::ptrdiff_t>(next_), std::move(*made));
    return tables_[next_].get();
  }
  std::size_t size() const noexcept { return tables_.size(); }

 private:
  std::size_t bytes_;
  std::vector<std::unique_ptr<host_tables>> tables_;  // in the order in which they were taken, as a ring
  std::size_t next_ = 0;
};

/// Device memory for tables, at an address that does not change.
class device_tables {
 public:
  device_tables() = default;
  static result<device_tables> make(std::size_t bytes) {
    device_tables t;
    bytes = std::max<std::size_t>(bytes, 1);
    if (const cudaError_t e = cudaMalloc(&t.memory_, bytes); e != cudaSuccess)
      return fail(e, "a CUDA device has no memory for the tables of a batch");
    return t;
  }
  device_tables(device_tables&& other) noexcept : memory_(std::exchange(other.memory_, nullptr)) {}
  device_tables& operator=(device_tables&& other) noexcept {
    std::swap(memory_, other.memory_);
    return *this;
  }
  ~device_tables() { static_cast<void>(cudaFree(memory_)); }
  std::byte* data() const noexcept { return static_cast<std::byte*>(memory_); }
  /// The array that begins `offset` bytes in.
  template <class T>
  T* as(std::size_t offset = 0) const noexcept {
    return reinterpret_cast<T*>(data() + offset);
  }

 private:
  void* memory_ = nullptr;
};

/// Device memory for tables that grows on request, which loses what it held before.
class grown_tables {
 public:
  /// Errors: out_of_memory; then nothing has changed. No effect if it has the room; otherwise waits for the device.
  result<void> reserve(std::size_t bytes) {
    if (bytes <= has_) return {};
    auto taken = device_tables::make(bytes + bytes / 2);
    if (!taken) return propagate(taken.error());
    memory_ = std::move(*taken);
    has_ = bytes + bytes / 2;
    return {};
  }
  template <class T>
  T* as(std::size_t offset = 0) const noexcept {
    return memory_.as<T>(offset);
  }

 private:
  device_tables memory_;
  std::size_t has_ = 0;
};

}  // namespace terrace::cuda
