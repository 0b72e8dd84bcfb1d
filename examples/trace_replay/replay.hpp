#pragma once
#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "terrace/cache/tier_control.hpp"
#include "terrace/testing/belady.hpp"
#include "trace.hpp"

namespace replay {

/// What one run has counted.
struct result {
  std::string policy;
  std::vector<std::size_t> capacities{};  ///< of the tiers, in blocks
  std::uint64_t requests = 0, accesses = 0;
  std::uint64_t prefix_hits = 0;  ///< before the first miss of their request
  std::uint64_t evictions = 0;    ///< blocks that left the last tier
  std::vector<std::uint64_t> tier_hits{};
  double seconds = 0;

  std::uint64_t hits() const { return std::accumulate(tier_hits.begin(), tier_hits.end(), std::uint64_t{}); }
  std::size_t capacity() const {
    return std::accumulate(capacities.begin(), capacities.end(), std::size_t{});
  }
  double hit_ratio() const { return share(hits()); }
  double prefix_hit_ratio() const { return share(prefix_hits); }
  double ns_per_access() const { return accesses == 0 ? 0 : seconds * 1e9 / static_cast<double>(accesses); }

 private:
  double share(std::uint64_t count) const {
    return accesses == 0 ? 0 : static_cast<double>(count) / static_cast<double>(accesses);
  }
};

/// Drives tiers as the cache's planner does, one access at a time and with nothing to transfer. A block that is used
/// is pinned (removed from its policy), touched, and given back; one from a farther tier moves to tier 0. Victims
/// move down one tier each, so a block is in one tier at a time and capacities add up. A step is a request.
class replayer {
 public:
  /// `tiers` are nearest first, open, and empty.
  replayer(std::span<const std::unique_ptr<terrace::tier_control>> tiers, std::size_t distinct)
      : tiers_(tiers), slot_of_(distinct, none) {
    std::size_t slots = 1;  // of all tiers, but not more than there are blocks
    for (const auto& tier : tiers_) slots += tier->capacity();
    slots_.resize(std::min(slots, distinct + 1));
    for (auto i = static_cast<std::uint32_t>(slots_.size()); i-- > 0;) free_.push_back(i);
    for (const auto& tier : tiers_) tier->grow(slots_.size());
  }

  void advance_step(std::uint64_t step) {
    step_ = step;
    for (const auto& tier : tiers_) tier->advance_step(step);
  }

  /// Uses a block. Returns the tier that had it, or nothing.
  std::optional<std::size_t> access(std::uint32_t block, std::uint32_t parent, std::uint32_t depth,
                                    std::uint32_t turn) {
    std::uint32_t i = slot_of_[block];
    std::optional<std::size_t> found;
    terrace::block_info info{.key = std::uint64_t{block} + 1,
                             .parent = parent == none ? none : slot_of_[parent],
                             .depth = depth,
                             .turn = turn,
                             .bytes = 1,
                             .recompute_cost = static_cast<float>(depth + 1)};
    if (i != none) {
      found = slots_[i].tier;
      tiers_[*found]->remove(i);
      tiers_[*found]->touch(i, {.step = step_});
    } else {
      if (free_.empty()) make_room(0);
      i = slot_of_[block] = free_.back();
      free_.pop_back();
    }
    slots_[i].info = info;
    if (found == std::size_t{0}) {
      info.why = terrace::block_info::admission::returned;
      tiers_[0]->admit(i, info, terrace::standing::ordinary);
    } else {
      if (found) tiers_[*found]->release({.bytes = 1});
      enter(i, 0);
    }
    return found;
  }

  /// Blocks that have left the last tier.
  std::uint64_t evictions() const noexcept { return evictions_; }

 private:
  static constexpr std::uint32_t none = terrace::index_link::none;
  struct slot {
    terrace::block_info info;
    std::size_t tier = 0;
  };

  void enter(std::uint32_t i, std::size_t tier) {
    while (!tiers_[tier]->reserve(1, {})) make_room(tier);
    slots_[i].tier = tier;
    tiers_[tier]->admit(i, slots_[i].info, terrace::standing::ordinary);
  }
  void make_room(std::size_t tier) {
    const std::uint32_t victim = tiers_[tier]->victim();
    tiers_[tier]->evict(victim);
    tiers_[tier]->release({.bytes = 1});
    if (tier + 1 < tiers_.size()) return enter(victim, tier + 1);
    slot_of_[slots_[victim].info.key - 1] = none;
    free_.push_back(victim);
    ++evictions_;
  }

  std::span<const std::unique_ptr<terrace::tier_control>> tiers_;
  std::vector<std::uint32_t> slot_of_;  // of each block of the trace
  std::vector<slot> slots_;
  std::vector<std::uint32_t> free_;
  std::uint64_t step_ = 0, evictions_ = 0;
};

/// Replays all of a trace. `name` is that of the tiers' policy.
inline result run(const trace& t, std::string name,
                  std::span<const std::unique_ptr<terrace::tier_control>> tiers) {
  result out{.policy = std::move(name), .requests = t.requests(), .accesses = t.accesses()};
  for (const auto& tier : tiers) out.capacities.push_back(tier->capacity());
  out.tier_hits.resize(tiers.size());
  replayer cache(tiers, t.distinct());
  const auto start = std::chrono::steady_clock::now();
  for (std::size_t n = 0; n < t.requests(); ++n) {
    const trace::request r = t[n];
    cache.advance_step(n);
    bool prefix = true;
    for (std::uint32_t depth = 0; depth < r.blocks.size(); ++depth) {
      const auto found = cache.access(
          r.blocks[depth], depth == 0 ? terrace::index_link::none : r.blocks[depth - 1], depth, r.turn);
      if (found) ++out.tier_hits[*found];
      prefix = prefix && found;
      out.prefix_hits += prefix ? 1 : 0;
    }
  }
  out.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  out.evictions = cache.evictions();
  return out;
}

/// Belady's optimum with forced insertion. More capacity never costs it a hit (it is a stack algorithm). The first t
/// tiers together can have at most the hits of one tier of their size, so each tier of a ladder is credited with the
/// hits that it adds to those of the tiers before it.
inline result run_belady(const trace& t, std::vector<std::size_t> capacities) {
  result out{.policy = "belady", .requests = t.requests(), .accesses = t.accesses()};
  const std::vector<std::uint64_t> keys(t.blocks().begin(), t.blocks().end());
  const auto start = std::chrono::steady_clock::now();
  std::size_t capacity = 0;
  std::uint64_t before = 0;
  std::vector<bool> hits;
  for (const std::size_t more : capacities) {
    hits = terrace::belady(keys, capacity += more);
    std::uint64_t count = 0;
    for (const bool hit : hits) count += hit ? 1 : 0;
    out.tier_hits.push_back(count - std::exchange(before, count));
  }
  out.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  for (std::size_t n = 0, at = 0; n < t.requests(); ++n) {
    bool prefix = true;
    for (std::size_t end = at + t[n].blocks.size(); at < end; ++at) {
      prefix = prefix && hits[at];
      out.prefix_hits += prefix ? 1 : 0;
    }
  }
  const std::uint64_t misses = out.accesses - before;
  out.evictions = misses - std::min<std::uint64_t>(misses, capacity);
  out.capacities = std::move(capacities);
  return out;
}

}  // namespace replay
