#pragma once
// Blocks that have names, and how they outlive the process: which tiers keep them, syncs, and what is found at
// opening. Part of cache/planner.hpp.
#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "terrace/cache/planner.hpp"
#include "terrace/core/config.hpp"
#include "terrace/medium/disk_format.hpp"

namespace terrace {

// --- Names.

TERRACE_BODY result<void> planner::name(block_id id, block_key key) {
  block_record* const r = blocks_.find(id);
  if (r == nullptr || r->now != block_record::phase::sealed)
    return fail(errc::invalid_argument, "only sealed blocks can have names");
  if (!key.valid()) return fail(errc::invalid_argument, "a key of zeros is no name");
  if (r->name == key) return {};
  if (r->name.valid()) return fail(errc::invalid_argument, "this block has another name");
  if (names_.count(key) != 0) return fail(errc::invalid_argument, "another block has this name");
  if (namings_ == extent_header::last_number)  // the readers of a store would take no larger one
    return fail(errc::unavailable, "a header in a store, a forged one, has used up the numbers of names");
  names_.emplace(key, id.index);
  r->name = key;
  r->naming = ++namings_;
  ++r->refs;
  if (std::find(keepers_.begin(), keepers_.end(), true) != keepers_.end()) to_keep_.push_back(id);
  for (std::size_t t = 0; t < tiers(); ++t) {
    const block_copy& copy = blocks_.copy(id.index, t);
    if (!copy.present()) continue;
    if (keepers_[t] && copy.readable()) to_sync_.push_back(id);
    settle(id.index, t);
  }
  return {};
}

TERRACE_BODY std::optional<block_id> planner::find(block_key key) const noexcept {
  const auto found = names_.find(key);
  if (found == names_.end()) return std::nullopt;
  return id_of(found->second);
}

TERRACE_BODY void planner::forget(block_key key) {
  const auto found = names_.find(key);
  if (found == names_.end()) return;
  const std::uint32_t block = found->second;
  names_.erase(found);
  blocks_[block].name = {};
  for (std::size_t t = 0; t < tiers(); ++t) {
    block_copy& copy = blocks_.copy(block, t);
    copy.durable = copy.labelled = false;
    names_taken_ = names_taken_ || keepers_[t];
    if (!copy.present()) continue;
    if (keepers_[t]) tiers_[t]->unlabel(blocks_.where(block, t));  // the block itself may be needed still
    settle(block, t);
  }
  drop_ref(block);
}

// --- Which copies may go.

// Whether this copy may be all that would be left of a named block after a crash: it must not go before another copy
// is durable.
TERRACE_BODY bool planner::guarded(std::uint32_t block, std::size_t tier) const noexcept {
  if (!blocks_[block].name.valid() || !keepers_[tier]) return false;
  for (std::size_t t = 0; t < tiers(); ++t)
    if (t != tier && blocks_.copy(block, t).durable && !blocks_.copy(block, t).doubtful) return false;
  return true;
}

// A guarded copy may leave for a farther tier that keeps, unless the block is already there and awaits the sync.
TERRACE_BODY bool planner::may_leave_keeper(std::uint32_t block, std::size_t tier) const noexcept {
  if (!guarded(block, tier)) return true;
  bool somewhere = false;
  for (std::size_t t = tier + 1; t < tiers(); ++t) {
    if (keepers_[t] && blocks_.copy(block, t).present() && !blocks_.copy(block, t).doubtful) return false;
    somewhere = somewhere || keepers_[t];
  }
  return somewhere;
}

TERRACE_BODY std::size_t planner::next_keeper(std::size_t from) const noexcept {
  std::size_t t = from + 1;
  while (t < tiers() && (!keepers_[t] || !takes_blocks(t))) ++t;
  return t;
}

// --- Flush: first every named block gets a copy in a tier that keeps; then those tiers are synced.

TERRACE_BODY void planner::start_keeping() {
  if (flush_.first == nullptr || keep_failure_) return;
  for (; kept_ < flush_.names && !to_keep_.empty(); to_keep_.pop_front(), ++kept_) {
    const block_id id = to_keep_.front();
    const block_record* const r = blocks_.find(id);
    if (r == nullptr || !r->name.valid()) continue;
    bool kept = false;
    for (std::size_t t = 0; t < tiers(); ++t) {
      const block_copy& copy = blocks_.copy(id.index, t);
      if (copy.doubtful && blocks_.sound_besides(id.index, t)) continue;  // there is a better copy to keep
      kept = kept || copy.durable || (keepers_[t] && copy.present() && !tiers_[t]->breaker.sync_failed());
    }
    if (kept) continue;
    const std::size_t from = blocks_.best_copy(id.index);
    if (from == tiers()) {
      leave_out(id, {errc::lost, "a block that has a name is lost"});
      continue;
    }
    const room found = start_store(id.index, from, false, {.ahead = to_keep_.size()}, true);
    if (found == room::ready) continue;
    stuck_ = stuck_ || found == room::impossible;
    return;
  }
}

TERRACE_BODY bool planner::may_sync(std::size_t tier) const noexcept {
  return keepers_[tier] && !syncs_[tier].under_way && tiers_[tier]->breaker.admits_sync(context_.now());
}

// Whether a sync that may make room is under way, or will begin once the planner has looked at everything else.
TERRACE_BODY bool planner::sync_may_help() const noexcept {
  bool may_begin = false;
  for (std::size_t t = 0; t < tiers() && sync_wanted_; ++t) may_begin = may_begin || may_sync(t);
  return may_begin || syncs_under_way_ != 0;
}

TERRACE_BODY void planner::start_sync() {
  sync_wanted_ = false;
  names_syncing_ = std::exchange(names_taken_, false);
  std::array<bool, max_tiers> ready{};
  for (std::size_t t = 0; t < tiers(); ++t) {
    ready[t] = may_sync(t);
    if (!names_syncing_ || !keepers_[t] || ready[t]) continue;
    names_taken_ = true;
    keep_failure_ = health(t).last;
  }
  std::vector<block_id> wanted = std::exchange(to_sync_, {});
  std::sort(wanted.begin(), wanted.end());  // a block may be in it once for each of several tiers
  wanted.erase(std::unique(wanted.begin(), wanted.end()), wanted.end());
  for (const block_id id : wanted) {
    const block_record* const r = blocks_.find(id);
    if (r == nullptr || !r->name.valid()) continue;
    bool hopeful = false;
    std::optional<error> obstacle;
    for (std::size_t t = 0; t < tiers(); ++t) {
      block_copy& copy = blocks_.copy(id.index, t);
      if (!keepers_[t] || !copy.readable()) continue;
      if (copy.durable) {
        hopeful = true;
        continue;
      }
      if (!ready[t]) {
        obstacle = health(t).last;
        continue;
      }
      const extent where = blocks_.where(id.index, t);
      const extent_header header{.key = r->name,
                                 .encoded = where.bytes,
                                 .checksum = copy.checksum,
                                 .format_id = tiers_[t]->what.codec.format_id,
                                 .raw = static_cast<std::uint32_t>(slot_bytes(*r)),
                                 .depth = r->depth,
                                 .group = r->group,
                                 .row = r->row,
                                 .loss = copy.quality.loss,
                                 .naming = r->naming};
      copy.labelled = tiers_[t]->label(where, header);
      if (copy.labelled) {
        hopeful = true;
        syncing_.push_back({id, t});
      } else {
        obstacle = error{errc::out_of_capacity, "a store has no room for another extent header"};
      }
    }
    if (!obstacle) continue;
    to_sync_.push_back(id);  // even if another copy is durable: that one may have to go
    if (!hopeful) keep_failure_ = obstacle;
  }
  for (std::size_t t = 0; t < tiers(); ++t) syncs_under_way_ += ready[t] ? 1u : 0u;
  syncs_watched_.begin(context_.now());
  for (std::size_t t = 0; t < tiers(); ++t)
    if (ready[t]) begin_sync(t);
}

TERRACE_BODY void planner::begin_sync(std::size_t tier) {
  keeper_sync& s = syncs_[tier];
  s.owner = this;
  s.tier = tier;
  s.under_way = s.waited_for = true;
  s.due = syncs_watched_.now() + syncs_watched_.patience();
  s.done = [](tier_control::sync_request* r, result<void> outcome) noexcept {
    auto& asked = *static_cast<keeper_sync*>(r);
    asked.owner->sync_ended(asked.tier, outcome);
  };
  alarm_.call_by(syncs_watched_.next_look(s.due));
  s.probe = note_begin(tier, circuit_breaker::work::sync);
  tiers_[tier]->sync(s);
}

// A sync that passes its deadline has failed for those who wait for it. That tier gets no other sync before this one
// has really ended.
TERRACE_BODY void planner::give_up_syncs(context::clock::time_point real) {
  const auto now = syncs_watched_.look(real);
  constexpr error late{errc::deadline, "a sync has passed its deadline"};
  for (std::size_t t = 0; t < tiers(); ++t) {
    keeper_sync& s = syncs_[t];
    if (!s.waited_for) continue;
    if (s.due > now) {
      alarm_.call_by(syncs_watched_.next_look(s.due));
      continue;
    }
    note_failure(t, circuit_breaker::work::sync, late);
    answer_sync(t, propagate(late));
  }
}

TERRACE_BODY void planner::sync_ended(std::size_t tier, const result<void>& outcome) {
  syncs_[tier].under_way = false;
  if (outcome)
    tiers_[tier]->breaker.succeeded(circuit_breaker::work::sync, syncs_[tier].probe);
  else
    note_failure(tier, circuit_breaker::work::sync, outcome.error());
  if (syncs_[tier].waited_for) answer_sync(tier, outcome);
  pump();
}

TERRACE_BODY void planner::answer_sync(std::size_t tier, const result<void>& outcome) {
  syncs_[tier].waited_for = false;
  if (!outcome) {
    keep_failure_ = outcome.error();
    names_taken_ = names_taken_ || names_syncing_;
  }
  for (const labelled_copy& l : syncing_) {
    if (l.tier != tier) continue;
    // Meanwhile the block may have got another name, or the copy may have made way for another one, even in the same
    // place: this sync covers neither.
    if (blocks_.find_place(l.id, tier) == nullptr || !blocks_.copy(l.id.index, tier).labelled) continue;
    if (outcome) {
      blocks_.copy(l.id.index, tier).durable = true;
    } else {
      to_sync_.push_back(l.id);
      keep_later(l.id.index);  // another tier may keep it
    }
  }
  if (--syncs_under_way_ != 0) return;
  for (const labelled_copy& l : std::exchange(syncing_, {})) {
    if (blocks_.find(l.id) == nullptr) continue;
    for (std::size_t t = 0; t < tiers(); ++t)
      if (blocks_.copy(l.id.index, t).present()) settle(l.id.index, t);
  }
}

// --- Opening.

// A header comes from a file and is not to be trusted: it must fit the layout and the codec, which determine the size
// of the buffers.
TERRACE_BODY bool planner::adopt(std::size_t tier, extent at, const extent_header& header) {
  if (!header.key.valid() || header.group >= layout_.groups.size()) return false;
  const layer_group& g = layout_.groups[header.group];
  std::uint64_t row = 0;  // the group's first; each group of tensor pages has a row of its own
  for (std::size_t before = 0; before < header.group; ++before)
    row += std::max(layout_.groups[before].block_rows(), 1u);
  if (header.row < row || header.row - row >= std::max(g.block_rows(), 1u)) return false;
  const any_codec& codec = tiers_[tier]->what.codec;
  const std::size_t most = codec.max_encoded_size(g);
  if (header.format_id != codec.format_id || header.raw != g.block_bytes() || header.encoded > most ||
      (codec.fixed_rate && header.encoded != most))
    return false;
  namings_ = std::max(namings_, header.naming);
  const auto [found, fresh] = names_.try_emplace(header.key, block_id::no_index);
  if (fresh) {
    found->second = blocks_.create();
    grow();
  }
  const std::uint32_t block = found->second;
  block_record& r = blocks_[block];
  if (!fresh && header.naming < r.naming) return false;  // an earlier block that had the name
  if (fresh || header.naming > r.naming) {
    for (std::size_t t = 0; t < tiers(); ++t) disown(block, t);
    r.now = block_record::phase::sealed;
    r.name = header.key;
    r.naming = header.naming;
    r.group = header.group;
    r.row = header.row;
    r.depth = header.depth;
    r.parent = index_link::none;
    r.refs = 1;
  }
  if (blocks_.copy(block, tier).present() || r.group != header.group) return false;
  block_copy& copy = blocks_.add_copy(block, tier, at, {header.loss});
  copy.checksum = header.checksum;
  copy.durable = true;
  blocks_.set_readable(block, tier, state::resident);
  return true;
}

// A copy that was found but does not count, for example because another block has its name now, may still be there
// after a crash: it must be gone before a flush says that anything with these names lasts.
TERRACE_BODY void planner::disown(std::uint32_t block, std::size_t tier) noexcept {
  if (blocks_.copy(block, tier).present()) {
    tiers_[tier]->release(blocks_.where(block, tier));
    names_taken_ = true;
  }
  blocks_.remove_copy(block, tier);
}

// A crash may have left the header of an extent whose room was already in use again: the block had another copy by
// then. So if there are several copies, each is read before it counts; one that could not be read may still be the
// right one.
TERRACE_BODY void planner::check_copies(std::uint32_t block) {
  std::size_t present = 0;
  for (std::size_t t = 0; t < tiers(); ++t) present += blocks_.copy(block, t).present() ? 1 : 0;
  for (std::size_t t = 0; t < tiers() && present > 1; ++t) {
    block_copy& copy = blocks_.copy(block, t);
    if (!copy.present()) continue;
    const result<void> read = tiers_[t]->verify(context_, blocks_.where(block, t), copy.checksum);
    if (read) continue;
    if (read.error().code == errc::corrupt) {
      disown(block, t);
      --present;
    } else {
      ++tiers_[t]->stats.failed_reads;
      copy.doubtful = true;
    }
  }
}

TERRACE_BODY void planner::adopt_kept() {
  struct adopter final : tier_control::visitor {
    bool visit(extent at, const extent_header& header) override {
      const bool counts = owner->adopt(tier, at, header);
      owner->names_taken_ = owner->names_taken_ || !counts;
      return counts;
    }
    planner* owner = nullptr;
    std::size_t tier = 0;
  };
  adopter each;
  each.owner = this;
  for (each.tier = 1; each.tier < tiers(); ++each.tier)
    if (keepers_[each.tier]) tiers_[each.tier]->scan(each);
  for (const auto& [key, block] : names_) check_copies(block);
  for (const auto& [key, block] : names_)
    for (std::size_t t = 0; t < tiers(); ++t)
      if (blocks_.copy(block, t).present()) settle(block, t);
}

}  // namespace terrace
