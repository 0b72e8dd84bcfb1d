#pragma once
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <limits>
#include <set>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

namespace terrace {

/// Belady's optimum, to compare policies with: which of the accesses in `keys` hit in a cache of `capacity` blocks of
/// one size that evicts whatever is used farthest in the future, or never. Insertion is forced, as in a tier: an
/// accessed block always gets a slot. Precondition: capacity > 0. O(n log capacity).
///
/// L. A. Belady, A study of replacement algorithms for a virtual-storage computer, IBM Systems Journal 5(2), 1966.
inline std::vector<bool> belady(std::span<const std::uint64_t> keys, std::size_t capacity) {
  constexpr std::size_t never = std::numeric_limits<std::size_t>::max();
  std::vector<std::size_t> next(keys.size(), never);
  std::unordered_map<std::uint64_t, std::size_t> later;  // key -> where it is used next
  for (std::size_t n = keys.size(); n-- > 0;) {
    if (const auto at = later.find(keys[n]); at != later.end()) next[n] = at->second;
    later[keys[n]] = n;
  }
  std::vector<bool> hits(keys.size(), false);
  std::set<std::pair<std::size_t, std::uint64_t>> resident;  // next use, key
  for (std::size_t n = 0; n < keys.size(); ++n) {
    hits[n] = resident.erase({n, keys[n]}) != 0;
    if (resident.size() == capacity) resident.erase(std::prev(resident.end()));
    resident.emplace(next[n], keys[n]);
  }
  return hits;
}

}  // namespace terrace
