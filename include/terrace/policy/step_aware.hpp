#pragma once
#include <algorithm>
#include <cstdint>
#include <span>
#include <string_view>

#include "terrace/core/index_list.hpp"
#include "terrace/policy/policy.hpp"
#include "terrace/policy/winner_tree.hpp"

namespace terrace {

/// Exploits how a decode uses its blocks: every step streams the rows of layers in order, and each row's blocks in
/// ascending depth. So a block used in step s is needed next at (s + 1, row, depth), and the victim is the block for
/// which that is farthest away. On such a scan over more blocks than the tier holds this is Belady's choice, while a
/// least-recently-used order hits nothing at all.
///
/// A block is taken to be used in the step in which it is admitted, and in every step in which it is touched.
/// One that a prefetch has loaded is needed when the schedule reaches it: in this step, if it lies after what has
/// been hit in this step. Where sequences share the schedule (a batch), their order within a row is not known, which
/// misjudges a next use by less than one row. A block that the schedule has passed over for more than `patience`
/// steps, as happens to those outside a window or of a paused sequence, is no longer expected: these leave before all
/// others, the longest unused first.
///
/// The engine's steps are the clock: without `advance_step` all steps are one, and the victim is the last
/// block of the last row. All operations are O(log n), with 16 bytes per block and 9 in the tournament that finds the
/// victim; every eight million steps all blocks are visited once. Rows below 2^14 and depths below 2^26 are told
/// apart.
class step_aware {
 public:
  static constexpr std::string_view name = "step_aware";
  struct options {
    std::uint64_t patience = 64;  ///< steps without a use after which a block is no longer expected
  };
  struct block_state {
    std::uint64_t next_use = 0;  ///< a moment: step, row and depth
    index_link link{};           ///< in the order of admission and use
  };
  static_assert(sizeof(block_state) == 16);

  step_aware() noexcept = default;
  explicit step_aware(options o) noexcept : options_(o) {}

  void bind(std::span<block_state> states) {
    states_ = states;
    by_next_use_.reserve(states.size());
  }

  void admit(std::uint32_t i, const block_info& info) noexcept {
    const std::uint64_t place = place_of(info);
    const bool ahead = info.why == block_info::admission::ahead && place > here_;
    states_[i].next_use = moment(ahead ? step_ : step_ + 1, place);
    by_next_use_.set(i, states_[i].next_use);
    by_last_use_.push_back(links{states_}, i);
  }
  void remove(std::uint32_t i) noexcept {
    by_next_use_.erase(i);
    by_last_use_.erase(links{states_}, i);
  }
  // A pinned block needs no note: it comes back in the step in which it is released.
  void touch(std::uint32_t i, const block_use&) noexcept {
    block_state& s = states_[i];
    const std::uint64_t place = s.next_use & place_mask;
    if (step_of(s.next_use) == step_) here_ = std::max(here_, place);
    if (!by_next_use_.contains(i)) return;
    s.next_use = moment(step_ + 1, place);
    by_next_use_.set(i, s.next_use);
    by_last_use_.move_to_back(links{states_}, i);
  }
  std::uint32_t victim() noexcept {
    const std::uint32_t oldest = by_last_use_.front();
    if (oldest != index_link::none && step_ + 1 - step_of(states_[oldest].next_use) > options_.patience)
      return oldest;
    return by_next_use_.top();
  }
  void advance_step(std::uint64_t step) noexcept {
    if (step != step_) here_ = 0;
    step_ = step;
    if (step_ + 1 - first_step_ >= steps_told_apart) count_steps_anew();
  }

 private:
  // A moment is one number, larger the later it is: steps since first_step_, then the place in the schedule of a
  // step, which is row and depth.
  static constexpr unsigned row_bits = 14, depth_bits = 26, place_bits = row_bits + depth_bits;
  static constexpr std::uint64_t place_mask = (std::uint64_t{1} << place_bits) - 1;
  static constexpr std::uint64_t steps_told_apart = std::uint64_t{1} << (64 - place_bits);

  static std::uint64_t place_of(const block_info& info) noexcept {
    const std::uint32_t row = std::min(info.row, (1u << row_bits) - 1);
    const std::uint32_t depth = std::min(info.depth, (1u << depth_bits) - 1);
    return std::uint64_t{row} << depth_bits | depth;
  }
  std::uint64_t moment(std::uint64_t step, std::uint64_t place) const noexcept {
    return (step - first_step_) << place_bits | place;
  }
  std::uint64_t step_of(std::uint64_t moment) const noexcept { return first_step_ + (moment >> place_bits); }

  // Makes room for steps to come. What was due too long ago to be represented counts as due in the first step that
  // can be.
  void count_steps_anew() noexcept {
    const std::uint64_t passed = step_ - steps_told_apart / 2 - first_step_;
    first_step_ += passed;
    for (std::uint32_t i = 0; i < states_.size(); ++i) {
      std::uint64_t& next_use = states_[i].next_use;
      const std::uint64_t steps = next_use >> place_bits;
      next_use = (steps > passed ? steps - passed : 1) << place_bits | (next_use & place_mask);
      if (by_next_use_.contains(i)) by_next_use_.set(i, next_use);
    }
  }

  struct links {
    std::span<block_state> states;
    index_link& operator[](std::uint32_t i) const noexcept { return states[i].link; }
  };

  options options_;
  std::span<block_state> states_;
  std::uint64_t step_ = 0;
  std::uint64_t first_step_ = 0;  // the earliest that is told apart from those before it
  std::uint64_t here_ = 0;        // the farthest place of a hit in this step
  winner_tree<std::uint64_t> by_next_use_;
  index_list by_last_use_;  // the longest unused first
};
static_assert(eviction_policy<step_aware>);

}  // namespace terrace
