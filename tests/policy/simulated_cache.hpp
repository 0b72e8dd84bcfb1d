#pragma once
// What the tests of policies share: a cache of blocks of one size around a policy, and traces to drive it.
#include <algorithm>
#include <array>
#include <cstdint>
#include <deque>
#include <random>
#include <span>
#include <unordered_map>
#include <vector>

#include "terrace/policy/policy.hpp"

namespace terrace::test {

/// How a hit is told to the policy.
enum class use_of_a_hit {
  in_charge,  ///< touch alone
  pinned,     ///< remove, touch, admit as returned: what the cache does
};

/// One access of a trace.
struct trace_access {
  std::uint64_t key = 0;
  std::uint32_t row = 0;
  std::uint32_t depth = 0;
  float mass = 0;
  float reload_cost = 0;
};

/// A cache that stores nothing. Indices are recycled in turn, and the array of states grows while it is in
/// use.
template <eviction_policy P>
class simulated_cache {
 public:
  explicit simulated_cache(std::uint32_t capacity, use_of_a_hit how = use_of_a_hit::in_charge,
                           typename P::options o = {})
      : capacity_(capacity), how_(how), policy_(o) {
    for (std::uint32_t i = 0; i < 2 * capacity + 3; ++i) free_.push_back(i);
    key_of_.resize(free_.size());
  }

  void advance_step(std::uint64_t step) {
    step_ = step;
    policy_.advance_step(step);
  }

  /// True for a hit.
  bool operator()(const trace_access& a) {
    block_info info{.key = a.key, .depth = a.depth, .row = a.row, .reload_cost = a.reload_cost};
    const block_use use{.step = step_, .mass = a.mass};
    if (const auto found = index_of_.find(a.key); found != index_of_.end()) {
      const std::uint32_t i = found->second;
      if (how_ == use_of_a_hit::pinned) policy_.remove(i);
      policy_.touch(i, use);
      info.why = block_info::admission::returned;
      if (how_ == use_of_a_hit::pinned) policy_.admit(i, info);
      return true;
    }
    if (index_of_.size() == capacity_) evict();
    const std::uint32_t i = free_.front();
    free_.pop_front();
    if (i >= states_.size()) {
      states_.resize(2 * i + 1);
      policy_.bind(states_);
    }
    key_of_[i] = a.key;
    index_of_[a.key] = i;
    policy_.admit(i, info);
    return false;
  }

 private:
  void evict() {
    const std::uint32_t i = policy_.victim();
    evict_from(policy_, i);
    index_of_.erase(key_of_[i]);
    free_.push_back(i);
  }

  std::uint32_t capacity_;
  use_of_a_hit how_;
  P policy_;
  std::uint64_t step_ = 0;
  std::vector<typename P::block_state> states_;
  std::unordered_map<std::uint64_t, std::uint32_t> index_of_;
  std::vector<std::uint64_t> key_of_;
  std::deque<std::uint32_t> free_;
};

/// Popular keys, scans, and keys that are asked for again soon. Keys begin at 1, each has a place in the
/// schedule of its own.
inline std::vector<trace_access> random_trace(std::uint32_t seed, std::size_t length = 4000) {
  constexpr std::uint32_t keys = 400;
  std::mt19937 random(seed);
  std::vector<trace_access> trace;
  std::uint32_t scan = 0;
  while (trace.size() < length) {
    const double u = static_cast<double>(random() % 10000) / 10000;
    std::uint32_t key = static_cast<std::uint32_t>(keys * u * u * u);
    switch (random() % 5) {
      case 0:
        key = scan++ % keys;
        break;
      case 1:
        if (!trace.empty())
          key = static_cast<std::uint32_t>(
              trace[trace.size() - 1 - random() % std::min<std::size_t>(trace.size(), 30)].key - 1);
        break;
    }
    trace.push_back({.key = key + 1,
                     .row = key % 7,
                     .depth = key / 7,
                     .mass = static_cast<float>(random() % 100) / 100.0f,
                     .reload_cost = static_cast<float>(key % 5)});
  }
  return trace;
}

/// Which accesses hit. `cache` may be a simulated_cache or a naive reference. A step is `step_length`
/// accesses long.
template <class Cache>
std::vector<bool> hits(Cache&& cache, std::span<const trace_access> trace, std::size_t step_length = 50) {
  std::vector<bool> all;
  for (std::size_t n = 0; n < trace.size(); ++n) {
    if (n % step_length == 0) cache.advance_step(n / step_length);
    all.push_back(cache(trace[n]));
  }
  return all;
}

inline constexpr std::array<std::uint32_t, 8> capacities{1, 2, 3, 7, 20, 64, 150, 390};

/// Whether the policy hits exactly where `Naive(capacity)` does: on every trace, at every capacity, and no
/// matter whether a use pins the block.
template <eviction_policy P, class Naive>
bool equals_naive(typename P::options o = {}) {
  for (std::uint32_t seed = 1; seed <= 3; ++seed) {
    const std::vector<trace_access> trace = random_trace(seed);
    for (const std::uint32_t capacity : capacities) {
      const std::vector<bool> expected = hits(Naive(capacity), trace);
      for (const use_of_a_hit how : {use_of_a_hit::in_charge, use_of_a_hit::pinned})
        if (hits(simulated_cache<P>(capacity, how, o), trace) != expected) return false;
    }
  }
  return true;
}

}  // namespace terrace::test
