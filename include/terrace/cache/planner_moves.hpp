#pragma once
// How blocks leave a tier: slots and room, write-behind and demotion. Part of cache/planner.hpp.
#include <algorithm>
#include <utility>

#include "terrace/cache/planner.hpp"
#include "terrace/core/config.hpp"

namespace terrace {

// --- Copies: pinned, in the policy's charge, dropped.

TERRACE_BODY void planner::pin(std::uint32_t block, std::size_t tier) {
  discharge(block, tier);
  ++blocks_.copy(block, tier).pins;
  ++pins_;
}

TERRACE_BODY void planner::unpin(std::uint32_t block, std::size_t tier) {
  block_copy& copy = blocks_.copy(block, tier);
  TERRACE_ASSERT(copy.pins > 0, "a block was unpinned more often than pinned");
  --pins_;
  if (--copy.pins != 0) return;
  settle(block, tier);
  if (tier != 0 && copy.doubtful && blocks_.copy(block, 0).present())
    settle(block, 0);  // it may be replaced now
  collect(block);
}

// Takes a copy out of its policy's charge.
TERRACE_BODY void planner::discharge(std::uint32_t block, std::size_t tier) {
  block_copy& copy = blocks_.copy(block, tier);
  if (!copy.in_policy) return;
  copy.in_policy = false;
  tiers_[tier]->remove(block);
}

// Puts a copy into its policy's charge or takes it out, according to its state; and queues a block that only tier 0
// has for write-behind. Called whenever anything that it looks at has changed.
TERRACE_BODY void planner::settle(std::uint32_t block, std::size_t tier) {
  block_record& r = blocks_[block];
  block_copy& copy = blocks_.copy(block, tier);
  const bool at_rest = r.now == block_record::phase::sealed && copy.now() == state::resident;
  bool chargeable = at_rest && copy.pins == 0;
  if (tier != 0 && tier == last_open_) {
    chargeable = chargeable && r.refs == 0;
  } else if (tier == 0) {
    const bool saved = blocks_.saved_below(block, 0);
    count_unsaved(block, r.now == block_record::phase::sealed && copy.readable() && r.wanted() && !saved);
    chargeable = chargeable && (saved || !write_behind_ || r.refs == 0);
    bool on_its_way = false;
    for (std::size_t t = 1; t < tiers(); ++t) {  // a doubtful copy that is being read makes way afterwards
      const block_copy& below = blocks_.copy(block, t);
      on_its_way = on_its_way || below.now() == state::filling || (below.doubtful && below.pins != 0);
    }
    blocks_.mark_unsaved(block, at_rest && r.wanted() && !saved && !on_its_way);
  }
  chargeable = chargeable && may_leave_keeper(block, tier) && !(copy.held && r.refs != 0);
  if (!chargeable) return discharge(block, tier);
  if (copy.in_policy) return;
  copy.in_policy = true;
  const block_info info{.key = r.key,
                        .parent = r.parent,
                        .depth = r.depth,
                        .row = r.row,
                        .turn = r.turn,
                        .bytes = blocks_.where(block, tier).bytes,
                        .recompute_cost = static_cast<float>(r.depth + 1),
                        .reload_cost = static_cast<float>(blocks_.best_copy(block, tier + 1)),
                        .mass = r.mass,
                        .why = copy.known        ? block_info::admission::returned
                               : copy.prefetched ? block_info::admission::ahead
                                                 : block_info::admission::first};
  copy.known = true;
  tiers_[tier]->admit(block, info, r.rank);
}

// `evicted`: its room was needed, and it may be asked for again.
TERRACE_BODY void planner::drop_copy(std::uint32_t block, std::size_t tier, departure why) {
  const block_copy& copy = blocks_.copy(block, tier);
  TERRACE_ASSERT(copy.pins == 0, "a pinned copy was dropped");
  if (copy.in_policy) {
    if (why == departure::evicted)
      tiers_[tier]->evict(block);
    else
      tiers_[tier]->remove(block);
  }
  if (copy.prefetched) ++prefetch_.wasted;
  if (tier == 0) {
    blocks_.mark_unsaved(block, false);
    count_unsaved(block, false);
  }
  tiers_[tier]->release(blocks_.where(block, tier));
  blocks_.remove_copy(block, tier);
  if (keepers_[tier] && blocks_[block].name.valid()) {
    bool durable = false;
    for (std::size_t t = 1; t < tiers(); ++t)
      durable = durable || (blocks_.copy(block, t).durable && !blocks_.copy(block, t).doubtful);
    if (!durable) keep_later(block);
    for (std::size_t t = 1; t < tiers(); ++t)  // copies that could not leave because of it may leave now
      if (keepers_[t] && blocks_.copy(block, t).present()) settle(block, t);
  }
  if (tier != 0) settle(block, 0);
}

// Lets go of a block that nobody refers to, except for copies that are still being read or written.
TERRACE_BODY void planner::collect(std::uint32_t block) {
  block_record& r = blocks_[block];
  if (r.refs != 0 || r.now == block_record::phase::free) return;
  if (r.loading && r.waiting == nullptr) return drop_queued_load(block);  // which comes back here
  if (r.cached != index_link::none) {
    for (std::size_t t = 0; t < tiers(); ++t)
      if (blocks_.copy(block, t).present()) return;
    expire(block);  // it is nowhere any more
  }
  bool gone = true;
  for (std::size_t t = 0; t < tiers(); ++t) {
    const block_copy& copy = blocks_.copy(block, t);
    if (!copy.present()) continue;
    if (copy.pins == 0 && copy.readable())
      drop_copy(block, t);
    else
      gone = false;
  }
  if (!gone) return;
  rank(block, standing::ordinary);
  blocks_.recycle(block);
}

// --- Room.

// A slot in tier 0.
TERRACE_BODY planner::claim planner::claim_slot(std::size_t bytes, need n) {
  claim found = claim_room(0, bytes, n);
  if (found.what == room::ready) note_hot_bytes();
  if (found.what == room::impossible && something_may_leave()) found.what = room::pending;
  return found;
}

// Room in a tier: free room, or what its victims leave behind.
TERRACE_BODY planner::claim planner::claim_room(std::size_t tier, std::size_t bytes, need n) {
  tier_control& t = *tiers_[tier];
  for (;;) {
    if (!n.fresh || t.used() + bytes + headroom(tier, bytes) <= t.capacity())
      if (const auto found = t.reserve(bytes, n.behind)) return {room::ready, *found};
    pressed_ = pressed_ || tier == 0;
    if (leaving_[tier] >= bytes * std::clamp<std::size_t>(n.ahead, 1, options_.stores_in_flight))
      return {room::pending, {}};
    const room made = vacate(tier, n);
    if (made != room::ready) return {leaving_[tier] != 0 ? room::pending : made, {}};
  }
}

// Takes a tier's victim out of it: lets it go if that loses nothing, otherwise begins to move it down.
TERRACE_BODY planner::room planner::vacate(std::size_t tier, need n) {
  const std::uint32_t victim = tiers_[tier]->victim();
  if (victim == index_link::none) return sync_may_help() ? room::pending : room::impossible;
  block_record& r = blocks_[victim];
  const block_copy& copy = blocks_.copy(victim, tier);
  if (n.speculative && copy.prefetched) return room::impossible;
  if (copy.doubtful && drop_doubtful_victim(victim, tier)) return room::ready;
  if (r.wanted() && (!blocks_.saved_below(victim, tier) || guarded(victim, tier))) {
    const room moved = start_store(victim, tier, true, n);
    if (moved != room::impossible) return moved;
    if (copy.doubtful) {  // meanwhile another block may go
      hold(victim, tier);
      return room::ready;
    }
    if (r.refs != 0) return vacate_idle(tier);
  }
  let_go(victim, tier);
  return room::ready;
}

// The room that new tokens leave free in the last tier when tiers are exclusive: a block can come up from it only if
// the one that goes down finds room.
TERRACE_BODY std::size_t planner::headroom(std::size_t tier, std::size_t bytes) const noexcept {
  return write_behind_ || tier != last_open_ || tier == 0 ? 0
                                                          : std::min(tiers_[tier]->capacity() / 8, 8 * bytes);
}

// --- Down: write-behind and demotion.

// Stores a block in the next tier that can take it, skipping full tiers that nothing may leave. `kept`: only in a
// tier that keeps.
TERRACE_BODY planner::room planner::start_store(std::uint32_t block, std::size_t from, bool evict, need n,
                                                bool kept) {
  kept = kept || (evict && guarded(block, from));
  room found = room::impossible;
  for (std::size_t to = from; found == room::impossible;) {
    to = kept ? next_keeper(to) : next_tier(to);
    if (to == tiers()) break;
    found = start_store_to(block, from, to, evict, n);
  }
  return found;
}

// Where the block that is read before this one is, in `tier`.
TERRACE_BODY std::optional<extent> planner::read_before(std::uint32_t block,
                                                        std::size_t tier) const noexcept {
  const std::uint32_t before = blocks_[block].parent;
  if (before >= blocks_.size() || !blocks_.copy(before, tier).present()) return std::nullopt;
  return blocks_.where(before, tier);
}

TERRACE_BODY planner::room planner::start_store_to(std::uint32_t block, std::size_t from, std::size_t to,
                                                   bool evict, need n) {
  if (stopping_) return room::impossible;
  if (stores_full()) return overdue_stores_ == stores_ ? room::impossible : room::pending;
  const layer_group& group = group_of(blocks_[block]);
  if (const block_copy& there = blocks_.copy(block, to); there.doubtful) {
    // It makes way for a copy that can be read.
    if (blocks_.copy(block, from).doubtful || there.pins != 0 || there.now() != state::resident)
      return room::impossible;
    give_up_copy(block, to);
  } else if (there.present()) {  // a flush writes it there, or has done so
    if (there.now() == state::resident) sync_wanted_ = true;
    settle(block, from);
    return room::pending;
  }
  n.behind = read_before(block, to);
  const claim found = claim_room(to, tiers_[to]->what.codec.max_encoded_size(group), n);
  if (found.what != room::ready) return found.what;
  if (stores_full()) {  // the demotions that made room took the last job
    tiers_[to]->release(found.where);
    return room::pending;
  }
  const block_copy& source = blocks_.copy(block, from);
  const extent source_extent = blocks_.where(block, from);
  pin(block, from);
  if (evict) {
    blocks_.set_readable(block, from, state::leaving);
    leaving_[from] += source_extent.bytes;
  }
  blocks_.add_copy(block, to, found.where, source.quality.through(tiers_[to]->what.codec.loss));
  if (from == 0) blocks_.mark_unsaved(block, false);
  transfer_job& job = take_job();
  job = {.block = block,
         .from = static_cast<std::uint8_t>(from),
         .to = static_cast<std::uint8_t>(to),
         .group = &group,
         .source = source_extent,
         .target = found.where,
         .source_checksum = source.checksum,
         .evict = evict,
         .probe = note_begin(to, circuit_breaker::work::write),
         .storing = true};
  ++stores_;
  transfers_.start(job);
  return room::ready;
}

TERRACE_BODY void planner::start_stores() {
  if (!write_behind_ && flush_.first == nullptr) return make_room_ahead();
  while (blocks_.any_unsaved()) {
    const std::uint32_t block = blocks_.first_unsaved();
    const room found = start_store(block, 0, false, {.ahead = blocks_.unsaved()});
    if (found == room::impossible && blocks_[block].refs == 0) {
      blocks_.mark_unsaved(block, false);  // it leaves tier 0 when it must
      count_unsaved(block, false);
    } else if (found != room::ready) {
      stuck_ = stuck_ || found == room::impossible;
      return;
    }
  }
}

// Above an exclusive tier, once tier 0 has been full: a few blocks leave tier 0 before their slots are asked for, so
// that whoever asks need not wait for a transfer.
TERRACE_BODY void planner::make_room_ahead() {
  tier_control& hot = *tiers_[0];
  const std::size_t spare = hot.capacity() / 8;
  while (pressed_ && hot.capacity() + leaving_[0] < hot.used() + spare) {
    const std::uint32_t victim = hot.victim();
    if (victim == index_link::none || blocks_.saved_below(victim, 0)) return;
    if (start_store(victim, 0, true, {.fresh = true}) != room::ready) return;
  }
}

TERRACE_BODY bool planner::shrink_target(transfer_job& job, std::size_t bytes) {
  if (job.overdue) return true;
  tier_control& tier = *tiers_[job.to];
  tier.release(job.target);
  // Nothing came between, and what was released is large enough, so this fails only if the tier has been made
  // smaller.
  const auto smaller = tier.reserve(bytes, read_before(job.block, job.to));
  job.target = smaller.value_or(extent{});
  blocks_.move_copy(job.block, job.to, job.target);
  return smaller.has_value();
}

TERRACE_BODY void planner::finish_store(transfer_job& job, const result<void>& outcome) {
  const block_copy& source = blocks_.copy(job.block, job.from);
  const bool named = blocks_[job.block].name.valid();
  const bool to_be_kept = keepers_[job.to] && named;
  tier_control& to = *tiers_[job.to];
  // Only its source can be at fault, if that had to be read and the target was not yet being written.
  const bool unreadable = !outcome && !job.write_failed && !tiers_[job.from]->address(job.source) &&
                          outcome.error().code != errc::stopped;
  if (outcome) {
    to.breaker.succeeded(circuit_breaker::work::write, job.probe);
    blocks_.set_readable(job.block, job.to, state::resident);
    blocks_.copy(job.block, job.to).checksum = job.target_checksum;
    if (to_be_kept) to_sync_.push_back(blocks_.id_of(job.block));
    trust(job.block, job.from);
    ++to.stats.stores;
    to.stats.bytes_written += job.target.bytes;
    tiers_[job.from]->stats.bytes_read += job.source.bytes;
  } else {
    if (!unreadable)
      note_failure(job.to, circuit_breaker::work::write, outcome.error(), job.probe);
    else if (job.probe)
      to.breaker.withdrawn();
    if (job.target.bytes != 0) to.release(job.target);
    blocks_.remove_copy(job.block, job.to);
    if (to_be_kept && unreadable && of_this_flush(job.block))
      leave_out(blocks_.id_of(job.block), outcome.error());
    else if (to_be_kept)
      keep_later(job.block);
  }
  if (job.evict) {
    leaving_[job.from] -= job.source.bytes;
    blocks_.set_readable(job.block, job.from, state::resident);
  }
  settle(job.block, job.to);
  if (unreadable) {
    note_failure(job.from, circuit_breaker::work::read, outcome.error());
    if (job.evict && outcome.error().code != errc::corrupt) hold(job.block, job.from);
    read_failed(job.block, job.from, outcome.error());
  } else {
    unpin(job.block, job.from);
  }
  if (blocks_.copy(job.block, 0).present())
    settle(job.block, 0);  // even if a lease pins it: whether it is saved may have changed
  if (job.evict && outcome && source.now() == state::resident && source.pins == 0) {
    if (guarded(job.block, job.from))
      sync_wanted_ = true;  // it goes once the copy that replaces it is durable
    else
      drop_copy(job.block, job.from, departure::evicted);
  }
  collect(job.block);
}

}  // namespace terrace
