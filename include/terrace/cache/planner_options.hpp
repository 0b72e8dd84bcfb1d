#pragma once
#include <array>
#include <chrono>
#include <cstdint>

#include "terrace/cache/residency.hpp"
#include "terrace/cache/tier_health.hpp"

namespace terrace {

/// Whether a tier also holds what tier 0 holds.
enum class inclusion : std::uint8_t {
  automatic,  ///< exclusive where it has less than twice tier 0's bytes: then its capacity counts
  inclusive,  ///< what goes up stays here too, and what is new is written behind: leaving tier 0 costs nothing
  exclusive,  ///< capacities add up: a block is here or in tier 0, and is written each time it comes down
};

/// How much is on its way at once, how long it may take, and which tiers are inclusive. The defaults serve.
struct planner_options {
  unsigned loads_in_flight = 32;  ///< reads; as many blocks again may be checked or decoded meanwhile
  unsigned stores_in_flight = 16;
  unsigned prefetches_in_flight = 16;
  /// Of a transfer or sync, from when it is begun; counted while the owner polls (execution/watched_clock.hpp).
  std::chrono::milliseconds deadline{10'000};
  health_options health{};  ///< when a tier that fails is set aside
  /// Whether tier i also holds what tier 0 holds. [0] means nothing.
  std::array<inclusion, max_tiers> inclusions{};

  /// Transfers that there can be: as many again as are in flight may have passed their deadlines, so that one tier
  /// that hangs does not stop the others.
  unsigned jobs() const noexcept { return 2 * (loads_in_flight + stores_in_flight); }
};

}  // namespace terrace
