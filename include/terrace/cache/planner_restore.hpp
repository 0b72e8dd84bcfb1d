#pragma once
// Copies that turn out to be damaged, and lost blocks that are computed anew. Part of cache/planner.hpp.
#include "terrace/cache/planner.hpp"
#include "terrace/core/config.hpp"

namespace terrace {

TERRACE_BODY result<void> planner::report_damaged(block_id id, std::size_t tier) {
  const block_record* const r = blocks_.find(id);
  if (r == nullptr || tier == 0 || tier >= tiers() || r->copies[tier].now == state::absent)
    return fail(errc::invalid_argument, "no tier below tier 0 has a copy there that could be damaged");
  if (r->copies[tier].now != state::resident || r->copies[tier].pins != 0)
    return fail(errc::unavailable, "a copy that is being read or written cannot be given up now");
  ++tiers_[tier]->stats.lost;
  drop_copy(id.index, tier);
  pump();
  return {};
}

TERRACE_BODY result<std::byte*> planner::begin_restore(block_id id) {
  const auto lost = [&] {
    const block_record* const r = blocks_.find(id);
    return r != nullptr && r->now == block_record::phase::sealed && r->copies[0].now == state::absent;
  };
  if (!lost())
    return fail(errc::invalid_argument, "only a sealed block that is not in tier 0 can be computed anew");
  const auto slot = borrow(slot_bytes(blocks_[id.index]));
  if (!slot) return propagate(slot.error());
  if (!lost()) {  // somebody else has brought it, or let it go, while there was no room
    tiers_[0]->release(*slot);
    return fail(errc::unavailable, "a block has changed while room was made to compute it anew");
  }
  block_record& r = blocks_[id.index];
  r.copies[0].now = state::filling;
  r.copies[0].where = *slot;
  r.copies[0].quality = {};
  pin(id.index, 0);
  return tiers_[0]->address(*slot);
}

TERRACE_BODY void planner::end_restore(std::uint32_t block, bool whole) {
  block_record& r = blocks_[block];
  if (whole) {
    r.copies[0].now = state::resident;
    if (r.name.valid()) to_keep_.push_back(blocks_.id_of(block));
    answer_waiting(block, nullptr);
    unpin(block, 0);
  } else {
    const extent slot = r.copies[0].where;
    answer_waiting(block, &not_restored);
    --r.copies[0].pins;
    --pins_;
    r.copies[0] = {};
    tiers_[0]->release(slot);
    collect(block);
  }
  pump();
}

}  // namespace terrace
