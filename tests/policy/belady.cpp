#include "terrace/testing/belady.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <random>
#include <set>
#include <vector>

#include "catch.hpp"
#include "policy/simulated_cache.hpp"

using namespace terrace;

namespace {

std::vector<std::uint64_t> keys_of(std::uint32_t seed, std::size_t length) {
  std::vector<std::uint64_t> keys;
  for (const test::trace_access& a : test::random_trace(seed, length)) keys.push_back(a.key);
  return keys;
}

std::size_t count(const std::vector<bool>& hits) {
  return static_cast<std::size_t>(std::count(hits.begin(), hits.end(), true));
}

// The definition, by looking ahead in the trace itself.
std::vector<bool> naive_belady(const std::vector<std::uint64_t>& keys, std::size_t capacity) {
  std::vector<bool> hits;
  std::map<std::uint64_t, std::size_t> resident;  // key -> where it is used next
  for (std::size_t n = 0; n < keys.size(); ++n) {
    const auto again = std::find(keys.begin() + static_cast<std::ptrdiff_t>(n) + 1, keys.end(), keys[n]);
    hits.push_back(resident.count(keys[n]) != 0);
    if (!hits.back() && resident.size() == capacity)
      resident.erase(std::max_element(resident.begin(), resident.end(),
                                      [](const auto& a, const auto& b) { return a.second < b.second; }));
    resident[keys[n]] = static_cast<std::size_t>(again - keys.begin());
  }
  return hits;
}

// The most hits of all ways to evict.
std::size_t best_of_all(const std::vector<std::uint64_t>& keys, std::size_t capacity, std::size_t n = 0,
                        const std::set<std::uint64_t>& resident = {}) {
  if (n == keys.size()) return 0;
  if (resident.count(keys[n]) != 0) return 1 + best_of_all(keys, capacity, n + 1, resident);
  std::set<std::uint64_t> next = resident;
  next.insert(keys[n]);
  if (resident.size() < capacity) return best_of_all(keys, capacity, n + 1, next);
  std::size_t best = 0;
  for (const std::uint64_t victim : resident) {
    std::set<std::uint64_t> without = next;
    without.erase(victim);
    best = std::max(best, best_of_all(keys, capacity, n + 1, without));
  }
  return best;
}

}  // namespace

TEST_CASE("belady: equals its definition to the last miss") {
  const std::vector<std::uint64_t> keys = keys_of(GENERATE(1u, 2u), 2000);
  for (const std::uint32_t capacity : test::capacities) {
    CAPTURE(capacity);
    CHECK((belady(keys, capacity) == naive_belady(keys, capacity)));
  }
}

TEST_CASE("belady: no way to evict hits more") {
  std::mt19937 random(4);
  for (int round = 0; round < 200; ++round) {
    std::vector<std::uint64_t> keys;
    for (int n = 0; n < 12; ++n) keys.push_back(random() % 6);
    for (const std::size_t capacity : {1u, 2u, 3u})
      REQUIRE(count(belady(keys, capacity)) == best_of_all(keys, capacity));
  }
}

TEST_CASE("belady: a larger tier never hits less") {
  const std::vector<std::uint64_t> keys = keys_of(3, 4000);
  std::size_t before = 0;
  for (std::size_t capacity = 1; capacity <= 400; capacity += 13) {
    const std::size_t now = count(belady(keys, capacity));
    CHECK(now >= before);
    before = now;
  }
  CHECK(belady({}, 3).empty());
}
