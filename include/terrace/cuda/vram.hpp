#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "terrace/cuda/host_link.hpp"
#include "terrace/cuda/senders.hpp"
#include "terrace/medium/medium.hpp"
#include "terrace/medium/space.hpp"

namespace terrace {
namespace cuda {
inline namespace TERRACE_EX {

/// Memory of one device: a single allocation of Terrace's own, or memory that the engine gives. As the first tier it
/// holds blocks as the engine's kernels write and read them; its addresses are the device's, never change, and may be
/// used in CUDA graphs.
///
/// Blocks come and go over the device's host_link, which keeps the order with the engine's stream.
class vram {
 public:
  static constexpr std::string_view name = "vram";
  static constexpr reach addressable = reach::device;
  static constexpr bool persistent = false;
  static constexpr std::size_t alignment =
      4096;  // as pinned memory, so that either side can be copied straight to the other
  static constexpr std::size_t granularity = std::size_t{1} << 20;

  struct options {
    std::size_t capacity = 0;  ///< bytes; ignored where `memory` is given
    mutable_bytes memory =
        {};  ///< the engine's own device memory, 4 KiB-aligned, which must outlive the cache
    cudaStream_t stream =
        nullptr;  ///< on which the engine writes and reads blocks; nullptr: the legacy default stream
    int device = 0;
  };

  /// Errors: unavailable without a working device, out_of_memory where it has too little.
  static result<std::unique_ptr<vram>> open(context& ctx, options o) {
    auto link = host_link::of(ctx, o.device);
    if (!link) return propagate(link.error());
    if (reinterpret_cast<std::uintptr_t>(o.memory.data()) % alignment != 0)
      return terrace::fail(errc::invalid_argument,
                           "memory given to a vram tier must begin at a multiple of 4 KiB");
    const std::size_t bytes = (o.memory.empty() ? o.capacity : o.memory.size()) / alignment * alignment;
    if (bytes == 0) return terrace::fail(errc::invalid_argument, "a vram tier needs at least 4 KiB");
    std::byte* own = nullptr;
    if (o.memory.empty()) {
      const device_scope scope(o.device);
      void* memory = nullptr;
      if (const cudaError_t e = cudaMalloc(&memory, bytes); e != cudaSuccess)
        return cuda::fail(e, "a CUDA device has no memory for a vram tier");
      own = static_cast<std::byte*>(memory);
    }
    (*link)->follow(o.stream);  // until it ends
    return std::unique_ptr<vram>(
        new vram(**link, o.stream, own != nullptr ? own : o.memory.data(), own, bytes));
  }

  vram(vram&&) = delete;
  ~vram() {
    link_.unfollow(stream_);
    if (own_ == nullptr) return;
    const device_scope scope(link_.device());
    static_cast<void>(cudaFree(own_));
  }

  std::optional<extent> reserve(std::size_t bytes) { return space_.reserve(bytes); }
  void release(extent e) noexcept { space_.release(e); }
  /// An address of the device's, which the host must not touch.
  std::byte* address(extent e) noexcept { return base_ + e.offset; }
  std::size_t capacity() const noexcept { return space_.capacity(); }
  std::size_t used() const noexcept { return space_.used(); }

  copy_sender read(extent e, mutable_bytes into) noexcept { return copy_down(link_, into, address(e)); }
  copy_sender write(extent e, const_bytes from) noexcept { return copy_up(link_, address(e), from); }

  /// Copies within the device on the engine's stream, after what that stream and the others that the link follows
  /// were given so far, and before what they are given next. Errors: the runtime's; later ones show at the next event
  /// of that stream.
  result<void> copy_within(std::byte* to, const std::byte* from, std::size_t bytes) noexcept {
    const device_scope scope(link_.device());
    cudaError_t e = link_.wait_for_engine(stream_);
    if (e == cudaSuccess) e = cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream_);
    if (e == cudaSuccess) e = link_.let_engine_wait(stream_);
    if (e != cudaSuccess) return cuda::fail(e, "a copy within a CUDA device failed");
    return {};
  }

  /// Pins the cache's staging, so that copies run at the link's full speed.
  void register_buffer(mutable_bytes memory) { staging_.push_back(link_.pin(memory, true)); }

  host_link& link() noexcept { return link_; }
  cudaStream_t stream() const noexcept { return stream_; }

 private:
  vram(host_link& link, cudaStream_t stream, std::byte* base, std::byte* own, std::size_t bytes)
      : link_(link), stream_(stream), base_(base), own_(own), space_(bytes, alignment) {}

  host_link& link_;
  cudaStream_t stream_;
  std::byte* base_;
  std::byte* own_;  // what is to be freed
  space space_;
  std::vector<std::unique_ptr<host_link::pinned_memory>> staging_;
};
static_assert(device_addressable_medium<vram> && buffer_registering_medium<vram>);

}  // namespace TERRACE_EX
}  // namespace cuda
using cuda::vram;
}  // namespace terrace
