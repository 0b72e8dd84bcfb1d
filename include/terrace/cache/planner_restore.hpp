#pragma once
// Copies that turn out to be damaged, and lost blocks that are computed anew. Part of cache/planner.hpp.
#include <cstddef>
#include <optional>

#include "terrace/cache/planner.hpp"
#include "terrace/core/config.hpp"

namespace terrace {

TERRACE_BODY result<void> planner::report_damaged(block_id id, std::size_t tier) {
  if (blocks_.find(id) == nullptr || tier == 0 || tier >= tiers() || !blocks_.copy(id.index, tier).present())
    return fail(errc::invalid_argument, "no tier below tier 0 has a copy there that could be damaged");
  if (const block_copy& copy = blocks_.copy(id.index, tier); copy.now() != state::resident || copy.pins != 0)
    return fail(errc::unavailable, "a copy that is being read or written cannot be given up now");
  give_up_copy(id.index, tier);
  collect(id.index);  // only a prefix index may have known it
  pump();
  return {};
}

TERRACE_BODY bool planner::restorable(block_id id) const noexcept {
  const block_record* const r = blocks_.find(id);
  return r != nullptr && r->now == block_record::phase::sealed && !blocks_.copy(id.index, 0).present();
}

TERRACE_BODY result<std::optional<std::byte*>> planner::try_restore(block_id id) {
  constexpr error changed{errc::unavailable, "a block has changed while room was made to compute it anew"};
  if (!restorable(id)) return propagate(changed);
  const auto slot = try_borrow(slot_bytes(blocks_[id.index]));
  if (!slot) return propagate(slot.error());
  if (!*slot) return std::nullopt;
  if (!restorable(id)) {  // it was let go to make room
    tiers_[0]->release(**slot);
    return propagate(changed);
  }
  blocks_.add_copy(id.index, 0, **slot);
  pin(id.index, 0);
  return tiers_[0]->address(**slot);
}

TERRACE_BODY void planner::end_restore(std::uint32_t block, bool whole) {
  if (whole) {
    blocks_.set_readable(block, 0, state::resident);
    if (blocks_[block].name.valid()) keep_later(block);
    // The recomputed block is stored again, in place of all copies: those, perhaps unreadable or lossy, would be read
    // again once this one has left tier 0. A pinned copy makes way once it is unpinned (start_store_to).
    for (std::size_t t = 1; t < tiers(); ++t) {
      block_copy& copy = blocks_.copy(block, t);
      if (!copy.readable()) continue;
      copy.doubtful = true;
      if (copy.now() == state::resident && copy.pins == 0) give_up_copy(block, t);
    }
    answer_waiting(block, nullptr);
    unpin(block, 0);
    if (blocks_.copy(block, 0).present()) settle(block, 0);
  } else {
    const extent slot = blocks_.where(block, 0);
    answer_waiting(block, &not_restored);
    --blocks_.copy(block, 0).pins;
    --pins_;
    blocks_.remove_copy(block, 0);
    tiers_[0]->release(slot);
    collect(block);
  }
  pump();
}

}  // namespace terrace
