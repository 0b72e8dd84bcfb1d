#include "terrace/policy/index_heap.hpp"

#include <random>
#include <set>
#include <utility>
#include <vector>

#include "catch.hpp"

using namespace terrace;

namespace {

struct entry {
  std::int64_t worth = 0;
  std::uint32_t index = 0;
};
struct before {
  bool operator()(const entry& a, const entry& b) const {
    return std::pair(a.worth, a.index) < std::pair(b.worth, b.index);
  }
};

}  // namespace

TEST_CASE("index_heap: equals an ordered set on random calls") {
  constexpr std::uint32_t indices = 60;
  std::mt19937 random(5);
  index_heap<entry, before> heap;
  heap.reserve(indices / 2);
  heap.reserve(indices);
  std::vector<std::int64_t> worth(indices);
  std::set<std::pair<std::int64_t, std::uint32_t>> naive;
  CHECK(heap.top() == index_link::none);
  for (int call = 0; call < 50000; ++call) {
    const std::uint32_t i = static_cast<std::uint32_t>(random() % indices);
    const bool inside = naive.erase({worth[i], i}) != 0;
    if (inside && random() % 2 == 0) {
      heap.erase(i);
    } else {
      worth[i] = static_cast<int>(random() % 30);  // so that some are worth the same
      naive.insert({worth[i], i});
      if (inside)
        heap.update({worth[i], i});
      else
        heap.push({worth[i], i});
    }
    REQUIRE(heap.size() == naive.size());
    REQUIRE(heap.contains(i) == (naive.count({worth[i], i}) != 0));
    REQUIRE(heap.top() == (naive.empty() ? index_link::none : naive.begin()->second));
  }
}
