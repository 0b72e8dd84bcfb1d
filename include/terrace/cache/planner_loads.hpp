#pragma once
// How blocks come back to tier 0, and how jobs end, in time or not. Part of cache/planner.hpp.
#include <utility>

#include "terrace/cache/planner.hpp"
#include "terrace/core/config.hpp"

namespace terrace {

// --- Loads.

TERRACE_BODY void planner::begin_load(std::uint32_t block, extent slot, bool speculative) {
  block_record& r = blocks_[block];
  std::size_t from = load_source(block);
  if (from == tiers())
    from = blocks_.best_copy(block, 1);  // set aside since the last look: start_loads deals with it
  r.load_from = static_cast<std::uint8_t>(from);
  r.tried = 0;
  r.speculative = speculative;
  pin(block, from);
  blocks_.add_copy(block, 0, slot, blocks_.copy(block, from).quality).prefetched = speculative;
  if (speculative) {
    ++prefetches_;
    ++prefetch_.issued;
  }
  blocks_.mark_to_load(block, true);
}

TERRACE_BODY void planner::start_loads() {
  while (!stopping_ && !loads_full() && blocks_.any_to_load()) {
    const std::uint32_t block = blocks_.first_to_load();
    blocks_.mark_to_load(block, false);
    block_record& r = blocks_[block];
    if (!admits_load(r.load_from)) {
      unpin(block, r.load_from);
      redirect_load(block, no_answer);
      continue;
    }
    transfer_job& job = take_job();
    job = {.block = block,
           .from = r.load_from,
           .to = 0,
           .group = &group_of(r),
           .source = blocks_.where(block, r.load_from),
           .target = blocks_.where(block, 0),
           .source_checksum = blocks_.copy(block, r.load_from).checksum,
           .probe = note_begin(r.load_from, circuit_breaker::work::read)};
    ++loads_;
    transfers_.start(job);
  }
  if (overdue_loads_ != 2 * options_.loads_in_flight) return;
  // Every load job is overdue: the loads in line would wait for ever.
  while (blocks_.any_to_load()) {
    const std::uint32_t block = blocks_.first_to_load();
    blocks_.mark_to_load(block, false);
    const extent slot = blocks_.where(block, 0);
    unpin(block, blocks_[block].load_from);
    tiers_[0]->release(slot);
    lose_load(block, {errc::unavailable, "every transfer on its way has passed its deadline"});
  }
}

// Withdraws a load that has not begun and that nobody waits for.
TERRACE_BODY void planner::drop_queued_load(std::uint32_t block) {
  block_record& r = blocks_[block];
  blocks_.mark_to_load(block, false);
  if (std::exchange(r.speculative, false)) --prefetches_;
  if (blocks_.copy(block, 0).prefetched) ++prefetch_.wasted;
  tiers_[0]->release(blocks_.where(block, 0));
  blocks_.remove_copy(block, 0);
  unpin(block, r.load_from);
}

// A block that comes up from an exclusive tier leaves it, once it is demanded.
TERRACE_BODY void planner::leave_exclusive(std::uint32_t block) {
  const bool named = blocks_[block].name.valid();
  const block_copy& hot = blocks_.copy(block, 0);
  for (std::size_t t = 1; t < tiers(); ++t) {
    const block_copy& copy = blocks_.copy(block, t);
    if (exclusive_[t] && !(keepers_[t] && named) && copy.now() == state::resident && copy.pins == 0 &&
        hot.now() == state::resident && hot.quality >= copy.quality)
      drop_copy(block, t);
  }
}

// Nobody will bring this block into the slot that was claimed for it; the caller deals with the slot.
TERRACE_BODY void planner::lose_load(std::uint32_t block, const error& cause) {
  block_record& r = blocks_[block];
  if (std::exchange(r.speculative, false)) --prefetches_;
  if (blocks_.copy(block, 0).prefetched) ++prefetch_.wasted;
  answer_waiting(block, &cause);
  blocks_.remove_copy(block, 0);
  collect(block);
}

// The copy that the load of `block` was to read cannot be read, and is no longer pinned: another copy takes its
// place, or the waiters are told.
TERRACE_BODY void planner::redirect_load(std::uint32_t block, const error& cause) {
  block_record& r = blocks_[block];
  const std::size_t other = load_source(block, r.tried);
  if (other == tiers()) {
    tiers_[0]->release(blocks_.where(block, 0));
    return lose_load(block, cause);
  }
  r.load_from = static_cast<std::uint8_t>(other);
  pin(block, other);
  blocks_.copy(block, 0).quality = blocks_.copy(block, other).quality;
  blocks_.mark_to_load(block, true);
}

TERRACE_BODY void planner::finish_load(transfer_job& job, const result<void>& outcome) {
  block_record& r = blocks_[job.block];
  const extent slot = blocks_.where(job.block, 0);
  tier_control& from = *tiers_[job.from];
  if (outcome) {
    from.breaker.succeeded(circuit_breaker::work::read, job.probe);
    ++from.stats.loads;
    from.stats.bytes_read += job.source.bytes;
    tiers_[0]->stats.bytes_written += slot.bytes;
    tiers_[0]->breaker.succeeded(circuit_breaker::work::write);
    blocks_.set_readable(job.block, 0, state::resident);
    if (std::exchange(r.speculative, false)) --prefetches_;
    trust(job.block, job.from);
    unpin(job.block, job.from);
    if (!blocks_.copy(job.block, 0).prefetched) leave_exclusive(job.block);
    answer_waiting(job.block, nullptr);
    settle(job.block, 0);
    collect(job.block);
    return;
  }
  if (job.write_failed) {  // a device failed to take the copy: this time the block cannot be had
    note_failure(0, circuit_breaker::work::write, outcome.error());
    if (job.probe) from.breaker.withdrawn();
    unpin(job.block, job.from);
    tiers_[0]->release(slot);
    return lose_load(job.block, outcome.error());
  }
  // Another copy may do; only if there is none is the block lost, at least this time.
  note_failure(job.from, circuit_breaker::work::read, outcome.error(), job.probe);
  read_failed(job.block, job.from, outcome.error());
  // The copy may still be there, but this load does not try it again.
  r.tried |= static_cast<std::uint8_t>(1u << job.from);
  redirect_load(job.block, outcome.error());
}

// --- The end of jobs, and jobs that do not end.

TERRACE_BODY void planner::source_read(transfer_job& job) {
  if (job.to != 0) return;
  job.working = true;
  ++working_loads_;
  pump();
}

TERRACE_BODY void planner::finished(transfer_job& job, result<void> outcome) {
  if (std::exchange(job.working, false)) --working_loads_;
  --(job.to == 0 ? loads_ : stores_);
  store_ended(job);
  if (job.overdue)
    end_quarantine(job, outcome.has_value());
  else if (job.to == 0)
    finish_load(job, outcome);
  else
    finish_store(job, outcome);
  job.next = std::exchange(free_jobs_, &job);
  pump();
}

// The job goes on by itself, with its extents and the pin on its source; the block goes on without it.
TERRACE_BODY void planner::overdue(transfer_job& job) {
  constexpr error late{errc::deadline, "a transfer has passed its deadline"};
  job.overdue = true;
  if (std::exchange(job.working, false)) --working_loads_;
  block_record& r = blocks_[job.block];
  if (job.to == 0) {
    ++overdue_loads_;
    if (job.begun) {
      ++hung_[job.from];
      note_failure(job.from, circuit_breaker::work::read, late, job.probe);
      ++tiers_[job.from]->stats.failed_reads;
      blocks_.copy(job.block, job.from).doubtful = true;
    } else if (job.probe) {
      tiers_[job.from]->breaker.withdrawn();
    }
    r.tried |= static_cast<std::uint8_t>(1u << job.from);
    const std::size_t other = load_source(job.block, r.tried);
    if (other != tiers()) pin(job.block, other);  // otherwise the claim might drop it
    const claim slot = other == tiers() ? claim{room::impossible, {}} : claim_slot(slot_bytes(r), {});
    if (slot.what != room::ready) {
      if (other != tiers()) unpin(job.block, other);
      lose_load(job.block, late);
    } else {
      r.load_from = static_cast<std::uint8_t>(other);
      blocks_.move_copy(job.block, 0, slot.where);
      blocks_.copy(job.block, 0).quality = blocks_.copy(job.block, other).quality;
      blocks_.mark_to_load(job.block, true);
    }
  } else {
    ++overdue_stores_;
    store_ended(job);
    if (job.begun) {
      ++hung_[job.to];
      note_failure(job.to, circuit_breaker::work::write, late, job.probe);
    } else if (job.probe) {
      tiers_[job.to]->breaker.withdrawn();
    }
    blocks_.remove_copy(job.block, job.to);
    if (keepers_[job.to] && r.name.valid()) keep_later(job.block);
    if (job.evict) {
      leaving_[job.from] -= job.source.bytes;
      blocks_.set_readable(job.block, job.from, state::resident);
    }
    settle(job.block, job.from);
    if (job.from != 0) settle(job.block, 0);
  }
  pump();
}

TERRACE_BODY void planner::end_quarantine(transfer_job& job, bool read) {
  if (job.to == 0 && read) trust(job.block, job.from);
  --(job.to == 0 ? overdue_loads_ : overdue_stores_);
  if (job.begun) --hung_[job.to == 0 ? job.from : job.to];
  tiers_[job.to]->release(job.target);
  unpin(job.block, job.from);
}

}  // namespace terrace
