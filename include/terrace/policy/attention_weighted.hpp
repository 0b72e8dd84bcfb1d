#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>
#include <string_view>

#include "terrace/policy/index_heap.hpp"
#include "terrace/policy/policy.hpp"

namespace terrace {

/// Evicts the block with the highest
///
///     score = alpha * unimportance + beta * age + gamma * cheapness
///
/// - A block's mass is the sum of the shares of the softmax mass that its uses reported, each halved for
///   every `half_life` steps since. With `mean` over the blocks in charge, unimportance is r / (1 + r) for
///   r = mean / mass: 0 for a block that draws all the attention, 1/2 for an average one, 1 for one that
///   draws none. Blocks of which no mass is known count as average.
/// - age = steps since the last use / `age_unit`. It is not bounded: at last everything leaves.
/// - cheapness = 1 / (1 + reload_cost): 1 for a block that can be had back at no cost.
///
/// Unimportance is taken when the block is admitted or touched, and stands until the next time; all ages grow
/// alike. So the order of two blocks does not change by itself, and a heap holds it: `victim` is O(1), all
/// else O(log n), 24 bytes a block, and 20 in the heap. Of equal scores the lower index leaves. Being used while pinned counts
/// when the block comes back. A new block starts with what the cache knows of its last use.
class attention_weighted {
 public:
  static constexpr std::string_view name = "attention_weighted";
  struct options {
    float alpha = 0.6f;
    float beta = 0.3f;
    float gamma = 0.1f;
    float half_life = 64;  ///< steps in which mass halves
    float age_unit = 256;  ///< steps without use that count as an age of 1
  };
  struct block_state {
    double mass = -1;  ///< as of `step`; below 0: no use has reported any
    std::uint64_t step = 0;
    float cheapness = 1;

    bool measured() const noexcept { return mass >= 0; }
  };
  static_assert(sizeof(block_state) == 24);

  attention_weighted() noexcept = default;
  explicit attention_weighted(options o) noexcept : options_(o) {}

  void bind(std::span<block_state> states) {
    states_ = states;
    by_score_.reserve(states.size());
  }

  void admit(std::uint32_t i, const block_info& info) noexcept {
    block_state& s = states_[i];
    if (info.why != block_info::admission::returned)
      s = {.mass = info.mass > 0 ? double{info.mass} : -1, .step = step_};
    s.cheapness = 1 / (1 + info.reload_cost);
    by_score_.push({weigh_in(s), i});
  }
  void remove(std::uint32_t i) noexcept {
    block_state& s = states_[i];
    by_score_.erase(i);
    weigh_out(s);
  }
  void touch(std::uint32_t i, const block_use& use) noexcept {
    block_state& s = states_[i];
    const bool in_charge = by_score_.contains(i);
    if (in_charge) weigh_out(s);
    if (s.measured() || use.mass > 0) s.mass = (s.measured() ? mass_at(s, step_) : 0) + double{use.mass};
    s.step = step_;
    if (!in_charge) return;
    by_score_.update({weigh_in(s), i});
  }
  void weigh(std::uint32_t i, const block_use& use) noexcept { touch(i, use); }
  std::uint32_t victim() const noexcept { return by_score_.top(); }
  void advance_step(std::uint64_t step) noexcept { step_ = step; }

 private:
  struct entry {
    double key = 0;  // the score, less what all blocks have in common: beta * now / age_unit
    std::uint32_t index = 0;
  };
  struct before {
    bool operator()(const entry& a, const entry& b) const noexcept {
      return a.key != b.key ? a.key > b.key : a.index < b.index;
    }
  };

  double decay(std::uint64_t steps) const noexcept {
    return steps == 0 ? 1.0 : std::exp2(-static_cast<double>(steps) / double{options_.half_life});
  }
  double mass_at(const block_state& s, std::uint64_t step) const noexcept {
    return s.mass * decay(step - s.step);
  }
  double total_at(std::uint64_t step) const noexcept { return total_ * decay(step - total_step_); }

  // r / (1 + r) = mean / (mean + mass), which is also right for a mass of 0.
  double unimportance(const block_state& s) const noexcept {
    if (!s.measured()) return 0.5;
    const double mean = total_ / measured_;
    const double both = mean + mass_at(s, step_);
    return both > 0 ? mean / both : 0.5;
  }

  void weigh_out(const block_state& s) noexcept {
    if (!s.measured()) return;
    --measured_;
    total_ =
        measured_ == 0 ? 0 : std::max(0.0, total_at(step_) - mass_at(s, step_));  // rounding may overshoot
    total_step_ = step_;
  }
  // Counts a block among those in charge, and gives its key.
  double weigh_in(block_state& s) noexcept {
    if (s.measured()) {
      total_ = total_at(step_) + mass_at(s, step_);
      total_step_ = step_;
      ++measured_;
    }
    return double{options_.alpha} * unimportance(s) + double{options_.gamma} * double{s.cheapness} -
           double{options_.beta} * static_cast<double>(s.step) / double{options_.age_unit};
  }

  options options_;
  std::span<block_state> states_;
  std::uint64_t step_ = 0;
  index_heap<entry, before> by_score_;  // the highest first
  double total_ = 0;                    // mass of the measured blocks in charge, as of total_step_
  std::uint64_t total_step_ = 0;
  std::uint32_t measured_ = 0;  // how many these are
};
static_assert(mass_weighing_policy<attention_weighted>);

}  // namespace terrace
