#pragma once
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "terrace/cache/planner.hpp"
#include "terrace/core/bytes.hpp"
#include "terrace/prefix_index.hpp"
#include "terrace/testing/simulated_ladder.hpp"
#include "terrace/testing/simulation_batch.hpp"
#include "terrace/testing/simulation_model.hpp"
#include "terrace/testing/simulation_repair.hpp"

namespace terrace {
inline namespace TERRACE_EX {

/// The accounts of a simulated cache, derived from what its user holds: who refers to which block, and who has pinned
/// which copy. They are compared with the cache's own while nothing is on its way; any difference is a leak.
class simulation_audit {
 public:
  explicit simulation_audit(simulated_ladder& l) : ladder_(l), planner_(l.cache().control()) {}

  void add(const simulated_sequence& s) {
    const page_table& pages = s.tokens.pages();
    for (const auto& row : pages.rows)
      for (const block_id id : row) refer(id);
    for (const block_id id : pages.replaced) refer(id);
  }
  void add_name(block_id id) { refer(id); }
  void add(simulated_acquire& a) {
    lease* const held = a.blocks();
    for (std::size_t i = 0; held != nullptr && i < held->size(); ++i) {
      const leased_block& b = (*held)[i];
      if (b.data != nullptr) ++blocks_[b.id].pins[b.tier];
    }
  }
  /// Its slot is filling, and its user holds it.
  void add(const simulated_restoration& r) {
    account& own = blocks_[r.room.id()];
    ++own.pins[0];
    own.computed = true;
  }
  /// A window pins each of its blocks once, in whichever tier it is read.
  void add(const simulated_batch& b) {
    if (!b.window) return;
    std::vector<block_id> seen;
    for (const auto& page : b.held)
      if (!page.open && std::find(seen.begin(), seen.end(), page.block) == seen.end()) {
        seen.push_back(page.block);
        ++blocks_[page.block].pinned_somewhere;
      }
  }
  void add_borrowed(std::size_t bytes) { resident_[0] += align_up(bytes, ladder_.rungs[0].granule); }

  /// The first account that does not agree, as a sentence; empty if all do.
  /// `prefixes` is what the prefix index says of itself.
  std::string compare(const prefix_index_stats& prefixes) {
    const cache_stats stats = ladder_.cache().stats();
    std::uint64_t pins = 0;
    for (auto& [id, own] : blocks_) {
      const block_record& r = planner_.record(id.index);
      if (planner_.id_of(id.index) != id || r.now == block_record::phase::free)
        return "a block that somebody refers to is gone";
      if (r.refs != own.refs) return "a block counts other references than there are";
      if (r.now == block_record::phase::open) ++own.pins[0];
      std::uint32_t elsewhere = own.pinned_somewhere;
      pins += elsewhere;
      for (std::size_t t = 0; t < planner_.tiers(); ++t) {
        const std::uint32_t counted = planner_.copy(id.index, t).pins;
        if (counted > own.pins[t] && counted - own.pins[t] <= elsewhere) {
          elsewhere -= counted - own.pins[t];
          pins -= counted - own.pins[t];
          own.pins[t] = counted;
        }
        pins += own.pins[t];
        if (auto wrong = compare_copy(id.index, own, t); !wrong.empty()) return wrong;
      }
    }
    if (auto wrong = compare_unreferred(stats, prefixes); !wrong.empty()) return wrong;
    if (stats.pins != pins)
      return "pins leaked: the cache counts " + std::to_string(stats.pins) + ", its users " +
             std::to_string(pins);
    if (stats.staging_bytes != 0) return "staging leaked: nothing is on its way, and some is in use";
    for (std::size_t t = 0; t < planner_.tiers(); ++t) {
      if (stats.tiers[t].resident_bytes != resident_[t])
        return "room leaked: tier " + std::to_string(t) + " says that " +
               std::to_string(stats.tiers[t].resident_bytes) + " bytes are in use, and its copies take " +
               std::to_string(resident_[t]);
      if (overlap(extents_[t])) return "two copies lie in the same bytes of a tier";
    }
    return {};
  }

 private:
  struct account {
    std::uint32_t refs = 0;
    std::array<std::uint32_t, max_tiers> pins{};
    std::uint32_t pinned_somewhere = 0;
    bool computed = false;  // being computed anew, in tier 0
  };
  void refer(block_id id) {
    if (id.valid()) ++blocks_[id].refs;
  }
  // Blocks that nobody refers to must be known to the index and be in some tier.
  std::string compare_unreferred(const cache_stats& stats, const prefix_index_stats& prefixes) {
    std::size_t all = 0, cached = 0;
    for (std::uint32_t i = 0; i < planner_.indices(); ++i) {
      const block_record& r = planner_.record(i);
      if (r.now == block_record::phase::free) continue;
      ++all;
      cached += r.cached != index_link::none ? 1 : 0;
      if (blocks_.contains(planner_.id_of(i))) continue;
      if (r.refs != 0 || r.cached == index_link::none)
        return "blocks leaked: there is one that nobody refers to, and that no index knows";
      bool somewhere = false;
      for (std::size_t t = 0; t < planner_.tiers(); ++t) {
        if (auto wrong = compare_copy(i, {}, t); !wrong.empty()) return wrong;
        somewhere = somewhere || planner_.copy(i, t).present();
      }
      if (!somewhere) return "blocks leaked: an index knows one that nobody refers to, and that is nowhere";
    }
    if (stats.blocks != all) return "the cache counts other blocks than there are";
    if (prefixes.blocks != cached)
      return "an index counts " + std::to_string(prefixes.blocks) + " blocks, and the cache knows " +
             std::to_string(cached) + " as an index's";
    // Each chunk that expired has had a block that was let go for room, and counted, or that lost its last copy.
    std::uint64_t gone = stats.dropped;
    for (const tier_stats& tier : stats.tiers) gone += tier.lost;
    if (prefixes.expired > gone) return "cached blocks were let go that nobody has counted";
    return {};
  }
  std::string compare_copy(std::uint32_t block, const account& own, std::size_t tier) {
    using state = block_copy::state;
    const block_copy& copy = planner_.copy(block, tier);
    const bool computed = own.computed && tier == 0;
    if (computed != (copy.now() == state::filling) || copy.now() == state::leaving)
      return computed ? "the room of a block that is computed anew is gone"
                      : "a copy is on its way, and nothing else is";
    if (copy.pins != own.pins[tier]) return "a copy counts other pins than there are";
    if (!copy.present()) return {};
    if (copy.in_policy && copy.pins != 0) return "a policy has charge of a copy that is pinned";
    const extent where = planner_.where(block, tier);
    resident_[tier] += align_up(std::size_t{where.bytes}, ladder_.rungs[tier].granule);
    extents_[tier].emplace_back(where.offset, where.offset + where.bytes);
    return {};
  }
  static bool overlap(std::vector<std::pair<std::uint64_t, std::uint64_t>>& extents) {
    std::sort(extents.begin(), extents.end());
    for (std::size_t i = 1; i < extents.size(); ++i)
      if (extents[i].first < extents[i - 1].second) return true;
    return false;
  }

  simulated_ladder& ladder_;
  planner& planner_;
  std::map<block_id, account> blocks_;
  std::array<std::size_t, max_tiers> resident_{};
  std::array<std::vector<std::pair<std::uint64_t, std::uint64_t>>, max_tiers> extents_;
};

/// What must hold for a cache's own figures after every operation, whatever is on its way. For one lifetime of a
/// cache.
class simulation_watch {
 public:
  explicit simulation_watch(simulated_ladder& l) : ladder_(l) {
    for (const auto& rung : ladder_.rungs) {
      const bool faulty_tier = rung.device != nullptr;
      begin_.push_back(faulty_tier ? writes{failed(*rung.device), stored(*rung.device)} : writes{});
    }
  }
  /// The first impossible figure, as a sentence; empty if there is none.
  std::string look() {
    const cache_stats stats = ladder_.cache().stats();
    if (stats.pins > 1'000'000) return "the number of pins is negative";
    if (stats.hot_bytes_peak > ladder_.setup.capacities[0])
      return "slots and staging have taken more than tier 0's capacity";
    for (std::size_t t = 0; t < stats.tiers.size(); ++t) {
      const tier_stats& tier = stats.tiers[t];
      // A tier that was made smaller may be overfull, and then only gives back.
      if (tier.resident_bytes > std::max(tier.capacity_bytes, resident_[t]))
        return "tier " + std::to_string(t) + " has grown beyond its capacity";
      resident_[t] = tier.resident_bytes;
      const faulty_device* device = ladder_.rungs[t].device.get();
      if (device == nullptr) continue;
      if (tier.capacity_bytes > device->capacity()) return "a tier says that it is larger than its device";
      const std::uint64_t failures = failed(*device) - begin_[t].failed;
      if (tier.failed_stores < failures || ladder_.cache().health(t).failures < failures)
        return "stores to tier " + std::to_string(t) + " have failed, and its figures do not say so";
    }
    return {};
  }
  /// The same while nothing is on its way.
  std::string look_at_rest() {
    const cache_stats stats = ladder_.cache().stats();
    for (std::size_t t = 0; t < stats.tiers.size(); ++t)
      if (const faulty_device* device = ladder_.rungs[t].device.get();
          device != nullptr && stats.tiers[t].stores > stored(*device) - begin_[t].stored)
        return "tier " + std::to_string(t) + " counts stores that its device has not seen";
    return {};
  }

 private:
  struct writes {
    std::uint64_t failed = 0, stored = 0;
  };
  static std::uint64_t failed(const faulty_device& d) noexcept {
    return d.seen(device_call::write).failed + d.seen(device_call::sync).failed;
  }
  static std::uint64_t stored(const faulty_device& d) noexcept {
    return d.seen(device_call::write).succeeded;
  }

  simulated_ladder& ladder_;
  std::vector<writes> begin_;  // what the devices had seen before
  std::array<std::size_t, max_tiers> resident_{};
};

}  // namespace TERRACE_EX
}  // namespace terrace
