#pragma once
// How blocks come back to tier 0, and how jobs end, in time or not. Part of cache/planner.hpp.
#include <utility>

#include "terrace/cache/planner.hpp"

namespace terrace {

// --- Loads.

inline void planner::begin_load(std::uint32_t block, extent slot, bool speculative) {
  block_record& r = blocks_[block];
  const std::size_t from = blocks_.best_copy(r, 1);
  r.load_from = static_cast<std::uint8_t>(from);
  r.tried = 0;
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
           .target = r.copies[0].where,
           .source_checksum = r.copies[r.load_from].checksum};
    ++loads_;
    transfers_.start(job);
  }
  if (overdue_loads_ != options_.loads_in_flight) return;
  // Every job is stuck beyond its deadline: those in line would wait for ever.
  while (blocks_.any_to_load()) {
    const std::uint32_t block = blocks_.first_to_load();
    blocks_.mark_to_load(block, false);
    const extent slot = blocks_[block].copies[0].where;
    unpin(block, blocks_[block].load_from);
    tiers_[0]->release(slot);
    lose_load(block, {errc::unavailable, "every transfer on its way has passed its deadline"});
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

// What comes up from an exclusive tier leaves it, once somebody has a use for it.
inline void planner::leave_exclusive(std::uint32_t block) {
  block_record& r = blocks_[block];
  for (std::size_t t = 1; t < tiers(); ++t) {
    const block_copy& copy = r.copies[t];
    if (exclusive_[t] && !(keepers_[t] && r.name.valid()) && copy.now == state::resident && copy.pins == 0 &&
        r.copies[0].now == state::resident && r.copies[0].quality >= copy.quality)
      drop_copy(block, t);
  }
}

// Nobody will bring this block into the slot that was claimed for it; whose the slot is now is the caller's affair.
inline void planner::lose_load(std::uint32_t block, const error& cause) {
  block_record& r = blocks_[block];
  if (std::exchange(r.speculative, false)) --prefetches_;
  if (r.copies[0].prefetched) ++prefetch_.wasted;
  answer_waiting(block, &cause);
  r.copies[0] = {};
  collect(block);
}

inline void planner::finish_load(transfer_job& job, const result<void>& outcome) {
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
    if (!slot.prefetched) leave_exclusive(job.block);
    answer_waiting(job.block, nullptr);
    settle(job.block, 0);
    collect(job.block);
    return;
  }
  if (job.write_failed) {  // a device took no copy: this time the block cannot be had
    ++tiers_[0]->health.failures;
    tiers_[0]->health.last = outcome.error();
    unpin(job.block, job.from);
    tiers_[0]->release(slot.where);
    return lose_load(job.block, outcome.error());
  }
  // This copy is of no use to anybody. Another one may be; only when there is none the block is lost.
  ++from.stats.lost;
  ++from.health.failures;
  from.health.last = outcome.error();
  unpin(job.block, job.from);
  if (r.copies[job.from].pins == 0 && r.copies[job.from].now == state::resident)
    drop_copy(job.block, job.from);
  // It may still be there, pinned by whoever else reads it: it is not tried again.
  r.tried |= static_cast<std::uint8_t>(1u << job.from);
  const std::size_t other = blocks_.best_copy(r, 1, r.tried);
  if (other != tiers()) {
    r.load_from = static_cast<std::uint8_t>(other);
    pin(job.block, other);
    slot.quality = r.copies[other].quality;
    blocks_.mark_to_load(job.block, true);
    return;
  }
  tiers_[0]->release(slot.where);
  lose_load(job.block, outcome.error());
}

// --- The end of a job, and those that do not end.

inline void planner::finished(transfer_job& job, result<void> outcome) {
  --(job.to == 0 ? loads_ : stores_);
  if (job.overdue)
    end_quarantine(job);
  else if (job.to == 0)
    finish_load(job, outcome);
  else
    finish_store(job, outcome);
  job.next = std::exchange(free_jobs_, &job);
  pump();
}

// The job goes on by itself, with its extents and the pin on its source; the block goes on without it.
inline void planner::overdue(transfer_job& job) {
  constexpr error late{errc::deadline, "a transfer has passed its deadline"};
  job.overdue = true;
  block_record& r = blocks_[job.block];
  if (job.to == 0) {
    ++overdue_loads_;
    tier_health& health = tiers_[job.from]->health;
    ++health.failures;
    health.last = late;
    r.tried |= static_cast<std::uint8_t>(1u << job.from);
    const std::size_t other = blocks_.best_copy(r, 1, r.tried);
    if (other != tiers()) pin(job.block, other);  // else the claim might drop it
    const claim slot = other == tiers() ? claim{room::impossible, {}} : claim_slot(slot_bytes(r), {});
    if (slot.what != room::ready) {
      if (other != tiers()) unpin(job.block, other);
      lose_load(job.block, late);
    } else {
      r.load_from = static_cast<std::uint8_t>(other);
      r.copies[0].where = slot.where;
      r.copies[0].quality = r.copies[other].quality;
      blocks_.mark_to_load(job.block, true);
    }
  } else {
    ++overdue_stores_;
    note_failure(job.to, late);
    r.copies[job.to] = {};
    if (keepers_[job.to] && r.name.valid()) to_keep_.push_back(blocks_.id_of(job.block));
    if (job.evict) {
      leaving_[job.from] -= job.source.bytes;
      r.copies[job.from].now = state::resident;
    }
    settle(job.block, job.from);
    if (job.from != 0) settle(job.block, 0);
  }
  pump();
}

inline void planner::end_quarantine(transfer_job& job) {
  --(job.to == 0 ? overdue_loads_ : overdue_stores_);
  tiers_[job.to]->release(job.target);
  unpin(job.block, job.from);
}

}  // namespace terrace
