#include "terrace/policy/step_aware.hpp"

#include <algorithm>
#include <limits>
#include <map>
#include <tuple>
#include <vector>

#include "catch.hpp"
#include "policy/simulated_cache.hpp"
#include "terrace/policy/lru.hpp"
#include "terrace/testing/policy_conformance.hpp"

using namespace terrace;
using test::trace_access;

namespace {

constexpr std::uint32_t rows = 4;

// What a decode uses: `rows` rows of `depth` blocks in each step, and `growth` more in each step.
struct schedule {
  std::vector<trace_access> trace;
  std::vector<std::uint64_t> step_of;
  schedule(std::uint32_t depth, std::uint32_t growth, std::uint32_t steps) {
    for (std::uint32_t step = 0; step < steps; ++step)
      for (std::uint32_t row = 0; row < rows; ++row)
        for (std::uint32_t d = 0; d < depth + growth * step; ++d) {
          trace.push_back({.key = 1 + row + std::uint64_t{rows} * d, .row = row, .depth = d});
          step_of.push_back(step);
        }
  }
  template <class Cache>
  std::size_t hits(Cache&& cache) const {
    std::size_t count = 0;
    for (std::size_t n = 0; n < trace.size(); ++n) {
      cache.advance_step(step_of[n]);
      count += cache(trace[n]) ? 1 : 0;
    }
    return count;
  }
};

// Belady's optimum with forced insertion, by looking ahead in the trace itself.
std::size_t belady_hits(const std::vector<trace_access>& trace, std::size_t capacity) {
  constexpr std::size_t never = std::numeric_limits<std::size_t>::max();
  std::map<std::uint64_t, std::size_t> resident;  // key -> when it is used next
  std::size_t count = 0;
  for (std::size_t n = 0; n < trace.size(); ++n) {
    const std::uint64_t key = trace[n].key;
    const auto again = std::find_if(trace.begin() + static_cast<std::ptrdiff_t>(n) + 1, trace.end(),
                                    [&](const trace_access& a) { return a.key == key; });
    const std::size_t next = again == trace.end() ? never : static_cast<std::size_t>(again - trace.begin());
    if (resident.count(key) != 0) {
      ++count;
    } else if (resident.size() == capacity) {
      resident.erase(std::max_element(resident.begin(), resident.end(),
                                      [](const auto& a, const auto& b) { return a.second < b.second; }));
    }
    resident[key] = next;
  }
  return count;
}

// The definition, by looking at all blocks.
class naive_step_aware {
 public:
  explicit naive_step_aware(std::uint32_t capacity) : capacity_(capacity) {}
  void advance_step(std::uint64_t step) { step_ = step; }
  bool operator()(const trace_access& a) {
    const bool hit = resident_.count(a.key) != 0;
    if (!hit && resident_.size() == capacity_) resident_.erase(victim());
    resident_[a.key] = {step_, a.row, a.depth, ++uses_};
    return hit;
  }

 private:
  struct entry {
    std::uint64_t step;
    std::uint32_t row, depth;
    std::uint64_t order;
  };
  std::uint64_t victim() const {
    const auto oldest =
        std::min_element(resident_.begin(), resident_.end(),
                         [](const auto& a, const auto& b) { return a.second.order < b.second.order; });
    if (oldest->second.step + 10 < step_) return oldest->first;
    const auto next_use = [](const entry& e) { return std::tuple(e.step + 1, e.row, e.depth); };
    return std::max_element(
               resident_.begin(), resident_.end(),
               [&](const auto& a, const auto& b) { return next_use(a.second) < next_use(b.second); })
        ->first;
  }
  std::size_t capacity_;
  std::uint64_t step_ = 0, uses_ = 0;
  std::map<std::uint64_t, entry> resident_;
};

}  // namespace

TEST_CASE("step_aware: hits what Belady's optimum hits, at every ratio of tier to context") {
  for (const std::uint32_t growth : {0u, 1u}) {
    const schedule s(12, growth, 7);
    const std::uint32_t context = rows * (12 + growth * 6);
    for (std::uint32_t capacity = 1; capacity <= context; ++capacity) {
      CAPTURE(growth, capacity);
      const std::size_t optimum = belady_hits(s.trace, capacity);
      CHECK(s.hits(test::simulated_cache<step_aware>(capacity)) == optimum);
      CHECK(s.hits(test::simulated_cache<step_aware>(capacity, test::use_of_a_hit::pinned)) == optimum);
    }
  }
}

TEST_CASE("step_aware: hits where a least-recently-used order hits nothing") {
  const schedule s(12, 0, 7);
  CHECK(s.hits(test::simulated_cache<lru>(rows * 12 - 1)) == 0);
  CHECK(s.hits(test::simulated_cache<step_aware>(rows * 12 - 1)) > s.trace.size() * 8 / 10);
}

TEST_CASE("step_aware: equals its definition to the last miss") {
  CHECK(test::equals_naive<step_aware, naive_step_aware>({.patience = 10}));
}

TEST_CASE("step_aware: keeps the contract of policies") {
  CHECK(policy_conformance<step_aware>() == std::nullopt);
  CHECK(policy_conformance<step_aware>({.patience = 0}) == std::nullopt);
}

