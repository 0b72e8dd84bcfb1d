#pragma once
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

namespace terrace {

/// What happened in one tier since the cache was opened. Bytes are as stored in the tier, encoded.
struct tier_stats {
  std::string_view medium;
  std::string_view codec;
  std::size_t capacity_bytes = 0;
  std::size_t resident_bytes = 0;
  std::uint64_t hits = 0;           ///< demanded blocks that were resident here since their last use
  std::uint64_t loads = 0;          ///< blocks brought from here to tier 0
  std::uint64_t stores = 0;         ///< blocks written here from a nearer tier
  std::uint64_t bytes_read = 0;     ///< by loads, and by moves to a farther tier
  std::uint64_t bytes_written = 0;  ///< by stores; in tier 0, by loads
  std::uint64_t lost =
      0;  ///< copies given up: with wrong bytes, reported damaged, or unreadable and then replaced
  std::uint64_t failed_reads =
      0;  ///< reads that failed, or passed their deadline; the copy is lost only if it is wrong
  std::uint64_t failed_stores = 0;  ///< writes and syncs that failed; blocks stayed where they were
};

struct prefetch_stats {
  std::uint64_t issued = 0;  ///< loads begun before anybody asked
  std::uint64_t used = 0;    ///< of those, demanded before they left
  std::uint64_t late = 0;    ///< of the used ones, those still on their way when demanded
  std::uint64_t wasted = 0;  ///< of those issued, gone without a use
};

struct hint_stats {
  std::uint64_t accepted = 0;
  std::uint64_t clipped = 0;
  std::uint64_t rejected = 0;
  std::uint64_t expired = 0;  ///< blocks that a hint wanted by a step, without room or a tier to read
};

struct cache_stats {
  std::vector<tier_stats> tiers;
  prefetch_stats prefetch;
  hint_stats hints;
  std::uint64_t misses = 0;   ///< demanded blocks that attention could not read where they were
  std::uint64_t dropped = 0;  ///< blocks that nobody referred to, let go for room
  std::uint64_t blocks = 0;   ///< blocks alive
  std::uint64_t pins = 0;     ///< copies pinned by leases, open blocks and transfers now
  std::size_t staging_bytes = 0;
  std::size_t hot_bytes_peak = 0;  ///< most bytes of tier-0 slots plus staging ever in use
  std::uint64_t step = 0;
};

}  // namespace terrace
