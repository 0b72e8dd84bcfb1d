#pragma once
#include <algorithm>
#include <cstdint>
#include <span>
#include <string_view>
#include <utility>

#include "terrace/policy/index_heap.hpp"
#include "terrace/policy/policy.hpp"

namespace terrace {

/// Knows how a decode uses its blocks: every step streams the rows of layers in order, and each row's blocks
/// in ascending depth. So a block that was used in step s is needed next at (s + 1, row, depth), and the
/// victim is the block for which that is farthest away. On such a scan over more blocks than the tier holds
/// this is Belady's choice, while a least-recently-used order hits nothing at all.
///
/// A block is taken to be used in the step in which it is admitted, and in every step in which it is touched.
/// One that a prefetch has brought is needed when the schedule comes to it, in this step if it lies after what
/// was hit in this step. Where sequences share the schedule (a batch), their order within a row is not known,
/// which misjudges a next use by less than one row. A block that the schedule has passed over for more than
/// `patience` steps, as happens to those outside a window or of a paused sequence, is not expected any more:
/// the longest unused of these leave before all others.
///
/// The engine's steps are the clock: without `advance_step` all steps are one, and the victim is the last
/// block of the last row. `victim` is O(1), all else O(log n), 32 bytes a block, and 4 in the heap.
class step_aware {
 public:
  static constexpr std::string_view name = "step_aware";
  struct options {
    std::uint64_t patience = 64;  ///< steps without a use after which a block is not expected any more
  };
  struct block_state {
    std::uint64_t next_step = 0;  ///< in which it is used next
    std::uint32_t row = 0;
    std::uint32_t depth = 0;
    std::uint32_t position = index_link::none;  ///< in the heap; none: not in charge
    index_link link{};                          ///< in the order of admission and use
  };
  static_assert(sizeof(block_state) <= 32);

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
    const bool this_step = info.why == block_info::admission::ahead && place(s) > here_;
    enter(i, this_step ? step_ : step_ + 1);
  }
  void remove(std::uint32_t i) noexcept {
    by_next_use_.erase(books{states_}, i);
    by_last_use_.erase(links{states_}, i);
    states_[i].position = index_link::none;
  }
  // A pinned block needs no note: it comes back in the step in which it is released.
  void touch(std::uint32_t i, const block_use&) noexcept {
    block_state& s = states_[i];
    if (s.next_step == step_) here_ = std::max(here_, place(s));
    if (s.position == index_link::none) return;
    s.next_step = step_ + 1;
    by_next_use_.update(books{states_}, i);
    by_last_use_.erase(links{states_}, i);
    by_last_use_.push_back(links{states_}, i);
  }
  std::uint32_t victim() const noexcept {
    const std::uint32_t oldest = by_last_use_.front();
    if (oldest != index_link::none && step_ + 1 - states_[oldest].next_step > options_.patience)
      return oldest;
    return by_next_use_.top();
  }
  void advance_step(std::uint64_t step) noexcept {
    if (step != step_) here_ = {};
    step_ = step;
  }

 private:
  struct links {
    std::span<block_state> states;
    index_link& operator[](std::uint32_t i) const noexcept { return states[i].link; }
  };
  // A position in the schedule of one step: row, depth.
  using schedule_place = std::pair<std::uint32_t, std::uint32_t>;
  static schedule_place place(const block_state& s) noexcept { return {s.row, s.depth}; }
  struct books {
    std::span<block_state> states;
    std::uint32_t& position(std::uint32_t i) const noexcept { return states[i].position; }
    bool before(std::uint32_t a, std::uint32_t b) const noexcept {
      const block_state &x = states[a], &y = states[b];
      return x.next_step != y.next_step ? x.next_step > y.next_step : place(x) > place(y);
    }
  };

  void enter(std::uint32_t i, std::uint64_t next_step) noexcept {
    states_[i].next_step = next_step;
    by_next_use_.push(books{states_}, i);
    by_last_use_.push_back(links{states_}, i);
  }

  options options_;
  std::span<block_state> states_;
  std::uint64_t step_ = 0;
  schedule_place here_;     // the farthest hit in this step
  index_heap by_next_use_;  // the farthest first
  index_list by_last_use_;  // the longest unused first
};
static_assert(eviction_policy<step_aware>);

}  // namespace terrace
