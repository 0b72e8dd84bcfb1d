#pragma once
// Flushes: what they wait for, and when they are answered. Part of cache/planner.hpp; names and syncs are in
// cache/planner_durability.hpp.
#include <utility>

#include "terrace/cache/planner.hpp"
#include "terrace/core/config.hpp"

namespace terrace {

TERRACE_BODY void planner::flush(flush_request& r) {
  r.next = std::exchange(flushes_, &r);
  if (stopping_) return answer_flushes(std::exchange(flushes_, nullptr), closing);
  pump();
}

TERRACE_BODY void planner::cancel(flush_request& r) {
  for (flush_request** at : {&flushes_, &flush_.first, &answering_}) {
    while (*at != nullptr && *at != &r) at = &(*at)->next;
    if (*at == &r) *at = r.next;
  }
  pump();  // another round may begin
}

// Counts a block as one that flushes wait for, or no longer. It stays in the round in which it became unsaved.
TERRACE_BODY void planner::count_unsaved(std::uint32_t block, bool yes) noexcept {
  block_copy& hot = blocks_.copy(block, 0);
  if (hot.unsaved == yes) return;
  hot.unsaved = yes;
  if (yes) hot.round = round_;
  unsaved_[hot.round ? 1 : 0] += yes ? 1u : ~0u;
}

// Has flushes look at a named block again: it may have lost its copy in a tier that keeps, and the flush under way
// may have counted on that.
TERRACE_BODY void planner::keep_later(std::uint32_t block) {
  if (!of_this_flush(block)) return to_keep_.push_back(blocks_.id_of(block));
  // Before those that were named later, which the flush leaves alone.
  to_keep_.push_front(blocks_.id_of(block));
  ++flush_.names;
  flush_.synced = flush_.synced_stuck = flush_.marked = false;
}

// The flush under way goes on without this block and fails with `why` in the end; the next flush looks at it again.
TERRACE_BODY void planner::leave_out(block_id id, const error& why) {
  left_out_.push_back(id);
  if (!flush_.left_out) flush_.left_out = why;
}

TERRACE_BODY void planner::store_ended(transfer_job& job) noexcept {
  job.storing = false;
  if (std::exchange(job.awaited, false)) --flush_.stores;
}

// Begins a round, one at a time: it answers all flushes that have arrived by then.
TERRACE_BODY void planner::begin_flush() {
  if (flush_.first != nullptr || flushes_ == nullptr) return;
  for (std::size_t i = 0; i < options_.jobs(); ++i) jobs_[i].awaited = false;
  to_keep_.insert(to_keep_.end(), left_out_.begin(), left_out_.end());
  left_out_.clear();
  flush_ = {.first = std::exchange(flushes_, nullptr), .names = kept_ + to_keep_.size(), .naming = namings_};
  keep_failure_.reset();
}

// Makes the flush wait for the stores under way now: all of them, or those of named blocks to tiers that keep.
// O(jobs), once or twice a flush.
TERRACE_BODY void planner::await_stores(bool all) noexcept {
  for (std::size_t i = 0; i < options_.jobs(); ++i) {
    transfer_job& job = jobs_[i];
    if (!job.storing || job.awaited) continue;
    job.awaited = all || (keepers_[job.to] && blocks_[job.block].name.valid());
    flush_.stores += job.awaited ? 1u : 0u;
  }
}

// Whether what was sealed before the flush is saved, and what had a name then is in a tier that keeps, synced or not.
TERRACE_BODY bool planner::flush_covered() noexcept {
  // Blocks that an earlier flush could not save are still in the other round: until it is empty, this flush cannot
  // switch rounds.
  if (!flush_.turned && unsaved_[round_ ? 0 : 1] == 0) {
    round_ = !round_;
    flush_.turned = true;
  }
  if (!flush_.turned || unsaved_[round_ ? 0 : 1] != 0) return false;
  if (keep_failure_) return true;
  if (kept_ < flush_.names) return false;
  if (!std::exchange(flush_.marked, true)) await_stores(false);
  return flush_.stores == 0;
}

// Whether the blocks still to be stored can go nowhere, and the stores under way when that was first seen have all
// ended without making room.
TERRACE_BODY bool planner::flush_is_stuck() noexcept {
  if (stores_ == overdue_stores_) return true;
  if (!stuck_) return flush_.stuck = false;
  if (!std::exchange(flush_.stuck, true)) await_stores(true);
  return flush_.stores == 0;
}

TERRACE_BODY void planner::answer_flushes(flush_request* first, const std::optional<error>& failure) {
  for (flush_request* r = first; r != nullptr; r = r->next) r->failure = failure;
  flush_request** end = &answering_;
  while (*end != nullptr) end = &(*end)->next;
  *end = first;
  // A completion may drive the context, which answers others here, and end requests that have not been answered.
  while (answering_ != nullptr) {
    flush_request* const r = std::exchange(answering_, answering_->next);
    r->answered = true;
    r->done(r);
  }
}

// A flush is over when the blocks it covers are saved, and the named ones durable, or when that is impossible.
TERRACE_BODY void planner::settle_flushes() {
  if (syncs_under_way_ != 0) return;
  if (sync_wanted_) start_sync();
  if (flush_.first == nullptr || syncs_under_way_ != 0) return;
  const bool covered = flush_covered();
  if (!covered && !flush_is_stuck()) return;
  // Only one sync while it is stuck; blocks that find room while that sync is under way are not covered by it.
  bool& synced = covered ? flush_.synced : flush_.synced_stuck;
  if (!keep_failure_ && !synced && (!to_sync_.empty() || names_taken_)) {
    synced = true;
    start_sync();
    if (syncs_under_way_ != 0) return;
  }
  if (kept_ < flush_.names && !keep_failure_)
    keep_failure_ =
        error{errc::out_of_capacity, "the tiers that keep blocks have no room for all that have names"};
  std::optional<error> failure = keep_failure_;
  if (!failure && unsaved_[round_ ? 0 : 1] != 0) failure = why_unsaved();
  if (!failure) failure = flush_.left_out;  // last, so that it means: all others are durable
  answer_flushes(std::exchange(flush_.first, nullptr), failure);
  if (flushes_ != nullptr) pump();
}

// The error of a tier that is set aside, if there is one.
TERRACE_BODY error planner::why_unsaved() const noexcept {
  for (std::size_t t = 1; t < tiers(); ++t)
    if (open(t) && health(t).now != tier_health::state::working) return health(t).last;
  return {errc::out_of_capacity, "the tiers below tier 0 have no room for what is to be saved"};
}

}  // namespace terrace
