#include "terrace/cache/hints.hpp"

#include "small_cache.hpp"

using namespace terrace;
using verdict = hint_outcome::verdict;

namespace {

// Eight blocks below, four of them in tier 0 as well: 4 to 7, which LRU would give up in that order.
struct fixture : small_cache<> {
  fixture() : small_cache(4, 32) {
    REQUIRE(append(8));
    settle();
    for (std::size_t i = 4; i < 8; ++i) REQUIRE(read(i));
    for (std::size_t i = 4; i < 8; ++i) REQUIRE(in_tier_0(i));
  }
  hint_outcome hint(std::uint64_t first_block, std::uint64_t last_block, const terrace::hint& h) {
    return tokens->hint(first_block * 16, last_block * 16, h);
  }
};

}  // namespace

TEST_CASE("hot blocks leave after all others, evictable ones before") {
  fixture f;
  CHECK(f.hint(4, 5, hint::hot()).what == verdict::accepted);
  CHECK(f.hint(7, 8, hint::evictable()).what == verdict::accepted);
  REQUIRE(f.read(0));
  CHECK_FALSE(f.in_tier_0(7));
  REQUIRE(f.read(1));
  CHECK_FALSE(f.in_tier_0(5));
  REQUIRE(f.read(2));
  CHECK_FALSE(f.in_tier_0(6));
  REQUIRE(f.read(3));
  CHECK(f.in_tier_0(4));
}

TEST_CASE("when only hot blocks are left, they leave") {
  fixture f;
  CHECK(f.hint(4, 6, hint::hot()).what == verdict::accepted);
  const auto ids = f.ids();
  auto held = f.ctx.sync_wait(f.cache().acquire(std::span(ids).first(3)));
  REQUIRE(held);
  CHECK_FALSE(f.in_tier_0(4));
  CHECK(f.in_tier_0(5));
}

TEST_CASE("priorities say the same in numbers, and 0 takes it back") {
  fixture f;
  CHECK(f.hint(4, 5, hint::priority(3)).what == verdict::accepted);
  CHECK(f.hint(6, 7, hint::priority(-1)).what == verdict::accepted);
  CHECK(f.hint(4, 5, hint::priority(0)).what == verdict::accepted);
  REQUIRE(f.read(0));
  CHECK_FALSE(f.in_tier_0(6));
  REQUIRE(f.read(1));
  CHECK_FALSE(f.in_tier_0(5));  // 4 was admitted anew when its standing changed
}

TEST_CASE("hot blocks take at most half of tier 0: the rest of the range is clipped") {
  fixture f;
  const hint_outcome all = f.hint(0, 8, hint::hot());
  CHECK(all.what == verdict::clipped);
  CHECK(all.blocks == 2);
  CHECK(std::string_view(all.reason) == "hot blocks may take at most half of tier 0");
  const hint_outcome more = f.hint(4, 5, hint::hot());
  CHECK(more.what == verdict::rejected);
  CHECK(f.hint(0, 2, hint::priority(0)).what == verdict::accepted);
  CHECK(f.hint(4, 5, hint::hot()).what == verdict::accepted);
}

TEST_CASE("what lies partly in the range, or is not sealed, is clipped; nothing at all is rejected") {
  fixture f;
  REQUIRE(pattern::append(*f.tokens, 5, 1, 1));
  CHECK(f.tokens->hint(0, 8 * 16 + 5, hint::evictable()).what == verdict::clipped);
  CHECK(f.tokens->hint(8, 40, hint::evictable()).blocks == 1);
  CHECK(f.tokens->hint(8, 40, hint::evictable()).what == verdict::clipped);
  CHECK(f.tokens->hint(3, 15, hint::evictable()).what == verdict::rejected);
  CHECK(f.tokens->hint(8 * 16, 8 * 16 + 5, hint::evictable()).what == verdict::rejected);
  CHECK(f.tokens->hint(16, 16, hint::hot()).what == verdict::rejected);
  const hint_stats counted = f.cache().stats().hints;
  CHECK(counted.rejected == 3);
  CHECK(counted.accepted + counted.clipped == 3);
}

