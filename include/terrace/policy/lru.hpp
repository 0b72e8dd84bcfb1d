#pragma once
#include <cstdint>
#include <span>
#include <string_view>

#include "terrace/core/index_list.hpp"
#include "terrace/policy/policy.hpp"

namespace terrace {

/// The least recently used block leaves first. All operations are O(1), 8 bytes a block. A block that was pinned
/// comes back as the most recently used. On a cyclic scan larger than the tier it hits nothing: prefer `step_aware`
/// there.
class lru {
 public:
  static constexpr std::string_view name = "lru";
  struct options {};
  /// Both links are `out` while the block is not in charge. Its value is next to that of `none`, so that one
  /// comparison finds the blocks that a touch does not move: those not in charge, and the newest.
  struct block_state {
    static constexpr std::uint32_t out = index_link::none - 1;
    index_link link{out, out};
  };

  explicit lru(options = {}) noexcept {}

  void bind(std::span<block_state> states) noexcept { states_ = states; }
  void admit(std::uint32_t i, const block_info&) noexcept { order_.push_back(links{states_}, i); }
  void remove(std::uint32_t i) noexcept {
    order_.erase(links{states_}, i);
    states_[i] = {};
  }
  void touch(std::uint32_t i, const block_use&) noexcept {
    if (states_[i].link.next < block_state::out) order_.move_to_back(links{states_}, i);
  }
  std::uint32_t victim() const noexcept { return order_.front(); }
  void advance_step(std::uint64_t) noexcept {}

 private:
  struct links {
    std::span<block_state> states;
    index_link& operator[](std::uint32_t i) const noexcept { return states[i].link; }
  };
  std::span<block_state> states_;
  index_list order_;
};
static_assert(eviction_policy<lru>);

}  // namespace terrace
