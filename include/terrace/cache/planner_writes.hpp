#pragma once
// Blocks that are being written: room for them in tier 0, sealing, and the references that keep them. Part of
// cache/planner.hpp; what saves them farther down is in cache/planner_moves.hpp.
#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>

#include "terrace/cache/planner.hpp"
#include "terrace/core/config.hpp"

namespace terrace {

TERRACE_BODY result<std::optional<extent>> planner::try_borrow(std::size_t bytes) {
  if (bytes > hot_capacity())  // before anything leaves for it
    return fail(errc::out_of_capacity, "tier 0 is smaller than what it was asked to have room for");
  const claim slot = claim_slot(bytes, {.fresh = true});
  if (slot.what == room::impossible)
    return fail(errc::out_of_capacity, "no slot of tier 0 is free for new tokens, and none can be made free");
  if (slot.what == room::pending) return std::nullopt;
  return slot.where;
}

TERRACE_BODY result<extent> planner::borrow(std::size_t bytes) {
  auto slot = try_borrow(bytes);
  for (; slot && !*slot; slot = try_borrow(bytes)) wait_for_transfer();
  if (!slot) return propagate(slot.error());
  return **slot;
}

TERRACE_BODY result<std::uint32_t> planner::open_block(std::uint16_t group, std::uint16_t row,
                                                       std::uint32_t parent, std::uint32_t depth,
                                                       std::uint32_t turn) {
  auto block = try_open_block(group, row, parent, depth, turn);
  for (; block && !*block; block = try_open_block(group, row, parent, depth, turn)) wait_for_transfer();
  if (!block) return propagate(block.error());
  return **block;
}

TERRACE_BODY result<std::optional<std::uint32_t>> planner::try_open_block(
    std::uint16_t group, std::uint16_t row, std::uint32_t parent, std::uint32_t depth, std::uint32_t turn) {
  const auto slot = try_borrow(layout_.groups[group].block_bytes());
  if (!slot) return propagate(slot.error());
  if (!*slot) return std::nullopt;
  const std::uint32_t block = blocks_.create();
  grow();
  block_record& r = blocks_[block];
  r.group = group;
  r.row = row;
  r.parent = parent;
  r.depth = depth;
  r.turn = turn;
  r.refs = 1;
  blocks_.add_copy(block, 0, **slot);
  blocks_.set_readable(block, 0, state::resident);
  pin(block, 0);
  return block;
}

// --- Those who wait for room without blocking.

TERRACE_BODY void planner::request(room_request& r) {
  if (stopping_) {
    r.failure = closing;
    return r.done(&r);
  }
  writers_.push(r);
  pump();
}

// `take` calls nobody back. `done` may make new requests, withdraw others, and block.
TERRACE_BODY void planner::serve_writers() {
  while (writers_.head != nullptr && writers_.head->take(writers_.head)) {
    room_request* const first = writers_.pop();
    first->done(first);
  }
}

// --- What is written.

TERRACE_BODY std::byte* planner::open_data(std::uint32_t block) noexcept {
  TERRACE_ASSERT(blocks_[block].now == block_record::phase::open, "a sealed block was asked for writing");
  return tiers_[0]->address(blocks_.where(block, 0));
}

TERRACE_BODY void planner::seal(std::uint32_t block) {
  blocks_[block].now = block_record::phase::sealed;
  unpin(block, 0);
}

TERRACE_BODY void planner::drop_ref(std::uint32_t block) {
  block_record& r = blocks_[block];
  TERRACE_ASSERT(r.refs > 0, "a reference to a block was dropped twice");
  if (--r.refs != 0) return;
  if (r.now == block_record::phase::open) return unpin(block, 0);
  if (r.cached != index_link::none) settle_all(block);
  collect(block);
}

}  // namespace terrace
