#include "terrace/policy/two_queue.hpp"

#include <algorithm>
#include <deque>
#include <vector>

#include "catch.hpp"
#include "policy/simulated_cache.hpp"
#include "terrace/testing/policy_conformance.hpp"

using namespace terrace;

namespace {

// The paper's procedure, over plain containers: newest first.
class naive_two_queue {
 public:
  explicit naive_two_queue(std::uint32_t capacity) : capacity_(capacity) {}
  void advance_step(std::uint64_t) {}
  bool operator()(const test::trace_access& a) {
    if (const auto at = std::find(main_.begin(), main_.end(), a.key); at != main_.end()) {
      main_.erase(at);
      main_.push_front(a.key);
      return true;
    }
    if (std::find(in_.begin(), in_.end(), a.key) != in_.end()) return true;
    const auto ghost = std::find(out_.begin(), out_.end(), a.key);
    const bool comes_back = ghost != out_.end();
    if (comes_back) out_.erase(ghost);
    if (in_.size() + main_.size() == capacity_) reclaim();
    (comes_back ? main_ : in_).push_front(a.key);
    return false;
  }

 private:
  void reclaim() {
    if (4 * in_.size() > capacity_ || main_.empty()) {
      out_.push_front(in_.back());
      in_.pop_back();
      if (out_.size() > capacity_ / 2) out_.pop_back();
    } else {
      main_.pop_back();
    }
  }
  std::size_t capacity_;
  std::deque<std::uint64_t> in_, main_, out_;
};

struct small_tier {
  std::vector<two_queue::block_state> states{8};
  two_queue policy;
  small_tier() { policy.bind(states); }
  void admit(std::uint32_t i, std::uint64_t key) { policy.admit(i, {.key = key}); }
  void give_back(std::uint32_t i) { policy.admit(i, {.why = block_info::admission::returned}); }
  std::uint32_t evict() {
    const std::uint32_t i = policy.victim();
    policy.evict(i);
    return i;
  }
};

}  // namespace

TEST_CASE("two_queue: equals the paper's procedure to the last miss") {
  CHECK(test::equals_naive<two_queue, naive_two_queue>());
}

TEST_CASE("two_queue: keeps the contract of policies") {
  CHECK(policy_conformance<two_queue>() == std::nullopt);
}

TEST_CASE("two_queue: a hit in A1in does not move the block") {
  small_tier tier;
  for (std::uint32_t i = 0; i < 3; ++i) tier.admit(i, i + 1);
  tier.policy.touch(0, {});
  CHECK(tier.policy.victim() == 0);
  tier.policy.remove(0);
  tier.policy.touch(0, {});
  tier.give_back(0);
  CHECK(tier.policy.victim() == 0);
}

TEST_CASE("two_queue: a key that comes back joins the main queue, a private block never does") {
  for (const std::uint64_t key : {std::uint64_t{7}, std::uint64_t{0}}) {
    small_tier tier;
    tier.admit(0, key);
    for (std::uint32_t i = 1; i < 4; ++i) tier.admit(i, 100 + i);
    REQUIRE(tier.evict() == 0);
    tier.admit(0, key);
    tier.admit(5, 55);
    // Whoever is in A1in goes before the one in Am.
    for (const std::uint32_t expected : {1u, 2u, 3u}) CHECK(tier.evict() == expected);
    CHECK(tier.evict() == (key == 0 ? 0 : 5));
  }
}

TEST_CASE("two_queue: a victim that is pinned and comes back leaves no ghost, one that leaves does") {
  for (const bool leaves : {false, true}) {
    small_tier tier;
    for (std::uint32_t i = 0; i < 4; ++i) tier.admit(i, i + 1);
    REQUIRE(tier.policy.victim() == 0);
    tier.policy.remove(0);  // pinned by the transfer that takes it down, and that fails
    tier.give_back(0);
    CHECK(tier.policy.victim() == 0);
    if (leaves)
      tier.policy.evict(0);
    else
      tier.policy.remove(0);  // its sequence has ended
    tier.admit(4, 1);
    for (const std::uint32_t expected : {1u, 2u, 3u}) CHECK(tier.evict() == expected);
    tier.admit(5, 50);
    CHECK(tier.policy.victim() == (leaves ? 5 : 4));
  }
}

TEST_CASE("two_queue: a pinned block of the main queue keeps its place, and a use renews it") {
  small_tier tier;
  for (std::uint32_t i = 0; i < 4; ++i) tier.admit(i, i + 1);
  tier.evict();
  tier.evict();
  tier.admit(4, 1);
  tier.admit(5, 2);
  tier.evict();
  tier.evict();  // only the main queue is left: 4, 5
  tier.policy.remove(4);
  tier.give_back(4);
  CHECK(tier.policy.victim() == 4);
  tier.policy.remove(4);
  tier.policy.touch(4, {});
  tier.give_back(4);
  CHECK(tier.policy.victim() == 5);
}

TEST_CASE("two_queue: nobody, and one block") {
  small_tier tier;
  CHECK(tier.policy.victim() == index_link::none);
  tier.policy.touch(3, {});
  tier.admit(3, 9);
  CHECK(tier.policy.victim() == 3);
  tier.policy.remove(3);
  CHECK(tier.policy.victim() == index_link::none);
}
