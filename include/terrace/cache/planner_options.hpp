#pragma once
#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>

#include "terrace/cache/residency.hpp"
#include "terrace/cache/tier_health.hpp"

namespace terrace {

/// Whether a tier also holds what tier 0 holds.
enum class inclusion : std::uint8_t {
  automatic,  ///< exclusive if it has less than twice tier 0's bytes: then its capacity counts
  inclusive,  ///< what goes up stays here too, and new blocks are written behind: leaving tier 0 costs nothing
  exclusive,  ///< capacities add up: a block is here or in tier 0, and is written each time it comes down
};

/// How many transfers may be in flight, how long they may take, and which tiers are inclusive. The defaults are fine
/// for most uses.
struct planner_options {
  unsigned loads_in_flight = 32;  ///< reads; as many more blocks may be checked or decoded meanwhile
  unsigned stores_in_flight = 16;
  unsigned prefetches_in_flight = 16;
  /// Time limit of a transfer or sync, from when it begins. Time counts while the owner polls
  /// (execution/watched_clock.hpp).
  std::chrono::milliseconds deadline{10'000};  ///< see time_limit()
  health_options health{};                     ///< when a tier that fails is set aside
  /// Whether tier i also holds what tier 0 holds. [0] is ignored.
  std::array<inclusion, max_tiers> inclusions{};

  /// The deadline as it is used: not negative, at most fifty years.
  std::chrono::nanoseconds time_limit() const noexcept {
    return std::clamp<std::chrono::milliseconds>(deadline, std::chrono::milliseconds(0),
                                                 std::chrono::hours(24 * 365 * 50));
  }

  /// The most transfers that can exist: as many again as may be in flight may have passed their deadlines, so that
  /// one tier that hangs does not stop the others.
  unsigned jobs() const noexcept { return 2 * (loads_in_flight + stores_in_flight); }
};

}  // namespace terrace
