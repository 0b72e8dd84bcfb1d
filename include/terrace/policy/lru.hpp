#pragma once
#include <cstdint>
#include <span>
#include <string_view>

#include "terrace/core/index_list.hpp"
#include "terrace/policy/policy.hpp"

namespace terrace {

/// Least recently used leaves first. All operations O(1), 8 bytes a block. A block that was pinned comes back
/// as the most recently used. On a cyclic scan larger than the tier it hits nothing: prefer `step_aware`
/// there.
class lru {
 public:
  static constexpr std::string_view name = "lru";
  struct options {};
  using block_state = index_link;

  explicit lru(options = {}) noexcept {}

  void bind(std::span<block_state> states) noexcept { links_ = states; }
  void admit(std::uint32_t i, const block_info&) noexcept { order_.push_back(links_, i); }
  void remove(std::uint32_t i) noexcept {
    order_.erase(links_, i);
    links_[i] = {i, i};  // a link to itself: not in charge
  }
  void touch(std::uint32_t i, const block_use&) noexcept {
    if (in_charge(i)) order_.move_to_back(links_, i);
  }
  std::uint32_t victim() const noexcept { return order_.front(); }
  void advance_step(std::uint64_t) noexcept {}

 private:
  bool in_charge(std::uint32_t i) const noexcept {
    return links_[i].previous != i && (links_[i].previous != index_link::none || order_.front() == i);
  }
  std::span<block_state> links_;
  index_list order_;
};
static_assert(eviction_policy<lru>);

}  // namespace terrace
