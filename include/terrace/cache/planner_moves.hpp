#pragma once
// How blocks move: slots and room, write-behind and demotion, loads. Part of cache/planner.hpp.
#include <algorithm>
#include <utility>

#include "terrace/cache/planner.hpp"

namespace terrace {

// --- Copies: pinned, in the policy's charge, dropped.

inline void planner::pin(std::uint32_t block, std::size_t tier) {
  block_copy& copy = blocks_[block].copies[tier];
  if (std::exchange(copy.in_policy, false)) tiers_[tier]->remove(block);
  ++copy.pins;
  ++pins_;
}

inline void planner::unpin(std::uint32_t block, std::size_t tier) {
  block_record& r = blocks_[block];
  TERRACE_ASSERT(r.copies[tier].pins > 0, "a block was unpinned more often than pinned");
  --pins_;
  if (--r.copies[tier].pins != 0) return;
  settle(block, tier);
  collect(block);
}

// Puts a copy into its policy's charge, or takes it out, as its state now says; and a block that only tier 0
// has into the write-behind queue. Called whenever any of what it looks at has changed.
inline void planner::settle(std::uint32_t block, std::size_t tier) {
  block_record& r = blocks_[block];
  block_copy& copy = r.copies[tier];
  const bool at_rest = r.now == block_record::phase::sealed && copy.now == state::resident;
  bool chargeable = at_rest && copy.pins == 0;
  if (tier == last()) {
    chargeable = chargeable && r.refs == 0;
  } else if (tier == 0) {
    const bool saved = blocks_.saved_below(r, 0);
    chargeable = chargeable && saved;
    const bool on_its_way = std::any_of(r.copies.begin() + 1, r.copies.end(),
                                        [](const block_copy& c) { return c.now == state::filling; });
    blocks_.mark_unsaved(block, at_rest && r.refs != 0 && !saved && !on_its_way);
  }
  if (chargeable == copy.in_policy) return;
  copy.in_policy = chargeable;
  if (!chargeable) return tiers_[tier]->remove(block);
  const block_info info{.parent = r.parent,
                        .depth = r.depth,
                        .row = r.row,
                        .bytes = copy.where.bytes,
                        .why = std::exchange(copy.known, true) ? block_info::admission::returned
                               : copy.prefetched               ? block_info::admission::ahead
                                                               : block_info::admission::first};
  tiers_[tier]->admit(block, info);
}

inline void planner::drop_copy(std::uint32_t block, std::size_t tier) {
  block_record& r = blocks_[block];
  block_copy& copy = r.copies[tier];
  TERRACE_ASSERT(copy.pins == 0, "a pinned copy was dropped");
  if (copy.in_policy) tiers_[tier]->remove(block);
  if (copy.prefetched) ++prefetch_.wasted;
  if (tier == 0) blocks_.mark_unsaved(block, false);
  tiers_[tier]->release(copy.where);
  copy = {};
  if (tier != 0) settle(block, 0);
}

// Lets a block go that nobody refers to, as far as nothing reads or writes it still.
inline void planner::collect(std::uint32_t block) {
  block_record& r = blocks_[block];
  if (r.refs != 0 || r.now == block_record::phase::free) return;
  if (r.loading && r.waiting == nullptr) return drop_queued_load(block);  // which comes back here
  bool gone = true;
  for (std::size_t t = 0; t < tiers(); ++t) {
    if (r.copies[t].now == state::absent) continue;
    if (r.copies[t].pins == 0 && r.copies[t].readable())
      drop_copy(block, t);
    else
      gone = false;
  }
  if (gone) blocks_.recycle(block);
}

// --- Room.

// A slot in tier 0, now: whatever the policy has charge of there can be overwritten at once.
inline planner::claim planner::claim_slot(std::size_t bytes) {
  for (;;) {
    if (const auto slot = tiers_[0]->reserve(bytes)) {
      note_hot_bytes();
      return {room::ready, *slot};
    }
    const std::uint32_t victim = tiers_[0]->victim();
    if (victim == index_link::none) return {something_may_leave() ? room::pending : room::impossible, {}};
    if (blocks_[victim].refs == 0) ++dropped_;
    drop_copy(victim, 0);
    collect(victim);
  }
}

// Room in a farther tier. `ahead` is how many such blocks are in line: so many demotions may run at once.
inline planner::claim planner::claim_room(std::size_t tier, std::size_t bytes, std::size_t ahead) {
  for (;;) {
    if (const auto found = tiers_[tier]->reserve(bytes)) return {room::ready, *found};
    if (leaving_[tier] >= bytes * std::clamp<std::size_t>(ahead, 1, options_.stores_in_flight))
      return {room::pending, {}};
    const std::uint32_t victim = tiers_[tier]->victim();
    if (victim == index_link::none) return {leaving_[tier] != 0 ? room::pending : room::impossible, {}};
    block_record& r = blocks_[victim];
    if (r.refs == 0 || blocks_.saved_below(r, tier)) {
      if (r.refs == 0) ++dropped_;
      drop_copy(victim, tier);
      collect(victim);
      continue;
    }
    const room below = start_store(victim, tier, true, ahead);
    if (below != room::ready) return {leaving_[tier] != 0 ? room::pending : below, {}};
  }
}

inline bool planner::set_aside(std::size_t tier) const noexcept {
  return tiers_[tier]->capacity() == 0 ||
         (!tiers_[tier]->health.healthy && context::clock::now() < retry_at_[tier]);
}

// Where a block goes from `from`: the next tier that is there and not set aside for having failed. tiers()
// where there is none.
inline std::size_t planner::next_tier(std::size_t from) const noexcept {
  std::size_t t = from + 1;
  while (t < tiers() && set_aside(t)) ++t;
  return t;
}

// --- Down: write-behind and demotion.

inline planner::room planner::start_store(std::uint32_t block, std::size_t from, bool evict,
                                          std::size_t ahead) {
  const std::size_t to = next_tier(from);
  if (stopping_ || to == tiers()) return room::impossible;
  if (stores_ == options_.stores_in_flight) return room::pending;
  block_record& r = blocks_[block];
  const claim found = claim_room(to, tiers_[to]->max_encoded_size(group_of(r)), ahead);
  if (found.what != room::ready) return found.what;
  if (stores_ == options_.stores_in_flight) {  // demotions that made the room took the last job
    tiers_[to]->release(found.where);
    return room::pending;
  }
  block_copy& source = r.copies[from];
  pin(block, from);
  if (evict) {
    source.now = state::leaving;
    leaving_[from] += source.where.bytes;
  }
  r.copies[to].now = state::filling;
  r.copies[to].where = found.where;
  r.copies[to].quality = source.quality.through(tiers_[to]->what.loss);
  if (from == 0) blocks_.mark_unsaved(block, false);
  transfer_job& job = take_job();
  job = {.block = block,
         .from = static_cast<std::uint8_t>(from),
         .to = static_cast<std::uint8_t>(to),
         .group = &group_of(r),
         .source = source.where,
         .target = found.where,
         .evict = evict};
  ++stores_;
  transfers_.start(job);
  return room::ready;
}

inline void planner::start_stores() {
  while (blocks_.any_unsaved())
    if (start_store(blocks_.first_unsaved(), 0, false, blocks_.unsaved()) != room::ready) return;
}

inline void planner::shrink_target(transfer_job& job, std::size_t bytes) {
  tier_control& tier = *tiers_[job.to];
  tier.release(job.target);
  const auto smaller = tier.reserve(bytes);  // nothing came between, and what was released is large enough
  TERRACE_ASSERT(smaller.has_value(), "an extent could not be made smaller");
  job.target = *smaller;
  blocks_[job.block].copies[job.to].where = *smaller;
}

inline void planner::finish_store(transfer_job& job, const result<void>& outcome) {
  --stores_;
  block_record& r = blocks_[job.block];
  block_copy& source = r.copies[job.from];
  block_copy& target = r.copies[job.to];
  tier_control& to = *tiers_[job.to];
  note_store_outcome(job.to, outcome);
  if (outcome) {
    target.now = state::resident;
    ++to.stats.stores;
    to.stats.bytes_written += job.target.bytes;
    tiers_[job.from]->stats.bytes_read += job.source.bytes;
  } else {
    to.release(job.target);
    target = {};
  }
  if (job.evict) {
    leaving_[job.from] -= job.source.bytes;
    source.now = state::resident;
  }
  settle(job.block, job.to);
  unpin(job.block, job.from);
  if (job.evict && outcome && source.now == state::resident && source.pins == 0)
    drop_copy(job.block, job.from);
  collect(job.block);
}

// A tier that fails is left alone for a while, longer each time, and tried again.
inline void planner::note_store_outcome(std::size_t tier, const result<void>& outcome) {
  tier_health& health = tiers_[tier]->health;
  if (outcome) {
    health.healthy = true;
    return;
  }
  using std::chrono::milliseconds;
  ++tiers_[tier]->stats.failed_stores;
  const auto pause = milliseconds(10) * (1 << std::min<std::uint64_t>(health.failures, 9));
  ++health.failures;
  health.healthy = false;
  health.last = outcome.error();
  retry_at_[tier] = context::clock::now() + pause;
}

// --- Up: loads.

inline void planner::begin_load(std::uint32_t block, extent slot, bool speculative) {
  block_record& r = blocks_[block];
  const std::size_t from = blocks_.best_copy(r, 1);
  r.load_from = static_cast<std::uint8_t>(from);
  r.speculative = speculative;
  pin(block, from);
  r.copies[0].now = state::filling;
  r.copies[0].where = slot;
  r.copies[0].quality = r.copies[from].quality;
  r.copies[0].prefetched = speculative;
  if (speculative) {
    ++prefetches_;
    ++prefetch_.issued;
  }
  blocks_.mark_to_load(block, true);
}

inline void planner::start_loads() {
  while (!stopping_ && loads_ < options_.loads_in_flight && blocks_.any_to_load()) {
    const std::uint32_t block = blocks_.first_to_load();
    blocks_.mark_to_load(block, false);
    block_record& r = blocks_[block];
    transfer_job& job = take_job();
    job = {.block = block,
           .from = r.load_from,
           .to = 0,
           .group = &group_of(r),
           .source = r.copies[r.load_from].where,
           .target = r.copies[0].where};
    ++loads_;
    transfers_.start(job);
  }
}

// Takes back a load that has not begun and that nobody waits for.
inline void planner::drop_queued_load(std::uint32_t block) {
  block_record& r = blocks_[block];
  blocks_.mark_to_load(block, false);
  if (std::exchange(r.speculative, false)) --prefetches_;
  if (r.copies[0].prefetched) ++prefetch_.wasted;
  tiers_[0]->release(r.copies[0].where);
  r.copies[0] = {};
  unpin(block, r.load_from);
}

inline void planner::finish_load(transfer_job& job, const result<void>& outcome) {
  --loads_;
  block_record& r = blocks_[job.block];
  block_copy& slot = r.copies[0];
  tier_control& from = *tiers_[job.from];
  if (outcome) {
    ++from.stats.loads;
    from.stats.bytes_read += job.source.bytes;
    tiers_[0]->stats.bytes_written += slot.where.bytes;
    slot.now = state::resident;
    if (std::exchange(r.speculative, false)) --prefetches_;
    unpin(job.block, job.from);
    answer_waiting(job.block, nullptr);
    settle(job.block, 0);
    collect(job.block);
    return;
  }
  // This copy is of no use to anybody. Another one may be; only when there is none the block is lost.
  ++from.stats.lost;
  ++from.health.failures;
  from.health.last = outcome.error();
  unpin(job.block, job.from);
  if (r.copies[job.from].pins == 0 && r.copies[job.from].now == state::resident)
    drop_copy(job.block, job.from);
  const std::size_t other = blocks_.best_copy(r, 1);
  if (other != tiers()) {
    r.load_from = static_cast<std::uint8_t>(other);
    pin(job.block, other);
    slot.quality = r.copies[other].quality;
    blocks_.mark_to_load(job.block, true);
    return;
  }
  if (std::exchange(r.speculative, false)) --prefetches_;
  answer_waiting(job.block, &outcome.error());
  tiers_[0]->release(slot.where);
  slot = {};
  collect(job.block);
}

inline void planner::finished(transfer_job& job, result<void> outcome) {
  if (job.to == 0)
    finish_load(job, outcome);
  else
    finish_store(job, outcome);
  job.next = std::exchange(free_jobs_, &job);
  pump();
}

}  // namespace terrace
