#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "command_line.hpp"
#include "replay.hpp"

namespace replay {

/// Tokens of a block of a trace.
inline constexpr double block_tokens = 512;

/// Modelled seconds that a request waits for its blocks: hits are brought from their tiers one after the other,
/// misses are computed anew.
inline double modelled_seconds(const result& r, const cost_model& costs) {
  if (r.requests == 0) return 0;
  double seconds = static_cast<double>(r.accesses - r.hits()) * block_tokens / costs.prefill;
  for (std::size_t t = 0; t < r.tier_hits.size(); ++t)
    seconds += static_cast<double>(r.tier_hits[t]) * costs.block_bytes /
               (costs.bandwidths[std::min(t, costs.bandwidths.size() - 1)] * 1e9);
  return seconds / static_cast<double>(r.requests);
}

inline nlohmann::ordered_json to_json(const result& r, const job& j) {
  nlohmann::ordered_json out{{"policy", r.policy},
                             {"capacity", r.capacity()},
                             {"requests", r.requests},
                             {"accesses", r.accesses},
                             {"hits", r.hits()},
                             {"hit_ratio", r.hit_ratio()},
                             {"prefix_hits", r.prefix_hits},
                             {"prefix_hit_ratio", r.prefix_hit_ratio()},
                             {"evictions", r.evictions},
                             {"ns_per_access", r.ns_per_access()}};
  if (!j.is_ladder) return out;
  for (std::size_t t = 0; t < r.tier_hits.size(); ++t)
    out["tiers"].push_back({{"capacity", r.capacities[t]}, {"hits", r.tier_hits[t]}});
  out["modelled_ms_per_request"] = modelled_seconds(r, j.costs) * 1e3;
  return out;
}

inline void print_head(std::FILE* to, const job& j) {
  std::fprintf(to, "%-18s %10s %10s %10s %10s %10s %8s", "policy", "capacity", "hits", "hit ratio", "prefix",
               "evictions", "ns");
  if (j.is_ladder) std::fprintf(to, " %12s  hits of each tier", "ms/request");
  std::fputc('\n', to);
}

inline void print(std::FILE* to, const result& r, const job& j) {
  std::fprintf(to, "%-18s %10zu %10llu %10.4f %10.4f %10llu %8.0f", r.policy.c_str(), r.capacity(),
               static_cast<unsigned long long>(r.hits()), r.hit_ratio(), r.prefix_hit_ratio(),
               static_cast<unsigned long long>(r.evictions), r.ns_per_access());
  if (j.is_ladder) {
    std::fprintf(to, " %12.1f ", modelled_seconds(r, j.costs) * 1e3);
    for (const std::uint64_t hits : r.tier_hits)
      std::fprintf(to, " %llu", static_cast<unsigned long long>(hits));
  }
  std::fputc('\n', to);
  std::fflush(to);
}

}  // namespace replay