TEST_CASE("a ttl makes blocks evictable when its step begins") {
  fixture f;
  f.cache().advance_step(1);
  CHECK(f.hint(7, 8, hint::ttl(1)).what == verdict::rejected);
  CHECK(f.hint(7, 8, hint::ttl(3)).what == verdict::accepted);
  f.cache().advance_step(2);
  REQUIRE(f.read(0));
  CHECK(f.in_tier_0(7));
  CHECK_FALSE(f.in_tier_0(4));
  f.cache().advance_step(3);
  REQUIRE(f.read(1));
  CHECK_FALSE(f.in_tier_0(7));
}

TEST_CASE("a ttl that a later hint has replaced does nothing at its step") {
  for (const hint& later : {hint::ttl(20), hint::hot(), hint::priority(0)}) {
    fixture f;
    f.cache().advance_step(1);
    CHECK(f.hint(7, 8, hint::ttl(3)).what == verdict::accepted);
    CHECK(f.hint(7, 8, later).what == verdict::accepted);
    f.cache().advance_step(3);
    REQUIRE(f.read(0));
    CHECK(f.in_tier_0(7));
    CHECK_FALSE(f.in_tier_0(4));
  }
  // The other way round, what was evictable matters until then.
  fixture f;
  f.cache().advance_step(1);
  CHECK(f.hint(7, 8, hint::evictable()).what == verdict::accepted);
  CHECK(f.hint(7, 8, hint::ttl(3)).what == verdict::accepted);
  REQUIRE(f.read(0));
  CHECK(f.in_tier_0(7));
  f.cache().advance_step(3);
  REQUIRE(f.read(1));
  CHECK_FALSE(f.in_tier_0(7));
}

TEST_CASE("a block that is wanted at a step is there when the step begins, and counts as a prefetch") {
  fixture f;
  f.cache().advance_step(1);
  REQUIRE(f.hint(0, 2, hint::prefetchable(4)).what == verdict::accepted);
  f.cache().advance_step(2);
  f.settle();
  CHECK_FALSE(f.in_tier_0(0));
  f.cache().advance_step(3);
  f.settle();
  CHECK(f.in_tier_0(0));
  CHECK(f.in_tier_0(1));
  const std::uint64_t hits = f.cache().stats().tiers[0].hits;
  REQUIRE(f.read(0));
  CHECK(f.cache().stats().prefetch.used == 1);
  CHECK(f.cache().stats().tiers[0].hits == hits);
}

TEST_CASE("a prefetch that finds no room until its step is counted as expired") {
  fixture f;
  const auto ids = f.ids();
  auto held = f.ctx.sync_wait(f.cache().acquire(std::span(ids).subspan(4, 4)));
  REQUIRE(held);
  f.cache().advance_step(1);
  REQUIRE(f.hint(0, 1, hint::prefetchable(3)).what == verdict::accepted);
  f.cache().advance_step(2);
  f.settle();
  CHECK(f.cache().stats().hints.expired == 0);
  f.cache().advance_step(3);
  f.settle();
  CHECK(f.cache().stats().hints.expired == 1);
  held->release();
  f.settle();
  CHECK_FALSE(f.in_tier_0(0));
}

TEST_CASE("a hint for a block that is gone does nothing when its step comes") {
  fixture f;
  REQUIRE(f.hint(0, 8, hint::prefetchable(3)).what == verdict::accepted);
  REQUIRE(f.hint(0, 8, hint::ttl(3)).what == verdict::accepted);
  f.tokens->release();
  f.cache().advance_step(2);
  f.cache().advance_step(3);
  f.settle();
  CHECK(f.cache().stats().blocks == 0);
  CHECK(f.cache().stats().pins == 0);
}

TEST_CASE("a range at the end of all numbers names no block") {
  small_cache<> f(6, 64);
  REQUIRE(f.append(4));
  constexpr std::uint64_t last = ~std::uint64_t{0};
  const hint_outcome outcome = f.tokens->hint(last - 5, last, hint::evictable());
  CHECK(outcome.blocks == 0);
  f.tokens->forget(last - 5, last);
  for (const block_id id : f.ids()) CHECK(id.valid());
}
