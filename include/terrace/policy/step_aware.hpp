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
/// block of the last row. `victim` is O(1), all else O(log n), 24 bytes a block, and 20 in the heap. Steps below 2^40 and
/// rows below 2^24 are told apart.
class step_aware {
 public:
  static constexpr std::string_view name = "step_aware";
  static constexpr unsigned row_bits = 24;
  static constexpr std::uint64_t row_mask = (std::uint64_t{1} << row_bits) - 1;
  struct options {
    std::uint64_t patience = 64;  ///< steps without a use after which a block is not expected any more
  };
  struct block_state {
    std::uint64_t next_use = 0;  ///< in which step, and of which row
    std::uint32_t depth = 0;
    index_link link{};  ///< in the order of admission and use

    std::uint64_t next_step() const noexcept { return next_use >> row_bits; }
    std::uint32_t row() const noexcept { return static_cast<std::uint32_t>(next_use & row_mask); }
    void use_next(std::uint64_t step, std::uint32_t row) noexcept {
      next_use = step << row_bits | (row & row_mask);
    }
  };
  static_assert(sizeof(block_state) == 24);

  step_aware() noexcept = default;
  explicit step_aware(options o) noexcept : options_(o) {}

  void bind(std::span<block_state> states) {
    states_ = states;
    by_next_use_.reserve(states.size());
  }

  void admit(std::uint32_t i, const block_info& info) noexcept {
    block_state& s = states_[i];
    s.use_next(step_ + 1, info.row);
    s.depth = info.depth;
    if (info.why == block_info::admission::ahead && place(s) > here_) s.use_next(step_, info.row);
    by_next_use_.push(entry_of(i));
    by_last_use_.push_back(links{states_}, i);
  }
  void remove(std::uint32_t i) noexcept {
    by_next_use_.erase(i);
    by_last_use_.erase(links{states_}, i);
  }
  // A pinned block needs no note: it comes back in the step in which it is released.
  void touch(std::uint32_t i, const block_use&) noexcept {
    block_state& s = states_[i];
    if (s.next_step() == step_) here_ = std::max(here_, place(s));
    if (!by_next_use_.contains(i)) return;
    s.use_next(step_ + 1, s.row());
    by_next_use_.update(entry_of(i));
    by_last_use_.move_to_back(links{states_}, i);
  }
  std::uint32_t victim() const noexcept {
    const std::uint32_t oldest = by_last_use_.front();
    if (oldest != index_link::none && step_ + 1 - states_[oldest].next_step() > options_.patience)
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
  static schedule_place place(const block_state& s) noexcept { return {s.row(), s.depth}; }
  struct entry {
    std::uint64_t next_use = 0;
    std::uint32_t depth = 0;
    std::uint32_t index = 0;
  };
  struct before {
    bool operator()(const entry& a, const entry& b) const noexcept {
      return a.next_use != b.next_use ? a.next_use > b.next_use : a.depth > b.depth;
    }
  };
  entry entry_of(std::uint32_t i) const noexcept { return {states_[i].next_use, states_[i].depth, i}; }

  options options_;
  std::span<block_state> states_;
  std::uint64_t step_ = 0;
  schedule_place here_;                    // the farthest hit in this step
  index_heap<entry, before> by_next_use_;  // the farthest first
  index_list by_last_use_;                 // the longest unused first
};
static_assert(eviction_policy<step_aware>);

}  // namespace terrace
