#pragma once
#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "terrace/policy/policy.hpp"
#include "terrace/policy/winner_tree.hpp"

namespace terrace {

/// Evicts the block with the highest
///
///     score = alpha * unimportance + beta * age + gamma * cheapness
///
/// - A block's mass is the sum of the shares of the softmax mass that its uses reported, each halved for
///   every `half_life` steps since. With `mean` over the blocks in charge, unimportance is r / (1 + r) for
///   r = mean / mass: 0 for a block that draws all the attention, 1/2 for an average one, 1 for one that
///   draws none. Blocks without a known mass count as average.
/// - age = steps since the last use / `age_unit`. It is unbounded: eventually everything leaves.
/// - cheapness = 1 / (1 + reload_cost): 1 for a block that can be brought back at no cost.
///
/// Unimportance is computed when the block is admitted or touched, and stays until the next time; all ages grow
/// alike. So the order of two blocks does not change by itself, and a tournament can hold it: all operations are
/// O(log n), with 16 bytes per block and 9 in the tournament. Among equal scores the lower index leaves first. A use
/// while pinned counts when the block comes back. A new block starts with what the cache knows of its last use.
/// Precondition: masses and costs are finite numbers.
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
    std::uint64_t step = 0;  ///< of the last use
    float mass = -1;         ///< as of `step`; below 0: no use has reported any
    float cheapness = 1;

    bool measured() const noexcept { return mass >= 0; }
  };
  static_assert(sizeof(block_state) == 16);

  attention_weighted() noexcept : attention_weighted(options{}) {}
  explicit attention_weighted(options o) noexcept : options_(o) {
    for (std::size_t steps = 0; steps < decays_.size(); ++steps) decays_[steps] = decay_after(steps);
  }

  void bind(std::span<block_state> states) {
    states_ = states;
    by_score_.reserve(states.size());
  }

  void admit(std::uint32_t i, const block_info& info) noexcept {
    block_state& s = states_[i];
    if (info.why != block_info::admission::returned)
      s = {.step = step_, .mass = info.mass > 0 ? info.mass : -1.0f};
    s.cheapness = 1 / (1 + info.reload_cost);
    by_score_.set(i, weigh_in(s, mass_now(s)));
  }
  void remove(std::uint32_t i) noexcept {
    by_score_.erase(i);
    weigh_out(states_[i], mass_now(states_[i]));
  }
  void touch(std::uint32_t i, const block_use& use) noexcept {
    block_state& s = states_[i];
    const bool in_charge = by_score_.contains(i);
    const double before = mass_now(s);
    if (in_charge) weigh_out(s, before);
    if (s.measured() || use.mass > 0) s.mass = static_cast<float>(before + double{use.mass});
    s.step = step_;
    if (in_charge) by_score_.set(i, weigh_in(s, double{s.mass}));
  }
  void weigh(std::uint32_t i, const block_use& use) noexcept { touch(i, use); }
  std::uint32_t victim() noexcept { return by_score_.top(); }
  void advance_step(std::uint64_t step) noexcept { step_ = step; }

 private:
  double decay(std::uint64_t steps) const noexcept {
    return steps < decays_.size() ? decays_[steps] : decay_after(steps);
  }
  double decay_after(std::uint64_t steps) const noexcept {
    return steps == 0 ? 1.0 : std::exp2(-static_cast<double>(steps) / double{options_.half_life});
  }
  // 0 if no use has reported any.
  double mass_now(const block_state& s) const noexcept {
    return s.measured() ? double{s.mass} * decay(step_ - s.step) : 0;
  }
  double total_now() const noexcept { return total_ * decay(step_ - total_step_); }

  // `mass` is the block's, as of now.
  void weigh_out(const block_state& s, double mass) noexcept {
    if (!s.measured()) return;
    --measured_;
    total_ = measured_ == 0 ? 0 : std::max(0.0, total_now() - mass);  // rounding may overshoot
    total_step_ = step_;
  }
  // Adds a block to those in charge, and returns its key: its score less beta * now / age_unit, the term common to
  // all blocks.
  double weigh_in(const block_state& s, double mass) noexcept {
    if (s.measured()) {
      total_ = total_now() + mass;
      total_step_ = step_;
      ++measured_;
    }
    return double{options_.alpha} * unimportance(s, mass) + double{options_.gamma} * double{s.cheapness} -
           weight_of_a_step_ * static_cast<double>(s.step);
  }
  // r / (1 + r) for r = mean / mass = total / (measured * mass), which is also right for a mass of 0. The total is as
  // of now.
  double unimportance(const block_state& s, double mass) const noexcept {
    if (!s.measured()) return 0.5;
    const double both = total_ + measured_ * mass;
    return both > 0 ? total_ / both : 0.5;
  }

  options options_;
  std::array<double, 64> decays_{};  // for the few steps that most uses are apart
  double weight_of_a_step_ = double{options_.beta} / double{options_.age_unit};
  std::span<block_state> states_;
  std::uint64_t step_ = 0;
  winner_tree<double> by_score_;
  double total_ = 0;  // mass of the measured blocks in charge, as of total_step_
  std::uint64_t total_step_ = 0;
  std::uint32_t measured_ = 0;  // how many these are
};
static_assert(mass_weighing_policy<attention_weighted>);

}  // namespace terrace
