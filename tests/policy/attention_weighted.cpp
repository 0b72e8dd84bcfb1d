#include "terrace/policy/attention_weighted.hpp"

#include <algorithm>
#include <cmath>
#include <map>
#include <vector>

#include "catch.hpp"
#include "policy/simulated_cache.hpp"
#include "terrace/policy/lru.hpp"
#include "terrace/testing/policy_conformance.hpp"

using namespace terrace;
using test::trace_access;

namespace {

// The definition in words, evaluated for all blocks whenever a victim is wanted. A miss reports no mass.
class naive_attention_weighted {
 public:
  explicit naive_attention_weighted(std::uint32_t capacity) : capacity_(capacity) {}
  void advance_step(std::uint64_t step) { step_ = step; }
  bool operator()(const trace_access& a) {
    const auto found = resident_.find(a.key);
    if (found == resident_.end()) {
      if (resident_.size() == capacity_) resident_.erase(victim());
      resident_[a.key] = {.key = a.key, .cheapness = 1 / (1 + double{a.reload_cost}), .last = step_};
      return false;
    }
    block& b = found->second;
    b.uses.push_back({step_, double{a.mass}});
    b.last = step_;
    double total = 0;
    std::size_t measured = 0;
    for (const auto& [key, other] : resident_) {
      total += mass(other);
      measured += other.measured() ? 1 : 0;
    }
    if (b.measured()) {
      const double mean = total / static_cast<double>(measured);
      const double ratio = mean / mass(b);
      b.unimportance = ratio / (1 + ratio);
    }
    return true;
  }

 private:
  struct block {
    struct use {
      std::uint64_t step;
      double mass;
    };
    std::uint64_t key = 0;
    double cheapness = 1;
    double unimportance = 0.5;
    std::uint64_t last = 0;
    std::vector<use> uses{};
    bool measured() const {
      return std::any_of(uses.begin(), uses.end(), [](const use& u) { return u.mass > 0; });
    }
  };
  double mass(const block& b) const {
    double sum = 0;
    for (const auto& u : b.uses) sum += u.mass * std::pow(0.5, static_cast<double>(step_ - u.step) / 64);
    return sum;
  }
  double score(const block& b) const {
    return double{0.6f} * b.unimportance + double{0.3f} * static_cast<double>(step_ - b.last) / 256 +
           double{0.1f} * b.cheapness;
  }
  std::uint64_t victim() const {
    return std::max_element(resident_.begin(), resident_.end(),
                            [&](const auto& a, const auto& b) { return score(a.second) < score(b.second); })
        ->first;
  }
  std::size_t capacity_;
  std::uint64_t step_ = 0;
  std::map<std::uint64_t, block> resident_;
};

// Scores that are equal would leave the choice to the indices: masses, and costs of their own, keep them apart.
std::vector<trace_access> distinct(std::vector<trace_access> trace) {
  for (trace_access& a : trace) {
    a.mass += static_cast<float>(a.key) / 997;
    a.reload_cost = static_cast<float>(a.key) / 100;
  }
  return trace;
}

struct small_tier {
  std::vector<attention_weighted::block_state> states{8};
  attention_weighted policy;
  explicit small_tier(attention_weighted::options o = {}) : policy(o) { policy.bind(states); }
};

}  // namespace

TEST_CASE("attention_weighted: equals its definition to the last miss") {
  for (std::uint32_t seed = 1; seed <= 3; ++seed) {
    const std::vector<trace_access> trace = distinct(test::random_trace(seed, 2000));
    for (const std::uint32_t capacity : test::capacities) {
      CAPTURE(seed, capacity);
      const std::vector<bool> expected = test::hits(naive_attention_weighted(capacity), trace, 10);
      for (const auto how : {test::use_of_a_hit::in_charge, test::use_of_a_hit::pinned})
        CHECK((test::hits(test::simulated_cache<attention_weighted>(capacity, how), trace, 10) == expected));
    }
  }
}

