#include "terrace/policy/s3_fifo.hpp"

#include <algorithm>
#include <deque>
#include <vector>

#include "catch.hpp"
#include "policy/simulated_cache.hpp"
#include "terrace/testing/policy_conformance.hpp"

using namespace terrace;

namespace {

// The paper's procedure (algorithm 1), over plain containers: newest first.
class naive_s3_fifo {
 public:
  explicit naive_s3_fifo(std::uint32_t capacity) : capacity_(capacity) {}
  void advance_step(std::uint64_t) {}
  bool operator()(const test::trace_access& a) {
    for (auto* queue : {&small_, &main_})
      for (entry& e : *queue)
        if (e.key == a.key) {
          e.uses = std::min(e.uses + 1, 3);
          return true;
        }
    const auto ghost = std::find(ghosts_.begin(), ghosts_.end(), a.key);
    const bool comes_back = ghost != ghosts_.end();
    if (comes_back) ghosts_.erase(ghost);
    if (small_.size() + main_.size() == capacity_) make_room();
    (comes_back ? main_ : small_).push_front({a.key, 0});
    return false;
  }

 private:
  struct entry {
    std::uint64_t key;
    int uses;
  };
  void make_room() {
    for (;;) {
      if (main_.empty() || (!small_.empty() && 10 * small_.size() >= capacity_)) {
        const entry e = small_.back();
        small_.pop_back();
        if (e.uses < 2) {
          ghosts_.push_front(e.key);
          if (ghosts_.size() > capacity_ * 9 / 10) ghosts_.pop_back();
          return;
        }
        main_.push_front({e.key, 0});
      } else {
        const entry e = main_.back();
        main_.pop_back();
        if (e.uses == 0) return;
        main_.push_front({e.key, e.uses - 1});
      }
    }
  }
  std::size_t capacity_;
  std::deque<entry> small_, main_;
  std::deque<std::uint64_t> ghosts_;
};

struct small_tier {
  std::vector<s3_fifo::block_state> states{12};
  s3_fifo policy;
  explicit small_tier(std::uint32_t blocks, s3_fifo::options o = {}) : policy(o) {
    policy.bind(states);
    for (std::uint32_t i = 0; i < blocks; ++i) policy.admit(i, {.key = i + 1});
  }
  void use_pinned(std::uint32_t i) {
    policy.remove(i);
    policy.touch(i, {});
    policy.admit(i, {.why = block_info::admission::returned});
  }
  std::uint32_t evict() {
    const std::uint32_t i = policy.victim();
    policy.evict(i);
    return i;
  }
};

}  // namespace

TEST_CASE("s3_fifo: equals the paper's procedure to the last miss") {
  CHECK(test::equals_naive<s3_fifo, naive_s3_fifo>());
}

TEST_CASE("s3_fifo: keeps the contract of policies") {
  CHECK(policy_conformance<s3_fifo>() == std::nullopt);
  CHECK(policy_conformance<s3_fifo>({.small = 0.5, .promotion_uses = 1}) == std::nullopt);
}

TEST_CASE("s3_fifo: two uses lead to the main queue, uses there to further rounds") {
  small_tier tier(4);
  tier.use_pinned(1);
  tier.use_pinned(1);
  tier.use_pinned(0);
  CHECK(tier.evict() == 0);  // one use is not enough
  CHECK(tier.evict() == 2);
  CHECK(tier.policy.victim() == 3);
  CHECK(tier.policy.victim() == 3);  // asking twice changes nothing
  tier.policy.remove(3);
  CHECK(tier.evict() == 1);
  CHECK(tier.policy.victim() == index_link::none);
}

TEST_CASE("s3_fifo: what comes back enters the main queue, a private block never does") {
  for (const std::uint64_t key : {std::uint64_t{7}, std::uint64_t{0}}) {
    small_tier tier(0);
    tier.policy.admit(0, {.key = key});
    for (std::uint32_t i = 1; i < 4; ++i) tier.policy.admit(i, {.key = 100 + i});
    REQUIRE(tier.evict() == 0);
    tier.policy.admit(0, {.key = key});
    tier.policy.admit(5, {.key = 55});
    for (const std::uint32_t expected : {1u, 2u, 3u}) CHECK(tier.evict() == expected);
    CHECK(tier.evict() == (key == 0 ? 0 : 5));
  }
}

TEST_CASE(
    "s3_fifo: a victim that is pinned and comes back keeps its place, and leaves a ghost when it leaves") {
  small_tier tier(4);
  REQUIRE(tier.policy.victim() == 0);
  tier.policy.remove(0);
  tier.policy.admit(0, {.why = block_info::admission::returned});
  CHECK(tier.evict() == 0);
  tier.policy.admit(4, {.key = 1});
  tier.policy.admit(5, {.key = 50});
  for (const std::uint32_t expected : {1u, 2u, 3u, 5u, 4u}) CHECK(tier.evict() == expected);
}

TEST_CASE("s3_fifo: an index that is recycled inherits nothing") {
  small_tier tier(3);
  tier.use_pinned(0);
  tier.use_pinned(0);
  tier.policy.remove(0);  // its sequence has ended
  tier.policy.admit(0, {.key = 9});
  for (const std::uint32_t expected : {1u, 2u, 0u}) CHECK(tier.evict() == expected);
}
