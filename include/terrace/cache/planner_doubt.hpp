#pragma once
// Copies that could not be read: which of them are given up, and what becomes of those that stay. Part of
// cache/planner.hpp.
#include <algorithm>
#include <chrono>
#include <utility>

#include "terrace/cache/planner.hpp"
#include "terrace/core/config.hpp"

namespace terrace {

// Ends a read that failed, and returns the pin on its copy. Wrong bytes stay wrong. Any other cause may pass (no
// descriptor, no memory, a server that does not answer), so the copy stays where it is.
TERRACE_BODY void planner::read_failed(std::uint32_t block, std::size_t tier, const error& cause) {
  block_copy& copy = blocks_.copy(block, tier);
  ++tiers_[tier]->stats.failed_reads;
  copy.doubtful = true;
  unpin(block, tier);
  if (cause.code == errc::corrupt && copy.now() == state::resident && copy.pins == 0)
    give_up_copy(block, tier);
}

// A copy has been read and was correct.
TERRACE_BODY void planner::trust(std::uint32_t block, std::size_t tier) {
  block_copy& copy = blocks_.copy(block, tier);
  if (!copy.doubtful) return;
  copy.doubtful = copy.held = false;
  held_[tier].pauses = 0;
  if (blocks_.copy(block, 0).present()) settle(block, 0);
}

TERRACE_BODY void planner::give_up_copy(std::uint32_t block, std::size_t tier) {
  ++tiers_[tier]->stats.lost;
  drop_copy(block, tier);
}

// A tier's victim may be unreadable. If nothing is lost by it, it goes without being read.
TERRACE_BODY bool planner::drop_doubtful_victim(std::uint32_t block, std::size_t tier) {
  if (guarded(block, tier)) return false;
  if (blocks_.sound_besides(block, tier)) {
    give_up_copy(block, tier);
    collect(block);
    return true;
  }
  if (blocks_[block].refs != 0) return false;
  let_go(block, tier);
  return true;
}

// A copy that cannot be read cannot be moved. This takes it out of its policy's charge until its tier's pause is
// over: otherwise the next request for room would pick it again at once.
TERRACE_BODY void planner::hold(std::uint32_t block, std::size_t tier) {
  held_copies& h = held_[tier];
  const auto now = context_.now();
  if (h.blocks.empty()) {
    const auto first = std::max(options_.health.first_pause, std::chrono::milliseconds(1));
    const auto pause = first * (std::int64_t{1} << std::min(h.pauses++, 20u));
    h.until = now + std::min(pause, std::max(first, options_.health.longest_pause));
    alarm_.call_by(h.until);
  }
  h.blocks.push_back(blocks_.id_of(block));
  blocks_.copy(block, tier).held = true;
  discharge(block, tier);
}

TERRACE_BODY void planner::release_held(context::clock::time_point now) {
  for (std::size_t t = 1; t < tiers(); ++t) {
    if (held_[t].blocks.empty()) continue;
    if (held_[t].until > now) {
      alarm_.call_by(held_[t].until);
      continue;
    }
    for (const block_id id : std::exchange(held_[t].blocks, {})) {
      if (blocks_.find(id) == nullptr || !blocks_.copy(id.index, t).held) continue;
      blocks_.copy(id.index, t).held = false;
      settle(id.index, t);
    }
  }
}

}  // namespace terrace
