#pragma once
// Blocks that a prefix index knows: they stay when no sequence refers to them, and go when their room is needed. Part
// of cache/planner.hpp.
#include <utility>

#include "terrace/cache/planner.hpp"
#include "terrace/core/config.hpp"

namespace terrace {

// After a change in whether anybody refers to a block: that decides who has charge of it.
TERRACE_BODY void planner::settle_all(std::uint32_t block) {
  block_record& r = blocks_[block];
  blocks_.mark_idle(block, r.refs == 0 && r.cached != index_link::none);
  for (std::size_t t = 0; t < tiers(); ++t)
    if (blocks_.copy(block, t).present()) settle(block, t);
}

TERRACE_BODY void planner::add_ref(std::uint32_t block) {
  if (blocks_[block].refs++ == 0) settle_all(block);
}

TERRACE_BODY void planner::cache_block(std::uint32_t block, std::uint32_t entry, std::uint64_t key) {
  block_record& r = blocks_[block];
  TERRACE_ASSERT(r.now == block_record::phase::sealed, "only sealed blocks can be cached");
  TERRACE_ASSERT(r.cached == index_link::none, "a block was cached twice");
  r.cached = entry;
  r.key = key;
  for (std::size_t t = 0; t < tiers(); ++t) {  // under its new key it is a new block to policies
    discharge(block, t);
    blocks_.copy(block, t).known = false;
  }
  settle_all(block);
}

TERRACE_BODY void planner::uncache_block(std::uint32_t block) {
  TERRACE_ASSERT(blocks_[block].cached != index_link::none, "a block was taken out of the cached ones twice");
  blocks_[block].cached = index_link::none;
  settle_all(block);
  collect(block);
}

TERRACE_BODY bool planner::resident(block_id id) const noexcept {
  const block_record* const r = find_record(id);  // what goes as soon as transfers let it counts as gone
  return r != nullptr && r->now == block_record::phase::sealed &&
         (blocks_.best_copy(id.index) != tiers() || blocks_.copy(id.index, 0).now() == state::filling);
}

// The index learns of it when it next asks: here, in the middle of a move, nobody else's blocks may change.
TERRACE_BODY void planner::expire(std::uint32_t block) {
  expired_.push_back(std::exchange(blocks_[block].cached, index_link::none));
  blocks_.mark_idle(block, false);
}

// A copy leaves its tier for good, and the block with it, if nobody refers to it and it is not a cached one that a
// farther tier has.
TERRACE_BODY void planner::let_go(std::uint32_t block, std::size_t tier) {
  block_record& r = blocks_[block];
  const bool cached = r.cached != index_link::none;
  if (r.refs == 0 && !(cached && blocks_.saved_below(block, tier))) {
    ++dropped_;
    if (cached) expire(block);
  }
  drop_copy(block, tier, departure::evicted);
  collect(block);
}

// The victim is referred to and can go nowhere, but the policy may have charge of another block that nobody refers
// to. O(cached blocks that nobody refers to), and only if all tiers below are full or fail.
TERRACE_BODY planner::room planner::vacate_idle(std::size_t tier) {
  std::uint32_t block = blocks_.first_idle();
  while (block != index_link::none && !blocks_.copy(block, tier).in_policy) block = blocks_.next_idle(block);
  if (block == index_link::none) return room::impossible;
  let_go(block, tier);
  return room::ready;
}

}  // namespace terrace