TEST_CASE("step_aware: among the free blocks the last used is the victim, whoever is pinned") {
  std::vector<step_aware::block_state> states(6);
  step_aware policy;
  policy.bind(states);
  policy.advance_step(3);
  for (std::uint32_t i = 0; i < 6; ++i) policy.admit(i, {.depth = i % 3, .row = i / 3});
  policy.advance_step(4);
  policy.remove(5);
  CHECK(policy.victim() == 4);
  policy.touch(0, {.step = 4});
  CHECK(policy.victim() == 0);
  policy.remove(0);
  policy.remove(1);
  policy.admit(0, {.depth = 0, .row = 0, .why = block_info::admission::returned});
  policy.admit(1, {.depth = 1, .row = 0, .why = block_info::admission::returned});
  CHECK(policy.victim() == 1);
}

TEST_CASE("step_aware: what a prefetch has brought stays until the schedule comes to it") {
  std::vector<step_aware::block_state> states(6);
  step_aware policy;
  policy.bind(states);
  policy.advance_step(1);
  const auto bring = [&](std::uint32_t i, block_info::admission why) {
    policy.admit(i, {.depth = i % 3, .row = i / 3, .why = why});
  };
  bring(0, block_info::admission::first);
  bring(1, block_info::admission::first);
  bring(3, block_info::admission::ahead);
  bring(4, block_info::admission::ahead);
  CHECK(policy.victim() == 1);
  policy.remove(1);
  CHECK(policy.victim() == 0);
  policy.remove(0);
  CHECK(policy.victim() == 4);  // the later one of those that are still to come
  policy.touch(3, {.step = 1});
  CHECK(policy.victim() == 3);
  bring(0, block_info::admission::ahead);  // lies behind: for the next step, in which it is the first
  CHECK(policy.victim() == 3);
  policy.remove(3);
  CHECK(policy.victim() == 0);
  policy.remove(0);
  CHECK(policy.victim() == 4);
}

TEST_CASE("step_aware: what the schedule passes over leaves first, once patience is at its end") {
  std::vector<step_aware::block_state> states(4);
  step_aware policy(step_aware::options{.patience = 2});
  policy.bind(states);
  for (std::uint32_t i = 0; i < 4; ++i) policy.admit(i, {.depth = i});
  for (std::uint64_t step = 1; step <= 3; ++step) {
    CHECK(policy.victim() == 3);
    policy.advance_step(step);
    policy.touch(2, {.step = step});
    policy.touch(3, {.step = step});
  }
  CHECK(policy.victim() == 0);
  policy.remove(0);
  CHECK(policy.victim() == 1);
  policy.remove(1);
  CHECK(policy.victim() == 3);
}

TEST_CASE("step_aware: the order stays as it is however many steps pass") {
  std::vector<step_aware::block_state> states(8);
  step_aware policy(step_aware::options{.patience = ~std::uint64_t{0}});
  policy.bind(states);
  // Millions of steps from one use to the next, a jump that leaves all that was before it behind, and small steps.
  std::uint64_t step = 0;
  for (const std::uint64_t more : {std::uint64_t{0}, std::uint64_t{5'000'000}, std::uint64_t{5'000'000},
                                   std::uint64_t{9'000'000}, std::uint64_t{1} << 40, std::uint64_t{1}}) {
    policy.advance_step(step += more);
    for (const std::uint32_t i : {2u, 5u, 3u}) policy.admit(i, {.depth = i, .row = 1});
    CHECK(policy.victim() == 5);
    policy.advance_step(++step);
    policy.touch(2, {.step = step});
    CHECK(policy.victim() == 2);
    policy.remove(2);
    CHECK(policy.victim() == 5);
    policy.admit(7, {.depth = 4, .row = 1, .why = block_info::admission::ahead});  // needed before 5
    CHECK(policy.victim() == 5);
    policy.touch(3, {.step = step});
    policy.advance_step(step += (1u << 23) - 2);  // counted anew every other time, with blocks in charge
    policy.touch(7, {.step = step});
    for (const std::uint32_t i : {7u, 3u, 5u}) {
      CHECK(policy.victim() == i);
      policy.remove(i);
    }
    CHECK(policy.victim() == index_link::none);
  }
  policy.admit(0, {});
  policy.touch(4, {});  // was never here
  CHECK(policy.victim() == 0);
}

TEST_CASE("step_aware: patience ends for a block that was needed millions of steps ago") {
  std::vector<step_aware::block_state> states(2);
  step_aware policy;
  policy.bind(states);
  policy.admit(0, {.depth = 0});
  policy.advance_step(std::uint64_t{1} << 33);
  policy.admit(1, {.depth = 1});
  CHECK(policy.victim() == 0);
}

TEST_CASE("step_aware: nobody, one block, and books that grow") {
  step_aware policy;
  CHECK(policy.victim() == index_link::none);
  std::vector<step_aware::block_state> states(1);
  policy.bind(states);
  policy.touch(0, {});
  CHECK(policy.victim() == index_link::none);
  policy.admit(0, {.depth = 1});
  CHECK(policy.victim() == 0);
  states.resize(50);
  policy.bind(states);
  policy.admit(49, {.depth = 0});
  CHECK(policy.victim() == 0);
  policy.remove(0);
  CHECK(policy.victim() == 49);
}
