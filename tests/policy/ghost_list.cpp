#include "terrace/policy/ghost_list.hpp"

#include <algorithm>
#include <deque>
#include <random>

#include "catch.hpp"

using namespace terrace;

TEST_CASE("ghost_list: without room it remembers nothing") {
  ghost_list ghosts;
  ghosts.push(1);
  CHECK(ghosts.size() == 0);
  CHECK_FALSE(ghosts.contains(1));
  CHECK_FALSE(ghosts.erase(1));
  ghosts.trim(0);
}

TEST_CASE("ghost_list: equals a naive queue on random calls, while it grows") {
  std::mt19937 random(3);
  ghost_list ghosts;
  std::deque<std::uint64_t> naive;
  for (const std::size_t capacity : {1u, 2u, 7u, 64u, 100u}) {
    ghosts.reserve(capacity);
    for (int call = 0; call < 5000; ++call) {
      // Keys that differ in the high bits only, and neighbours.
      const std::uint64_t key = (random() % 20) << (random() % 2 == 0 ? 0 : 58) | (random() % 10 << 4);
      const auto at = std::find(naive.begin(), naive.end(), key);
      switch (random() % 8) {
        case 0:
        case 1:
          REQUIRE(ghosts.erase(key) == (at != naive.end()));
          if (at != naive.end()) naive.erase(at);
          break;
        case 2:
          if (random() % 20 != 0) break;
          ghosts.trim(capacity / 2);
          while (naive.size() > capacity / 2) naive.pop_front();
          break;
        default:
          ghosts.push(key);
          if (at != naive.end()) naive.erase(at);
          naive.push_back(key);
          if (naive.size() > capacity) naive.pop_front();
      }
      REQUIRE(ghosts.size() == naive.size());
      REQUIRE(ghosts.contains(key) == (std::find(naive.begin(), naive.end(), key) != naive.end()));
    }
    for (const std::uint64_t key : naive) REQUIRE(ghosts.contains(key));
  }
}
