#include "terrace/policy/index_heap.hpp"

#include <random>
#include <set>
#include <utility>
#include <vector>

#include "catch.hpp"

using namespace terrace;

namespace {

struct books {
  std::vector<int> worth;
  std::vector<std::uint32_t> positions;
  bool before(std::uint32_t a, std::uint32_t b) const {
    return std::pair(worth[a], a) < std::pair(worth[b], b);
  }
  std::uint32_t& position(std::uint32_t i) { return positions[i]; }
};

}  // namespace

TEST_CASE("index_heap: equals an ordered set on random calls") {
  constexpr std::uint32_t indices = 60;
  std::mt19937 random(5);
  books kept{std::vector<int>(indices), std::vector<std::uint32_t>(indices)};
  index_heap heap;
  heap.reserve(indices);
  std::set<std::pair<int, std::uint32_t>> naive;
  CHECK(heap.top() == index_link::none);
  for (int call = 0; call < 50000; ++call) {
    const std::uint32_t i = static_cast<std::uint32_t>(random() % indices);
    if (naive.erase({kept.worth[i], i}) != 0) {
      if (random() % 2 == 0) {
        heap.erase(kept, i);
      } else {
        kept.worth[i] = static_cast<int>(random() % 30);
        naive.insert({kept.worth[i], i});
        heap.update(kept, i);
      }
    } else {
      kept.worth[i] = static_cast<int>(random() % 30);  // so that some are worth the same
      naive.insert({kept.worth[i], i});
      heap.push(kept, i);
    }
    REQUIRE(heap.size() == naive.size());
    REQUIRE(heap.top() == (naive.empty() ? index_link::none : naive.begin()->second));
  }
}
