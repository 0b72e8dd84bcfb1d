#include "terrace/policy/sieve.hpp"

#include <algorithm>
#include <vector>

#include "catch.hpp"
#include "policy/simulated_cache.hpp"
#include "terrace/testing/policy_conformance.hpp"

using namespace terrace;

namespace {

// The paper's procedure over a vector, oldest first.
class naive_sieve {
 public:
  explicit naive_sieve(std::uint32_t capacity) : capacity_(capacity) {}
  void advance_step(std::uint64_t) {}
  bool operator()(const test::trace_access& a) {
    for (entry& e : order_)
      if (e.key == a.key) return e.used = true;
    if (order_.size() == capacity_) {
      for (hand_ %= order_.size(); order_[hand_].used; hand_ = (hand_ + 1) % order_.size())
        order_[hand_].used = false;
      order_.erase(order_.begin() + static_cast<std::ptrdiff_t>(hand_));
      // The hand now stands before what came next, or has come to the end: then the oldest is next, and not
      // the one that is about to come.
      if (hand_ == order_.size()) hand_ = 0;
    }
    order_.push_back({a.key, false});
    return false;
  }

 private:
  struct entry {
    std::uint64_t key;
    bool used;
  };
  std::size_t capacity_, hand_ = 0;
  std::vector<entry> order_;
};

struct small_tier {
  std::vector<sieve::block_state> states{8};
  sieve policy;
  explicit small_tier(std::uint32_t blocks) {
    policy.bind(states);
    for (std::uint32_t i = 0; i < blocks; ++i) policy.admit(i, {});
  }
  void give_back(std::uint32_t i) { policy.admit(i, {.why = block_info::admission::returned}); }
  std::uint32_t evict() {
    const std::uint32_t i = policy.victim();
    policy.remove(i);
    return i;
  }
};

}  // namespace

TEST_CASE("sieve: equals the paper's procedure to the last miss") {
  CHECK(test::equals_naive<sieve, naive_sieve>());
}

TEST_CASE("sieve: keeps the contract of policies") { CHECK(policy_conformance<sieve>() == std::nullopt); }

TEST_CASE("sieve: the hand spares what was used, and goes on from where it stood") {
  small_tier tier(4);
  tier.policy.touch(0, {});
  tier.policy.touch(2, {});
  CHECK(tier.policy.victim() == 1);
  CHECK(tier.evict() == 1);
  CHECK(tier.evict() == 3);
  tier.policy.admit(1, {});
  CHECK(tier.evict() == 0);  // spared once, and the hand has come round
}

TEST_CASE("sieve: a pinned block keeps its place and its use, unless the hand comes by") {
  small_tier tier(4);
  tier.policy.remove(0);
  tier.policy.touch(0, {});
  tier.give_back(0);
  CHECK(tier.evict() == 1);
  tier.policy.remove(2);
  CHECK(tier.policy.victim() == 3);  // the hand has passed 2
  tier.give_back(2);
  CHECK(tier.evict() == 3);
  CHECK(tier.evict() == 2);
  CHECK(tier.evict() == 0);
  CHECK(tier.policy.victim() == index_link::none);
}

TEST_CASE("sieve: nobody, one block, and the block under the hand dies") {
  small_tier tier(0);
  CHECK(tier.policy.victim() == index_link::none);
  tier.policy.admit(5, {});
  tier.policy.touch(5, {});
  CHECK(tier.policy.victim() == 5);
  tier.policy.admit(6, {});
  tier.policy.admit(7, {});
  CHECK(tier.evict() == 5);
  tier.policy.admit(5, {});  // recycled at once: the newest now, and no longer under the hand
  CHECK(tier.evict() == 6);
}
