#pragma once
// How blocks are asked for: acquires and their line, leases, prefetches; and the planner's start. Part of
// cache/planner.hpp.
#include <algorithm>
#include <utility>

#include "terrace/cache/planner.hpp"
#include "terrace/core/config.hpp"

namespace terrace {

TERRACE_BODY planner::planner(context& ctx, kv_layout layout, std::span<tier_control* const> tiers,
                              transfer_port& transfers, planner_options o)
    : context_(ctx),
      layout_(std::move(layout)),
      tiers_(tiers),
      transfers_(transfers),
      options_(o),
      blocks_(tiers_.size()) {
  for (tier_control* tier : tiers_) tier->breaker = circuit_breaker(options_.health);
  const std::size_t count = options_.jobs();
  jobs_ = std::make_unique<transfer_job[]>(count);
  for (std::size_t i = 0; i < count; ++i) jobs_[i].next = std::exchange(free_jobs_, &jobs_[i]);
  choose_inclusions();
}

TERRACE_BODY planner::~planner() {
  TERRACE_ASSERT(loads_ + stores_ == 0, "a planner ended with transfers on their way");
  TERRACE_ASSERT(pins_ == 0, "a cache ended before the sequences, leases and reservations that use it");
}

TERRACE_BODY transfer_job& planner::take_job() noexcept {
  TERRACE_ASSERT(free_jobs_ != nullptr, "more transfers than jobs");
  return *std::exchange(free_jobs_, free_jobs_->next);
}

TERRACE_BODY void planner::grow() {
  if (blocks_.size() <= grown_) return;
  grown_ = std::max<std::size_t>(64, blocks_.size() * 2);
  for (tier_control* tier : tiers_) tier->grow(grown_);
}

// --- One round of everything that may have become possible.

TERRACE_BODY void planner::pump() {
  again_ = true;
  if (pumping_) return;
  pumping_ = true;
  while (std::exchange(again_, false)) {
    begin_flush();
    shrink_tiers();
    stuck_ = false;
    start_stores();
    start_keeping();
    serve_line();
    run_due_hints();
    start_loads();
  }
  pumping_ = false;
  serve_writers();  // these call back, and what they call may ask for more
  settle_flushes();
  complete_ready();
}

TERRACE_BODY void planner::complete_ready() {
  while (acquire_request* r = ready_.pop()) {
    if (stopping_ && r->record != nullptr) {  // nobody may hold anything of a cache that is ending
      abandon(*r);
      give_back(std::exchange(r->record, nullptr));
    }
    if (stopping_) r->refusal = closing;
    r->now = acquire_request::phase::ended;
    r->done(r);
  }
}

// --- Acquires.

TERRACE_BODY void planner::request(acquire_request& r) {
  r.now = acquire_request::phase::queued;
  if (stopping_)
    make_ready(r);
  else
    line_.push(r);
  pump();
}

TERRACE_BODY void planner::serve_line() {
  while (acquire_request* const first = stopping_ ? nullptr : line_.head) {
    acquire_request* const rest = first->next;  // serving may move it to the ready queue
    if (!serve(*first)) return;
    line_.head = rest;
  }
}

// The tier of the best copy that attention can read in place: the highest fidelity, then the nearest. tiers() if
// there is none.
TERRACE_BODY std::size_t planner::readable_copy(block_id id, lease_form form) const noexcept {
  const auto attention_reads = [&](const tier_control& t) {
    return form == lease_form::raw ? t.what.raw && t.what.addressable == hot_reach() : t.what.readable;
  };
  std::size_t best = tiers();
  fidelity quality;
  for (std::size_t t = 0; t < tiers(); ++t) {
    if (blocks_.find_place(id, t) == nullptr || !attention_reads(*tiers_[t])) continue;
    const fidelity own = blocks_.copy(id.index, t).quality;
    if (best != tiers() && own <= quality) continue;
    best = t;
    quality = own;
    if (own.exact()) break;  // mostly in tier 0: no need to look further
  }
  return best;
}

TERRACE_BODY bool planner::needs_slot(block_id id, lease_form form) const noexcept {
  return readable_copy(id, form) == tiers();
}

TERRACE_BODY leased_block planner::readable_now(block_id id, lease_form form) noexcept {
  const std::size_t t = readable_copy(id, form);
  if (t == tiers()) return {.id = id, .quality = {}};
  return {.id = id,
          .data = tiers_[t]->address(blocks_.where(id.index, t)),
          .format_id = tiers_[t]->what.codec.format_id,
          .quality = blocks_.copy(id.index, t).quality,
          .tier = static_cast<std::uint8_t>(t)};
}

// Gives the first request in line all that it needs, or nothing. False: it has to wait for a transfer.
TERRACE_BODY bool planner::serve(acquire_request& r) {
  if (r.record == nullptr) r.record = take_record(r.wanted.size());
  std::size_t i = 0;
  for (lease_entry& e : r.record->entries) {
    e = {};
    e.id = r.wanted[i++];
    e.request = &r;
    const block_record* found = blocks_.find(e.id);
    if (found == nullptr || found->now != block_record::phase::sealed) {
      e.now = lease_entry::state::lost;
      e.cause = error{errc::lost, "this block is gone, or was never sealed"};
      continue;
    }
    if (found->refs == 0 &&
        found->cached != index_link::none) {  // nothing keeps it from being let go meanwhile
      e.now = lease_entry::state::lost;
      e.cause = error{errc::lost, "a cached block is read through a sequence that has adopted it"};
      continue;
    }
    const std::size_t readable = readable_copy(e.id, r.form);
    if (readable != tiers()) {
      pin(e.id.index, readable);
      e.now = lease_entry::state::pinned;
      e.tier = static_cast<std::uint8_t>(readable);
      e.quality = blocks_.copy(e.id.index, readable).quality;
      e.format_id = tiers_[readable]->what.codec.format_id;
      e.data = tiers_[readable]->address(blocks_.where(e.id.index, readable));
    } else if (blocks_.copy(e.id.index, 0).now() == state::filling) {
      pin(e.id.index, 0);
      e.now = lease_entry::state::waiting;
    } else if (blocks_.best_copy(e.id.index, 1) == tiers()) {
      e.now = lease_entry::state::lost;
      e.cause = error{errc::lost, "no tier has this block any more"};
    } else if (load_source(e.id.index) == tiers()) {
      e.now = lease_entry::state::lost;
      e.cause = no_answer;
    }
  }

  slots_.clear();
  for (const lease_entry& e : r.record->entries) {
    if (e.now != lease_entry::state::asked) continue;
    const claim slot = claim_slot(slot_bytes(blocks_[e.id.index]), {.ahead = r.wanted.size()});
    if (slot.what == room::ready) {
      slots_.push_back(slot.where);
      continue;
    }
    for (const extent& taken : slots_) tiers_[0]->release(taken);
    for (const lease_entry& other : r.record->entries) {
      if (other.now == lease_entry::state::pinned) unpin(other.id.index, other.tier);
      if (other.now == lease_entry::state::waiting) unpin(other.id.index, 0);
    }
    r.record->entries.assign(r.wanted.size(), {});
    if (slot.what == room::pending) return false;
    give_back(std::exchange(r.record, nullptr));
    r.refusal = error{errc::out_of_capacity,
                      "every slot of tier 0 is pinned, and no transfer on its way will free one"};
    make_ready(r);
    return true;
  }

  r.now = acquire_request::phase::loading;
  for (lease_entry& e : r.record->entries) {
    if (e.now == lease_entry::state::pinned) {
      count_demand(e.id.index, e.tier);
      continue;
    }
    if (e.now == lease_entry::state::lost) {
      ++r.lost;
      continue;
    }
    block_record& b = blocks_[e.id.index];
    if (e.now == lease_entry::state::asked) {
      if (!blocks_.copy(e.id.index, 0).present()) {
        begin_load(e.id.index, slots_.back(), false);
        tiers_[b.load_from]->touch(e.id.index, {.step = step_});  // its tier has been of use
      } else
        tiers_[0]->release(slots_.back());  // asked for twice in this acquire
      slots_.pop_back();
      pin(e.id.index, 0);
      e.now = lease_entry::state::waiting;
    }
    ++misses_;
    if (blocks_.copy(e.id.index, 0).take_prefetched()) {
      ++prefetch_.used;
      ++prefetch_.late;
    }
    e.next = std::exchange(b.waiting, &e);
    ++r.waiting;
  }
  if (r.waiting == 0) make_ready(r);
  return true;
}

TERRACE_BODY void planner::count_demand(std::uint32_t block, std::size_t tier) {
  if (blocks_.copy(block, tier).take_prefetched()) {
    ++prefetch_.used;
    leave_exclusive(block);
  } else {
    ++tiers_[tier]->stats.hits;
  }
  tiers_[tier]->touch(block, {.step = step_});
}

// The load of `block` has ended: successfully if `cause` is nullptr, otherwise with that error.
TERRACE_BODY void planner::answer_waiting(std::uint32_t block, const error* cause) {
  lease_entry* e = std::exchange(blocks_[block].waiting, nullptr);
  while (e != nullptr) {
    lease_entry* const next = std::exchange(e->next, nullptr);
    if (cause == nullptr) {
      e->now = lease_entry::state::pinned;
      e->tier = 0;
      e->quality = blocks_.copy(block, 0).quality;
      e->data = tiers_[0]->address(blocks_.where(block, 0));
    } else {
      e->now = lease_entry::state::lost;
      e->cause = *cause;
      ++e->request->lost;
      unpin(block, 0);
    }
    if (--e->request->waiting == 0) make_ready(*e->request);
    e = next;
  }
}

TERRACE_BODY void planner::make_ready(acquire_request& r) {
  r.now = acquire_request::phase::ready;
  ready_.push(r);
}

TERRACE_BODY void planner::cancel(acquire_request& r) {
  using phase = acquire_request::phase;
  if (r.now == phase::queued) line_.erase(r);
  if (r.now == phase::ready) ready_.erase(r);
  if (r.record != nullptr && (r.now == phase::loading || r.now == phase::ready)) abandon(r);
  if (r.record != nullptr) give_back(std::exchange(r.record, nullptr));
  r.now = phase::ended;
  pump();
}

TERRACE_BODY void planner::abandon(acquire_request& r) {
  for (lease_entry& e : r.record->entries) {
    if (e.now == lease_entry::state::pinned) unpin(e.id.index, e.tier);
    if (e.now != lease_entry::state::waiting) continue;
    block_record& b = blocks_[e.id.index];
    lease_entry** link = &b.waiting;
    while (*link != &e) link = &(*link)->next;
    *link = e.next;
    unpin(e.id.index, 0);
    if (b.loading && b.waiting == nullptr && !b.speculative) drop_queued_load(e.id.index);
  }
}

TERRACE_BODY void planner::release(lease_record* record) {
  for (const lease_entry& e : record->entries)
    if (e.now == lease_entry::state::pinned) unpin(e.id.index, e.tier);
  give_back(record);
  pump();
}

TERRACE_BODY void planner::release(lease_record* record, std::uint8_t tier) {
  for (lease_entry& e : record->entries) {
    if (e.now != lease_entry::state::pinned || e.tier != tier) continue;
    unpin(e.id.index, tier);
    e.now = lease_entry::state::asked;
    e.data = nullptr;
  }
  pump();
}

TERRACE_BODY void lease::release_tier(std::uint8_t tier) noexcept {
  if (record_ != nullptr) record_->owner->release(record_, tier);
}

TERRACE_BODY void lease::release() noexcept {
  if (lease_record* record = std::exchange(record_, nullptr)) record->owner->release(record);
}

// Every record is made as long as the longest, because they are handed out in any order: otherwise a short one might
// have to grow in the middle of a decode.
TERRACE_BODY lease_record* planner::take_record(std::size_t entries) {
  if (entries > longest_record_) {
    longest_record_ = std::max(entries, 2 * longest_record_);
    for (lease_record* r = free_records_; r != nullptr; r = r->next) r->entries.reserve(longest_record_);
  }
  if (free_records_ == nullptr) {
    free_records_ = &records_.emplace_front();
    free_records_->owner = this;
  }
  lease_record* record = std::exchange(free_records_, free_records_->next);
  record->entries.reserve(longest_record_);
  record->entries.assign(entries, {});
  return record;
}

TERRACE_BODY void planner::give_back(lease_record* record) noexcept {
  record->entries.clear();
  record->next = std::exchange(free_records_, record);
}

TERRACE_BODY planner::prefetch_outcome planner::begin_prefetch(block_id id, lease_form form) {
  const block_record* b = blocks_.find(id);
  if (b == nullptr || b->now != block_record::phase::sealed || blocks_.copy(id.index, 0).present() ||
      b->refs == 0)
    return prefetch_outcome::needless;
  if (readable_copy(id, form) != tiers()) return prefetch_outcome::needless;
  if (load_source(id.index) == tiers()) return prefetch_outcome::no_source;
  if (stopping_ || prefetches_ == options_.prefetches_in_flight) return prefetch_outcome::no_room;
  const claim slot = claim_slot(slot_bytes(*b), {.speculative = true});
  if (slot.what != room::ready) return prefetch_outcome::no_room;
  begin_load(id.index, slot.where, true);
  return prefetch_outcome::begun;
}

TERRACE_BODY std::size_t planner::prefetch(std::span<const block_id> wanted, lease_form form) {
  std::size_t begun = 0;
  for (const block_id id : wanted) {
    const prefetch_outcome outcome = begin_prefetch(id, form);
    if (outcome == prefetch_outcome::no_room) break;
    begun += outcome == prefetch_outcome::begun ? 1 : 0;
  }
  if (begun != 0) pump();
  return begun;
}

}  // namespace terrace
