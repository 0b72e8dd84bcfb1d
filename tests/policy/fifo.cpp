#include "terrace/policy/fifo.hpp"

#include <algorithm>
#include <deque>
#include <random>
#include <vector>

#include "catch.hpp"
#include "policy/simulated_cache.hpp"
#include "terrace/testing/policy_conformance.hpp"

using namespace terrace;

namespace {

class naive_fifo {
 public:
  explicit naive_fifo(std::uint32_t capacity) : capacity_(capacity) {}
  void advance_step(std::uint64_t) {}
  bool operator()(const test::trace_access& a) {
    if (std::find(order_.begin(), order_.end(), a.key) != order_.end()) return true;
    if (order_.size() == capacity_) order_.pop_front();
    order_.push_back(a.key);
    return false;
  }

 private:
  std::size_t capacity_;
  std::deque<std::uint64_t> order_;
};

}  // namespace

TEST_CASE("fifo: equals a plain queue to the last miss") { CHECK(test::equals_naive<fifo, naive_fifo>()); }

TEST_CASE("fifo: keeps the contract of policies") { CHECK(policy_conformance<fifo>() == std::nullopt); }

TEST_CASE("fifo: a pinned block keeps its place, and comes to the front if it was its turn") {
  std::vector<fifo::block_state> states(4);
  fifo policy;
  policy.bind(states);
  CHECK(policy.victim() == index_link::none);
  for (std::uint32_t i = 0; i < 4; ++i) policy.admit(i, {});
  policy.remove(1);
  policy.admit(1, {.why = block_info::admission::returned});
  CHECK(policy.victim() == 0);
  policy.remove(0);
  CHECK(policy.victim() == 1);
  policy.remove(2);
  policy.remove(1);
  CHECK(policy.victim() == 3);
  policy.admit(2, {.why = block_info::admission::returned});
  CHECK(policy.victim() == 2);
  policy.admit(0, {});  // a new block that has the index of an old one
  policy.remove(2);
  CHECK(policy.victim() == 3);
  policy.remove(3);
  CHECK(policy.victim() == 0);
}

TEST_CASE("fifo: equals a naive list on random calls, with blocks that stay pinned") {
  constexpr std::uint32_t blocks = 40;
  struct place {
    std::uint32_t block;
    bool in_charge;
  };
  std::mt19937 random(11);
  std::vector<fifo::block_state> states(blocks);
  fifo policy;
  policy.bind(states);
  std::deque<place> naive;
  std::vector<bool> in_charge(blocks), known(blocks);
  for (int call = 0; call < 20000; ++call) {
    const std::uint32_t i = static_cast<std::uint32_t>(random() % blocks);
    const auto at = std::find_if(naive.begin(), naive.end(), [&](const place& p) { return p.block == i; });
    if (in_charge[i]) {
      policy.remove(i);
      at->in_charge = false;
      known[i] = random() % 4 != 0;
    } else if (known[i]) {
      policy.admit(i, {.why = block_info::admission::returned});
      if (at == naive.end())
        naive.push_front({i, true});
      else
        at->in_charge = true;
    } else {
      policy.admit(i, {});
      if (at != naive.end()) naive.erase(at);
      naive.push_back({i, true});
    }
    in_charge[i] = !in_charge[i];
    if (random() % 3 != 0) continue;  // places are given up only when a victim is asked for
    while (!naive.empty() && !naive.front().in_charge) naive.pop_front();
    REQUIRE(policy.victim() == (naive.empty() ? index_link::none : naive.front().block));
  }
}
