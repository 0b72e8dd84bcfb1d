#include "terrace/policy/policy.hpp"

#include <cstdlib>
#include <new>
#include <optional>
#include <vector>

#include "catch.hpp"
#include "pattern.hpp"
#include "terrace/execution/sync_wait.hpp"
#include "terrace/medium/ram.hpp"
#include "terrace/policy/attention_weighted.hpp"
#include "terrace/policy/fifo.hpp"
#include "terrace/policy/lru.hpp"
#include "terrace/policy/one_of.hpp"
#include "terrace/policy/prefix_aware.hpp"
#include "terrace/policy/s3_fifo.hpp"
#include "terrace/policy/sieve.hpp"
#include "terrace/policy/step_aware.hpp"
#include "terrace/policy/two_queue.hpp"
#include "terrace/testing/archetypes.hpp"
#include "terrace/testing/policy_conformance.hpp"
#include "terrace/tiered_cache.hpp"

using namespace terrace;

namespace {
std::uint64_t allocations = 0;
std::uint64_t count_allocations() { return allocations; }
}  // namespace

// Not inlined: seen together with a delete-expression, free() looks like a mistake to GCC.
[[gnu::noinline]] void* operator new(std::size_t bytes) {
  ++allocations;
  if (void* p = std::malloc(bytes != 0 ? bytes : 1)) return p;
  std::abort();
}
void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept { return operator new(bytes); }
[[gnu::noinline]] void operator delete(void* p) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete(void* p, std::size_t) noexcept { std::free(p); }

namespace {

// Each is one requirement short of a policy.
struct without_options : policy_archetype {
  using policy_archetype::policy_archetype;

 private:
  using policy_archetype::options;
};
struct cannot_be_made : policy_archetype {
  explicit cannot_be_made(int);
};
struct name_is_no_text : policy_archetype {
  using policy_archetype::policy_archetype;
  static constexpr int name = 2;
};
struct state_is_not_trivial : policy_archetype {
  using policy_archetype::policy_archetype;
  using block_state = std::vector<int>;
  void bind(std::span<block_state>);
};
struct state_is_another : policy_archetype {
  using policy_archetype::policy_archetype;
  using block_state = int;
};
struct admits_without_knowing : policy_archetype {
  using policy_archetype::policy_archetype;
  void admit(std::uint32_t);
};
struct admits_what_it_changes : policy_archetype {
  using policy_archetype::policy_archetype;
  void admit(std::uint32_t, block_info&);
};
struct touches_without_knowing : policy_archetype {
  using policy_archetype::policy_archetype;
  void touch(std::uint32_t);
};
struct removes_the_victim_only : policy_archetype {
  using policy_archetype::policy_archetype;
  void remove();
};
struct victim_is_wide : policy_archetype {
  using policy_archetype::policy_archetype;
  std::uint64_t victim();
};
struct victim_is_optional : policy_archetype {
  using policy_archetype::policy_archetype;
  std::optional<std::uint32_t> victim();
};
struct has_a_clock_of_its_own : policy_archetype {
  using policy_archetype::policy_archetype;
  void advance_step();
};

static_assert(!eviction_policy<int>);
static_assert(!eviction_policy<without_options> && !eviction_policy<cannot_be_made>);
static_assert(!eviction_policy<name_is_no_text>);
static_assert(!eviction_policy<state_is_not_trivial> && !eviction_policy<state_is_another>);
static_assert(!eviction_policy<admits_without_knowing> && !eviction_policy<admits_what_it_changes>);
static_assert(!eviction_policy<touches_without_knowing>);
static_assert(!eviction_policy<removes_the_victim_only>);
static_assert(!eviction_policy<victim_is_wide> && !eviction_policy<victim_is_optional>);
static_assert(!eviction_policy<has_a_clock_of_its_own>);

// Models of the concept that break the contract. The suite must say which sentence.
struct keeps_the_removed : policy_archetype {
  using policy_archetype::policy_archetype;
  std::uint32_t last = index_link::none;
  void admit(std::uint32_t i, const block_info& info) {
    policy_archetype::admit(i, info);
    if (last == index_link::none) last = i;
  }
  std::uint32_t victim() { return last; }
};
struct gives_up : policy_archetype {
  using policy_archetype::policy_archetype;
  unsigned asked = 0;
  std::uint32_t victim() { return ++asked % 1000 == 0 ? index_link::none : policy_archetype::victim(); }
};
struct takes_charge_by_touch : policy_archetype {
  using policy_archetype::policy_archetype;
  std::uint32_t touched = index_link::none;
  void touch(std::uint32_t i, const block_use&) { touched = i; }
  std::uint32_t victim() { return touched != index_link::none ? touched : policy_archetype::victim(); }
};
struct remembers_at_a_price : policy_archetype {
  using policy_archetype::policy_archetype;
  std::vector<std::uint64_t> ghosts;
  void admit(std::uint32_t i, const block_info& info) {
    policy_archetype::admit(i, info);
    ghosts.push_back(info.key);
  }
};

}  // namespace

TEMPLATE_TEST_CASE("a policy keeps its contract", "", fifo, lru, two_queue, s3_fifo, sieve,
                   attention_weighted, step_aware, prefix_aware, (one_of<lru, s3_fifo, prefix_aware>),
                   policy_archetype) {
  for (std::uint32_t seed = 1; seed <= 3; ++seed)
    for (const std::uint32_t blocks : {1u, 2u, 7u, 300u}) {
      CAPTURE(seed, blocks);
      const auto violated = policy_conformance<TestType>(
          {}, {.seed = seed, .blocks = blocks, .allocations = count_allocations});
      INFO(violated.value_or(""));
      CHECK_FALSE(violated);
    }
}

TEST_CASE("the suite names the sentence that a policy breaks") {
  CHECK(policy_conformance<keeps_the_removed>() == "the victim is in charge");
  CHECK(policy_conformance<gives_up>() == "somebody is the victim as long as somebody is in charge");
  CHECK(policy_conformance<takes_charge_by_touch>() == "the victim is in charge");
  CHECK(policy_conformance<remembers_at_a_price>({}, {.allocations = count_allocations}) ==
        "a policy allocates nothing after bind");
}

TEST_CASE("a cache runs by a policy that has nothing but the concept") {
  using cache_type = tiered_cache<tier<ram>, tier<ram>, policy_archetype>;
  constexpr std::size_t block = pattern::block_bytes;
  context ctx;
  auto cache = cache_type::open(ctx, pattern::layout(1), {.capacity = 8 * block}, {.capacity = 64 * block});
  REQUIRE(cache);
  sequence s = cache->make_sequence();
  for (int i = 0; i < 30; ++i) REQUIRE(pattern::append(s, 16, 1, 1));
  const auto ids = pattern::sealed(s, 0);
  for (std::size_t i = 0; i < ids.size(); ++i) {
    auto held = ctx.sync_wait(cache->acquire(std::span(ids).subspan(i, 1)));
    REQUIRE(held);
    CHECK(pattern::holds(cache->layout().groups[0], (*held)[0].data, 0, i, 1, 16));
  }
}
