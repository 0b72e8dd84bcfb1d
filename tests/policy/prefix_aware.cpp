#include "terrace/policy/prefix_aware.hpp"

#include <cstdint>
#include <random>
#include <set>
#include <vector>

#include "catch.hpp"
#include "policy/simulated_cache.hpp"
#include "terrace/policy/lru.hpp"
#include "terrace/testing/belady.hpp"
#include "terrace/testing/policy_conformance.hpp"

using namespace terrace;
using test::trace_access;

namespace {

template <class Policy>
std::size_t hits_of(const std::vector<trace_access>& trace, std::uint32_t capacity,
                    test::use_of_a_hit how = test::use_of_a_hit::pinned) {
  std::size_t count = 0;
  for (const bool hit : test::hits(test::simulated_cache<Policy>(capacity, how), trace)) count += hit ? 1 : 0;
  return count;
}
std::size_t optimum(const std::vector<trace_access>& trace, std::uint32_t capacity) {
  std::vector<std::uint64_t> keys;
  for (const trace_access& a : trace) keys.push_back(a.key);
  std::size_t count = 0;
  for (const bool hit : belady(keys, capacity)) count += hit ? 1 : 0;
  return count;
}

struct small_tier {
  std::vector<prefix_aware::block_state> states{64};
  prefix_aware policy;
  explicit small_tier(prefix_aware::options o = {}) : policy(o) { policy.bind(states); }
  std::uint32_t evict() {
    const std::uint32_t i = policy.victim();
    policy.evict(i);
    return i;
  }
};

}  // namespace

TEST_CASE("prefix_aware: keeps the contract of policies") {
  CHECK(policy_conformance<prefix_aware>() == std::nullopt);
  CHECK(policy_conformance<prefix_aware>({.ghosts = 0, .memory = 1, .weigh_cost = true}) == std::nullopt);
  CHECK(policy_conformance<prefix_aware>({}, {.seed = 2, .blocks = 2000, .calls = 100000}) == std::nullopt);
}

TEST_CASE("prefix_aware: a scan of two populations, of which one is used once") {
  // Keys at depth 0 come back after 500 uses, those at depth 9 never do. Each hit of the optimum is one of the former.
  std::vector<trace_access> trace;
  std::uint64_t once = 100000;
  for (int round = 0; round < 200; ++round)
    for (std::uint64_t key = 1; key <= 100; ++key) {
      trace.push_back({.key = key, .depth = 0});
      for (int n = 0; n < 4; ++n) trace.push_back({.key = once++, .depth = 9});
    }
  const std::size_t best = optimum(trace, 200);
  CHECK(hits_of<lru>(trace, 200) == 0);
  CHECK(hits_of<prefix_aware>(trace, 200) > best * 9 / 10);
  CHECK(hits_of<prefix_aware>(trace, 200) <= best);
}

TEST_CASE("prefix_aware: a cyclic scan larger than the tier, near the optimum where lru hits nothing") {
  std::vector<trace_access> trace;
  for (int round = 0; round < 100; ++round)
    for (std::uint64_t key = 1; key <= 1000; ++key)
      trace.push_back({.key = key, .depth = static_cast<std::uint32_t>(key - 1)});
  CHECK(hits_of<lru>(trace, 700) == 0);
  CHECK(hits_of<prefix_aware>(trace, 700) > optimum(trace, 700) * 8 / 10);
}

TEST_CASE("prefix_aware: learns of what came back too late by its key") {
  // Nothing is ever hit at first: without ghosts there would be nothing to learn from.
  std::vector<trace_access> trace;
  std::uint64_t once = 100000;
  for (int round = 0; round < 100; ++round)
    for (std::uint64_t key = 1; key <= 100; ++key) {
      trace.push_back({.key = key, .depth = 0});
      for (int n = 0; n < 4; ++n) trace.push_back({.key = once++, .depth = 9});
    }
  const auto hits = [&](double ghosts) {
    std::size_t count = 0;
    test::simulated_cache<prefix_aware> cache(200, test::use_of_a_hit::pinned, {.ghosts = ghosts});
    for (const bool hit : test::hits(cache, trace)) count += hit ? 1 : 0;
    return count;
  };
  CHECK(hits(4) > 2 * hits(0) + 1000);
}

TEST_CASE("prefix_aware: no worse than lru by much where nothing can be learned") {
  for (std::uint32_t seed = 1; seed <= 3; ++seed) {
    std::mt19937 random(seed);
    std::vector<trace_access> trace;
    for (int n = 0; n < 60000; ++n) trace.push_back({.key = 1 + random() % 2000});
    for (const std::uint32_t capacity : {100u, 700u, 1500u}) {
      CAPTURE(seed, capacity);
      CHECK(static_cast<double>(hits_of<prefix_aware>(trace, capacity)) >
            0.9 * static_cast<double>(hits_of<lru>(trace, capacity)));
    }
  }
}

TEST_CASE("prefix_aware: at first the longest unused leaves, slice by slice") {
  small_tier tier;
  for (std::uint32_t i = 0; i < 3; ++i) {
    tier.policy.admit(i, {.key = i + 1});
    for (int n = 0; n < 70; ++n) tier.policy.touch(60, {});  // time passes: nobody has that index
  }
  tier.policy.touch(0, {});
  CHECK(tier.evict() == 1);
  CHECK(tier.evict() == 2);
  CHECK(tier.evict() == 0);
  CHECK(tier.policy.victim() == index_link::none);
}

TEST_CASE("prefix_aware: in one slice the end of a prefix leaves first") {
  small_tier tier;
  for (std::uint32_t i = 0; i < 3; ++i)
    tier.policy.admit(i, {.key = i + 1, .parent = i == 0 ? index_link::none : i - 1, .depth = 20 + i});
  CHECK(tier.evict() == 2);
}

TEST_CASE("prefix_aware: a parent that is no neighbour, or no block, is passed over") {
  small_tier tier;
  tier.policy.admit(0, {.key = 1, .parent = 77});
  tier.policy.admit(1, {.key = 2, .parent = 5, .depth = 1});  // nobody
  tier.policy.admit(2, {.key = 3, .parent = 0, .depth = 9});  // an index that somebody else has now
  CHECK_FALSE(tier.states[0].inner);
  tier.policy.admit(3, {.key = 4, .parent = 0, .depth = 1});
  CHECK(tier.states[0].inner);
}

TEST_CASE("prefix_aware: a block that was pinned keeps its age, an index that is recycled inherits nothing") {
  small_tier tier;
  for (std::uint32_t i = 0; i < 2; ++i) {
    tier.policy.admit(i, {.key = i + 1});
    for (int n = 0; n < 70; ++n) tier.policy.touch(60, {});
  }
  tier.policy.remove(0);
  tier.policy.admit(0, {.key = 1, .why = block_info::admission::returned});
  CHECK(tier.policy.victim() == 0);
  tier.policy.remove(0);
  tier.policy.admit(0, {.key = 9});
  CHECK(tier.policy.victim() == 1);
}
