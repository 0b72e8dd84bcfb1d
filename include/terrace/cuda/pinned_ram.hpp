#pragma once
#include <cstddef>
#include <memory>
#include <optional>
#include <string_view>
#include <utility>

#include "terrace/cuda/host_link.hpp"
#include "terrace/medium/ram.hpp"

namespace terrace {
namespace cuda {
inline namespace TERRACE_EX {

/// Main memory that a CUDA device reaches at the speed of the link. An arena on huge pages, as `ram`, or the caller's
/// memory; it is pinned in the background, chunk by chunk, and usable meanwhile. Host attention reads it in place.
class pinned_ram {
 public:
  static constexpr std::string_view name = "pinned_ram";
  static constexpr reach addressable = reach::host;
  static constexpr bool persistent = false;
  static constexpr std::size_t alignment = ram::alignment;
  static constexpr std::size_t granularity = ram::granularity;

  struct options {
    std::size_t capacity = 0;  ///< bytes; ignored where `memory` is given
    mutable_bytes memory =
        {};          ///< the caller's own memory, 4 KiB-aligned, not pinned, which must outlive the cache
    int device = 0;  ///< whose link it uses; every device may read it
  };

  /// Errors: as ram, and unavailable without a working device.
  static result<std::unique_ptr<pinned_ram>> open(context& ctx, options o) {
    auto link = host_link::of(ctx, o.device);
    if (!link) return propagate(link.error());
    auto arena = ram::open(ctx, {.capacity = o.capacity, .memory = o.memory, .most_capacity = o.capacity});
    if (!arena) return propagate(arena.error());
    return std::unique_ptr<pinned_ram>(new pinned_ram(**link, std::move(*arena)));
  }

  pinned_ram(pinned_ram&&) = delete;

  std::optional<extent> reserve(std::size_t bytes) { return arena_->reserve(bytes); }
  void release(extent e) noexcept { arena_->release(e); }
  std::byte* address(extent e) noexcept { return arena_->address(e); }
  std::size_t capacity() const noexcept { return arena_->capacity(); }
  std::size_t used() const noexcept { return arena_->used(); }
  auto read(extent e, mutable_bytes into) noexcept { return arena_->read(e, into); }
  auto write(extent e, const_bytes from) noexcept { return arena_->write(e, from); }

  /// How much of the capacity is pinned by now. If it stays below the capacity, the system allows no more.
  std::size_t pinned_bytes() const noexcept { return pins_->pins().pinned_bytes(); }
  /// Waits until everything that can be pinned is: for measurements, not for normal use.
  void finish_pinning() { pins_->finish(); }

 private:
  pinned_ram(host_link& link, std::unique_ptr<ram> arena)
      : arena_(std::move(arena)), pins_(link.pin({arena_->address({}), arena_->capacity()})) {}

  std::unique_ptr<ram> arena_;
  std::unique_ptr<host_link::pinned_memory> pins_;  // ends first
};
static_assert(host_addressable_medium<pinned_ram>);

}  // namespace TERRACE_EX
}  // namespace cuda
using cuda::pinned_ram;
}  // namespace terrace