TEST_CASE("attention_weighted: keeps the contract of policies") {
  CHECK(policy_conformance<attention_weighted>() == std::nullopt);
}

TEST_CASE("attention_weighted: each term alone decides") {
  SECTION("mass: the block that drew the least attention") {
    small_tier tier({.beta = 0, .gamma = 0});
    for (std::uint32_t i = 0; i < 4; ++i) {
      tier.policy.admit(i, {});
      tier.policy.touch(i, {.mass = i == 2 ? 0.01f : 0.3f});
    }
    CHECK(tier.policy.victim() == 2);
  }
  SECTION("age: the block that was not used for longest") {
    small_tier tier({.alpha = 0, .gamma = 0});
    for (std::uint32_t i = 0; i < 4; ++i) tier.policy.admit(i, {});
    tier.policy.advance_step(1);
    for (const std::uint32_t i : {0u, 1u, 3u}) tier.policy.touch(i, {.step = 1});
    CHECK(tier.policy.victim() == 2);
  }
  SECTION("cheapness: the block that is brought back at the least cost") {
    small_tier tier({.alpha = 0, .beta = 0});
    for (std::uint32_t i = 0; i < 4; ++i) tier.policy.admit(i, {.reload_cost = i == 1 ? 0.5f : 3.0f});
    CHECK(tier.policy.victim() == 1);
  }
}

TEST_CASE("attention_weighted: mass decays, and what is never used leaves at last") {
  small_tier tier;
  tier.policy.admit(0, {});
  tier.policy.touch(0, {.mass = 1});
  for (std::uint64_t step = 0; step < 2000; step += 10) {
    tier.policy.advance_step(step);
    if (step == 0) tier.policy.admit(1, {});
    tier.policy.touch(1, {.step = step, .mass = 0.001f});
    if (step == 100) CHECK(tier.policy.victim() == 1);
  }
  CHECK(tier.policy.victim() == 0);
}

TEST_CASE("attention_weighted: uses while pinned count, a new block inherits nothing") {
  small_tier tier;
  for (std::uint32_t i = 0; i < 3; ++i) {
    tier.policy.admit(i, {});
    tier.policy.touch(i, {.mass = 0.1f});
  }
  tier.policy.remove(0);
  tier.policy.touch(0, {.mass = 0.9f});
  tier.policy.admit(0, {.why = block_info::admission::returned});
  CHECK(tier.policy.victim() == 1);
  tier.policy.remove(0);
  tier.policy.admit(0, {});
  tier.policy.touch(1, {.mass = 0.9f});
  tier.policy.touch(2, {.mass = 0.9f});
  CHECK(tier.policy.victim() == 0);
}

TEST_CASE("attention_weighted: where no mass is known it is a least-recently-used order of steps") {
  // One access a step, so that no two blocks are of one age.
  for (const std::uint32_t capacity : test::capacities) {
    std::vector<trace_access> trace = test::random_trace(5);
    for (trace_access& a : trace) a.mass = a.reload_cost = 0;
    CHECK((test::hits(test::simulated_cache<attention_weighted>(capacity), trace, 1) ==
           test::hits(test::simulated_cache<lru>(capacity), trace, 1)));
  }
}

TEST_CASE("attention_weighted: nobody, one block, and books that grow") {
  attention_weighted policy;
  CHECK(policy.victim() == index_link::none);
  std::vector<attention_weighted::block_state> states(1);
  policy.bind(states);
  policy.touch(0, {.mass = 1});
  policy.admit(0, {});
  CHECK(policy.victim() == 0);
  policy.touch(0, {.mass = 1});
  states.resize(50);
  policy.bind(states);
  policy.admit(49, {});
  CHECK(policy.victim() == 0);  // equal scores: both count as average
  policy.remove(0);
  CHECK(policy.victim() == 49);
  policy.remove(49);
  CHECK(policy.victim() == index_link::none);
}
