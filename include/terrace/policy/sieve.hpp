#pragma once
#include <cstdint>
#include <span>
#include <string_view>

#include "terrace/core/index_list.hpp"
#include "terrace/policy/policy.hpp"

namespace terrace {

/// SIEVE (Y. Zhang et al., NSDI 2024): one queue and a hand that moves from its oldest to its newest block
/// and starts again. A block that was used since the hand last came by is spared; the first one that was not leaves.
/// Nothing moves on a hit. A pinned block keeps its place unless the hand comes by: then it comes back as the oldest,
/// behind the hand.
///
/// Amortised O(1), 12 bytes a block: each block that the hand passes was used or pinned since it last came
/// by. If the hand never gets round, old blocks that were popular stay for good: not a default for a long run.
class sieve {
 public:
  static constexpr std::string_view name = "sieve";
  struct options {};
  struct block_state {
    index_link link;
    bool linked = false;
    bool in_charge = false;
    bool used = false;
  };

  explicit sieve(options = {}) noexcept {}

  void bind(std::span<block_state> states) noexcept { states_ = states; }

  void admit(std::uint32_t i, const block_info& info) noexcept {
    block_state& s = states_[i];
    if (info.why != block_info::admission::returned) {
      unlink(i);
      s = {};
      order_.push_back(links{states_}, i);
    } else if (!s.linked) {
      order_.push_front(links{states_}, i);
    }
    s.linked = true;
    s.in_charge = true;
    ++in_charge_;
  }
  void remove(std::uint32_t i) noexcept {
    states_[i].in_charge = false;
    --in_charge_;
    if (i != named_) return;
    named_ = index_link::none;
    if (hand_ == i) hand_ = states_[i].link.next;  // before a new block is added next to it
  }
  void touch(std::uint32_t i, const block_use&) noexcept { states_[i].used = true; }

  std::uint32_t victim() noexcept {
    if (in_charge_ == 0) return index_link::none;
    for (;;) {
      if (hand_ == index_link::none) hand_ = order_.front();
      block_state& s = states_[hand_];
      if (!s.in_charge) {
        unlink(hand_);  // which moves the hand on
      } else if (s.used) {
        s.used = false;
        hand_ = s.link.next;
      } else {
        return named_ = hand_;
      }
    }
  }

  void advance_step(std::uint64_t) noexcept {}

 private:
  struct links {
    std::span<block_state> states;
    index_link& operator[](std::uint32_t i) const noexcept { return states[i].link; }
  };
  void unlink(std::uint32_t i) noexcept {
    if (!states_[i].linked) return;
    if (hand_ == i) hand_ = states_[i].link.next;
    order_.erase(links{states_}, i);
    states_[i].linked = false;
  }

  std::span<block_state> states_;
  index_list order_;
  std::uint32_t hand_ = index_link::none;   // none: at the end, the oldest block is next
  std::uint32_t named_ = index_link::none;  // the last victim
  std::uint32_t in_charge_ = 0;
};
static_assert(eviction_policy<sieve>);

}  // namespace terrace
