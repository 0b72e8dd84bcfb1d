#pragma once
#include <cstddef>

#include "terrace/cache/tier_control.hpp"
#include "terrace/core/block.hpp"
#include "terrace/execution/watched_clock.hpp"

namespace terrace {

class planner;

// What the planner remembers of blocks that must outlive the process (cache/planner_durability.hpp).

/// A key is already a hash.
struct block_key_hash {
  std::size_t operator()(const block_key& k) const noexcept { return k.low ^ (k.high >> 7); }
};

/// The sync of one tier that keeps: under way, waited for, or idle.
struct keeper_sync : tier_control::sync_request {
  planner* owner = nullptr;
  std::size_t tier = 0;
  bool under_way = false;  ///< the medium has not reported its end yet
  bool waited_for = false;
  bool probe = false;
  watched_clock::duration due{};
};

/// A copy that the sync under way makes durable, if it is still `block_copy::labelled` when the sync ends.
struct labelled_copy {
  block_id id;
  std::size_t tier;
};

}  // namespace terrace
