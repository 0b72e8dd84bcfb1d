#pragma once
#include <cstdint>
#include <span>
#include <string_view>
#include <tuple>

#include "terrace/policy/index_heap.hpp"
#include "terrace/policy/policy.hpp"

namespace terrace {

/// Knows how a decode uses its blocks: every step streams the rows of layers in order, and each row's blocks
/// in ascending depth. So a block that was used in step s is needed next at (s + 1, row, depth), and the
/// victim is the block for which that is farthest away. On such a scan over more blocks than the tier holds
/// this is Belady's choice, while a least-recently-used order hits nothing at all.
///
/// A block is taken to be used in the step in which it is admitted, and in every step in which it is touched.
/// Where sequences share the schedule (a batch), their order within a row is not known, which misjudges a
/// next use by less than one row. A block that the schedule has passed over for more than `patience` steps,
/// as happens to those outside a window or of a paused sequence, is not expected any more: the longest unused
/// of these leave before all others.
///
/// The engine's steps are the clock: without `advance_step` all steps are one, and the victim is the last
/// block of the last row. `victim` is O(1), all else O(log n), 36 bytes a block.
class step_aware {
 public:
  static constexpr std::string_view name = "step_aware";
  struct options {
    std::uint64_t patience = 64;  ///< steps without a use after which a block is not expected any more
  };
  struct block_state {
    std::uint64_t last_step = 0;  ///< in which it was used last
    std::uint32_t row = 0;
    std::uint32_t depth = 0;
    std::uint32_t position = 0;  ///< in the heap
    bool in_charge = false;
    index_link link;  ///< in the order of last use
  };

  step_aware() noexcept = default;
  explicit step_aware(options o) noexcept : options_(o) {}

  void bind(std::span<block_state> states) {
    states_ = states;
    by_next_use_.reserve(states.size());
  }

  void admit(std::uint32_t i, const block_info& info) noexcept {
    block_state& s = states_[i];
    s.row = info.row;
    s.depth = info.depth;
    enter(i);
  }
  void remove(std::uint32_t i) noexcept {
    by_next_use_.erase(books{states_}, i);
    by_last_use_.erase(links{states_}, i);
    states_[i].in_charge = false;
  }
  // A pinned block needs no note: it comes back in the step in which it is released.
  void touch(std::uint32_t i, const block_use&) noexcept {
    if (!states_[i].in_charge) return;
    remove(i);
    enter(i);
  }
  std::uint32_t victim() const noexcept {
    const std::uint32_t oldest = by_last_use_.front();
    if (oldest != index_link::none && step_ - states_[oldest].last_step > options_.patience) return oldest;
    return by_next_use_.top();
  }
  void advance_step(std::uint64_t step) noexcept { step_ = step; }

 private:
  struct links {
    std::span<block_state> states;
    index_link& operator[](std::uint32_t i) const noexcept { return states[i].link; }
  };
  // Next uses are one step after the last ones, all of them, so that these tell the order as well.
  struct books {
    std::span<block_state> states;
    std::uint32_t& position(std::uint32_t i) const noexcept { return states[i].position; }
    bool before(std::uint32_t a, std::uint32_t b) const noexcept { return next_use(a) > next_use(b); }
    std::tuple<std::uint64_t, std::uint32_t, std::uint32_t> next_use(std::uint32_t i) const noexcept {
      return {states[i].last_step, states[i].row, states[i].depth};
    }
  };

  void enter(std::uint32_t i) noexcept {
    states_[i].last_step = step_;
    states_[i].in_charge = true;
    by_next_use_.push(books{states_}, i);
    by_last_use_.push_back(links{states_}, i);
  }

  options options_;
  std::span<block_state> states_;
  std::uint64_t step_ = 0;
  index_heap by_next_use_;  // the farthest first
  index_list by_last_use_;  // the longest unused first
};
static_assert(eviction_policy<step_aware>);

}  // namespace terrace
