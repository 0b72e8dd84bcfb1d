#pragma once
#include <cstdint>
#include <span>
#include <string_view>

#include "terrace/policy/block_queue.hpp"
#include "terrace/policy/policy.hpp"

namespace terrace {

/// First in, first out: the block that was admitted first leaves first, however often it is used. A pinned block
/// keeps its place. All operations are amortised O(1), 12 bytes a block.
class fifo {
 public:
  static constexpr std::string_view name = "fifo";
  struct options {};
  using block_state = block_place;

  explicit fifo(options = {}) noexcept {}

  void bind(std::span<block_state> states) noexcept { states_ = states; }
  void admit(std::uint32_t i, const block_info& info) noexcept {
    if (info.why == block_info::admission::returned) return queue_.resume(states_, i);
    queue_.erase(states_, i);  // the place of the block that had this index before
    queue_.push(states_, i);
  }
  void remove(std::uint32_t i) noexcept { queue_.suspend(states_, i); }
  void touch(std::uint32_t, const block_use&) noexcept {}
  std::uint32_t victim() noexcept { return queue_.front(states_); }
  void advance_step(std::uint64_t) noexcept {}

 private:
  std::span<block_state> states_;
  block_queue queue_;
};
static_assert(eviction_policy<fifo>);

}  // namespace terrace
