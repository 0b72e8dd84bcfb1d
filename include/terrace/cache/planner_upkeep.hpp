#pragma once
// What the engine says and asks besides reading and writing: hints, the clock, sizes, accounts; and the cache's end.
// Part of cache/planner.hpp.
#include <algorithm>
#include <utility>

#include "terrace/cache/planner.hpp"
#include "terrace/core/config.hpp"

namespace terrace {

// --- Hints.

// Changes a block's standing, also in the tiers that have charge of it.
TERRACE_BODY void planner::rank(std::uint32_t block, standing s) {
  block_record& r = blocks_[block];
  if (r.rank == s) return;
  if (r.rank == standing::kept) kept_bytes_ -= slot_bytes(r);
  if (s == standing::kept) kept_bytes_ += slot_bytes(r);
  for (std::size_t t = 0; t < tiers(); ++t) discharge(block, t);
  r.rank = s;
  for (std::size_t t = 0; t < tiers(); ++t)
    if (blocks_.copy(block, t).present()) settle(block, t);
}

TERRACE_BODY hint_outcome planner::hint_blocks(std::span<const block_id> blocks, const hint& h,
                                               bool partial) {
  const bool timed = h.what == hint::kind::prefetchable || h.what == hint::kind::ttl;
  const auto reject = [this](const char* why) {
    ++hints_.rejected;
    return hint_outcome{hint_outcome::verdict::rejected, 0, why};
  };
  if (timed && h.at_step <= step_) return reject("the step of this hint has begun already");
  // Each waits in memory for its step: an engine that hints faster than it steps must not fill the memory.
  if (timed && timed_.size() + blocks.size() > 8 * blocks_.alive() + 64)
    return reject("too many hints wait for their steps");

  standing s = standing::ordinary;
  if (h.what == hint::kind::hot || (h.what == hint::kind::priority && h.level > 0)) s = standing::kept;
  if (h.what == hint::kind::evictable || (h.what == hint::kind::priority && h.level < 0))
    s = standing::evictable;

  hint_outcome out;
  for (const block_id id : blocks) {
    block_record* const r = blocks_.find(id);
    if (r == nullptr || r->now != block_record::phase::sealed) {
      out.reason = "only sealed blocks can be hinted at";
    } else if (timed) {
      const bool fetch = h.what == hint::kind::prefetchable;
      timed_.push_back({fetch ? h.at_step - 1 : h.at_step, id, h.what});
      std::push_heap(timed_.begin(), timed_.end());
      if (!fetch) {
        r->matters_until = h.at_step;
        if (r->rank == standing::evictable) rank(id.index, standing::ordinary);
      }
      ++out.blocks;
    } else if (s == standing::kept && r->rank != s && kept_bytes_ + slot_bytes(*r) > hot_capacity() / 2) {
      out.reason = "hot blocks may take at most half of tier 0";
    } else {
      rank(id.index, s);
      r->matters_until = 0;
      ++out.blocks;
    }
  }
  if (out.blocks == 0) return reject(blocks.empty() ? "the range holds no sealed block" : out.reason);
  if (out.blocks != blocks.size() || partial) out.what = hint_outcome::verdict::clipped;
  if (out.blocks == blocks.size() && partial)
    out.reason = "the ends of the range lie within blocks, or in blocks that are not sealed";
  ++(out.what == hint_outcome::verdict::clipped ? hints_.clipped : hints_.accepted);
  pump();
  return out;
}

// Runs the hints whose step has come. A prefetch that finds no room is tried again until the step that it is for.
TERRACE_BODY void planner::run_due_hints() {
  while (!timed_.empty() && timed_.front().at_step <= step_) {
    const timed_hint due = timed_.front();
    if (block_record* const r = blocks_.find(due.id); r != nullptr) {
      if (due.what == hint::kind::ttl) {
        if (r->matters_until == due.at_step) {  // else a later hint has replaced this one
          r->matters_until = 0;
          rank(due.id.index, standing::evictable);
        }
      } else if (due.at_step < step_ && needs_slot(due.id, lease_form::raw) &&
                 !blocks_.copy(due.id.index, 0).present()) {
        ++hints_.expired;
      } else {
        const prefetch_outcome outcome = begin_prefetch(due.id, lease_form::raw);
        if (outcome == prefetch_outcome::no_room) return;
        if (outcome == prefetch_outcome::no_source) ++hints_.expired;
      }
    }
    std::pop_heap(timed_.begin(), timed_.end());
    timed_.pop_back();
  }
}

TERRACE_BODY void planner::weigh(std::uint32_t block, float mass) {
  blocks_[block].mass = mass;
  for (std::size_t t = 0; t < tiers(); ++t)
    if (tiers_[t]->what.weighs && blocks_.copy(block, t).readable())
      tiers_[t]->weigh(block, {.step = step_, .mass = mass});
}

TERRACE_BODY void planner::advance_step(std::uint64_t step) {
  if (step <= step_ && step_ != 0) return;
  step_ = step;
  for (tier_control* tier : tiers_) tier->advance_step(step);
  pump();
}

// --- Sizes.

// Decides which tiers also hold what tier 0 holds: as the options say, or by their sizes when the cache is opened.
TERRACE_BODY void planner::choose_inclusions() {
  bool next = true;  // t is the first open tier below tier 0
  for (std::size_t t = 1; t < tiers(); ++t) {
    if (tiers_[t]->capacity() == 0) continue;
    keepers_[t] = tiers_[t]->keeps();
    const bool of_a_size = next && tiers_[t]->capacity() / 2 < tiers_[0]->capacity();
    exclusive_[t] = options_.inclusions[t] == inclusion::exclusive ||
                    (options_.inclusions[t] == inclusion::automatic && of_a_size);
    if (next) write_behind_ = !exclusive_[t];
    last_open_ = t;
    next = false;
  }
}

TERRACE_BODY result<void> planner::resize(std::size_t tier, std::size_t bytes) {
  if (tier >= tiers()) return fail(errc::invalid_argument, "there is no such tier to be resized");
  std::size_t own = bytes;
  if (tier == 0) {
    const std::size_t staging = transfers_.staging_bytes();
    if (bytes < staging || bytes - staging < layout_.largest_block())
      return fail(errc::invalid_argument, "tier 0 must hold one block and the staging buffers of its codecs");
    own -= staging;
  }
  if (auto resized = tiers_[tier]->resize(own); !resized) return resized;
  pump();
  return {};
}

// A tier that was made smaller lets its victims go until what is left fits.
TERRACE_BODY void planner::shrink_tiers() {
  for (std::size_t t = 0; t < tiers(); ++t)
    while (tiers_[t]->used() > tiers_[t]->capacity() + leaving_[t])
      if (vacate(t, {}) != room::ready) break;
}

// --- Accounts, end.

TERRACE_BODY cache_stats planner::stats() const {
  cache_stats all;
  for (const tier_control* tier : tiers_) {
    all.tiers.push_back(tier->stats);
    all.tiers.back().medium = tier->what.medium;
    all.tiers.back().codec = tier->what.codec.name;
    all.tiers.back().capacity_bytes = tier->capacity();
    all.tiers.back().resident_bytes = tier->used();
  }
  all.prefetch = prefetch_;
  all.hints = hints_;
  all.misses = misses_;
  all.dropped = dropped_;
  all.blocks = blocks_.alive();
  all.pins = pins_;
  all.staging_bytes = transfers_.staging_in_use();
  all.hot_bytes_peak = hot_peak_;
  all.step = step_;
  return all;
}

// Answers those who wait for what will no longer begin. An acquire that also waits for transfers under way is
// answered when these have ended.
TERRACE_BODY void planner::drop_pending() {
  while (acquire_request* const r = line_.pop()) make_ready(*r);
  while (room_request* const r = writers_.pop()) {
    r->failure = closing;
    r->done(r);
  }
  while (blocks_.any_to_load()) {
    const std::uint32_t block = blocks_.first_to_load();
    if (blocks_[block].waiting == nullptr) {
      drop_queued_load(block);
      continue;
    }
    blocks_.mark_to_load(block, false);
    unpin(block, blocks_[block].load_from);
    tiers_[0]->release(blocks_.where(block, 0));
    lose_load(block, closing);
  }
  answer_flushes(std::exchange(flush_.first, nullptr), closing);
  answer_flushes(std::exchange(flushes_, nullptr), closing);
  complete_ready();
}

TERRACE_BODY void planner::shut_down() {
  stopping_ = true;
  for (;;) {
    // A load that fails queues up again for another copy, which can happen until the last transfer has ended.
    drop_pending();
    const bool syncs =
        std::any_of(syncs_.begin(), syncs_.end(), [](const keeper_sync& s) { return s.under_way; });
    if (loads_ + stores_ == 0 && !syncs) return;
    context_.wait(context_.now() + std::chrono::seconds(1));
  }
}

}  // namespace terrace
