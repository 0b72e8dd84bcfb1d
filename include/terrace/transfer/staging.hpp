#pragma once
#include <cstddef>
#include <memory>
#include <vector>

#include "terrace/core/bytes.hpp"
#include "terrace/core/error.hpp"
#include "terrace/medium/ram.hpp"

namespace terrace {
inline namespace TERRACE_EX {

/// A fixed number of equal buffers, allocated at start. They hold encoded blocks between a medium and a codec, and
/// are the source of back-pressure. A transfer takes all the buffers that it needs at once, or waits its turn, so
/// that two half-served transfers never wait for each other.
class staging {
 public:
  /// `count` buffers of `bytes` each, aligned for direct I/O. 0 buffers are allowed, if no transfer needs one.
  static result<staging> make(context& ctx, std::size_t count, std::size_t bytes) {
    staging s;
    if (count == 0) return s;
    s.bytes_ = align_up(bytes, ram::alignment);
    auto arena = ram::open(ctx, {.capacity = count * s.bytes_, .most_capacity = count * s.bytes_});
    if (!arena) return propagate(arena.error());
    s.arena_ = std::move(*arena);
    for (std::size_t i = 0; i < count; ++i)
      s.free_.push_back(s.arena_->address(*s.arena_->reserve(s.bytes_)));
    s.begin_ = s.free_.front();  // an arena that is filled in one go has no gaps
    s.count_ = count;
    return s;
  }

  std::size_t buffer_bytes() const noexcept { return bytes_; }
  std::size_t available() const noexcept { return free_.size(); }
  std::size_t bytes_in_use() const noexcept { return (count_ - free_.size()) * bytes_; }
  std::size_t bytes() const noexcept { return count_ * bytes_; }
  /// All buffers, including those in use.
  mutable_bytes memory() const noexcept { return {begin_, bytes()}; }

  /// Precondition: available() > 0.
  std::byte* take() noexcept {
    std::byte* buffer = free_.back();
    free_.pop_back();
    return buffer;
  }
  void give_back(std::byte* buffer) noexcept {
    free_.push_back(buffer);
  }  // within capacity: allocates nothing

 private:
  std::unique_ptr<ram> arena_;
  std::vector<std::byte*> free_;
  std::byte* begin_ = nullptr;
  std::size_t bytes_ = 0, count_ = 0;
};

}  // namespace TERRACE_EX
}  // namespace terrace
