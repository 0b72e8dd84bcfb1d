#include "terrace/policy/lru.hpp"

#include <algorithm>
#include <list>
#include <random>
#include <vector>

#include "catch.hpp"
#include "policy/simulated_cache.hpp"

using namespace terrace;

namespace {

class naive_lru {
 public:
  explicit naive_lru(std::uint32_t capacity) : capacity_(capacity) {}
  void advance_step(std::uint64_t) {}
  bool operator()(const test::trace_access& a) {
    const auto found = std::find(order_.begin(), order_.end(), a.key);
    const bool hit = found != order_.end();
    if (hit) order_.erase(found);
    if (order_.size() == capacity_) order_.pop_front();
    order_.push_back(a.key);
    return hit;
  }

 private:
  std::size_t capacity_;
  std::list<std::uint64_t> order_;
};

}  // namespace

TEST_CASE("lru: equals a plain list to the last miss") { CHECK(test::equals_naive<lru, naive_lru>()); }

TEST_CASE("lru: the least recently used one is the victim") {
  std::vector<lru::block_state> states(4);
  lru policy;
  policy.bind(states);
  CHECK(policy.victim() == index_link::none);
  for (std::uint32_t i = 0; i < 4; ++i) policy.admit(i, {});
  CHECK(policy.victim() == 0);
  policy.touch(0, {});
  CHECK(policy.victim() == 1);
  policy.remove(1);
  CHECK(policy.victim() == 2);
  policy.admit(1, {.why = block_info::admission::returned});
  policy.remove(2);
  policy.remove(3);
  CHECK(policy.victim() == 0);
}

TEST_CASE("lru: touching what is not in charge changes nothing") {
  std::vector<lru::block_state> states(3);
  lru policy;
  policy.bind(states);
  policy.touch(1, {});
  CHECK(policy.victim() == index_link::none);
  policy.admit(1, {});
  policy.remove(1);
  policy.touch(1, {});
  CHECK(policy.victim() == index_link::none);
}

TEST_CASE("lru: the books move with a growing array") {
  std::vector<lru::block_state> states(2);
  lru policy;
  policy.bind(states);
  policy.admit(0, {});
  policy.admit(1, {});
  states.resize(100);
  policy.bind(states);
  policy.admit(99, {});
  CHECK(policy.victim() == 0);
}

TEST_CASE("lru: equals a naive list on random calls") {
  std::mt19937 random(7);
  constexpr std::uint32_t blocks = 50;
  std::vector<lru::block_state> states(blocks);
  lru policy;
  policy.bind(states);
  std::list<std::uint32_t> naive;
  for (int call = 0; call < 20000; ++call) {
    const std::uint32_t i = static_cast<std::uint32_t>(random() % blocks);
    const auto at = std::find(naive.begin(), naive.end(), i);
    switch (random() % 3) {
      case 0:
        if (at != naive.end()) break;
        naive.push_back(i);
        policy.admit(i, {});
        break;
      case 1:
        if (at == naive.end()) break;
        naive.erase(at);
        policy.remove(i);
        break;
      default:
        if (at != naive.end()) naive.splice(naive.end(), naive, at);
        policy.touch(i, {});
    }
    REQUIRE(policy.victim() == (naive.empty() ? index_link::none : naive.front()));
  }
}
