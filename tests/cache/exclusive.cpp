// Tiers that share nothing with tier 0: capacities add up, and blocks still come and go.
#include "small_cache.hpp"

using namespace terrace;

namespace {

cache_options with(inclusion i) {
  cache_options o;
  o.transfers.inclusions[1] = i;
  return o;
}

}  // namespace

TEST_CASE("capacities of exclusive tiers add up, and every block can be read") {
  small_cache<> f(6, 16, with(inclusion::exclusive));
  std::uint32_t blocks = 0;
  while (f.append(1)) ++blocks;
  CHECK(blocks >= 6 + 16 - 2 - 2);  // less the headroom of swaps and the slot that the last reserve lacked
  for (int round = 0; round < 3; ++round)
    for (std::uint32_t i = 0; i < blocks; ++i) {
      CAPTURE(round, i);
      REQUIRE(f.read(i));
    }
  f.settle();
  const cache_stats s = f.cache().stats();
  CHECK(s.tiers[0].resident_bytes + s.tiers[1].resident_bytes == blocks * pattern::block_bytes);
  CHECK(s.dropped == 0);
}

TEST_CASE("the same number of blocks cannot be read back where the tier is inclusive") {
  small_cache<> f(6, 16, with(inclusion::inclusive));
  CHECK(f.append(16));
  f.settle();
  CHECK(f.cache().stats().tiers[1].resident_bytes == 16 * pattern::block_bytes);
}

TEST_CASE("a block is in one of two exclusive tiers; what comes up leaves the tier below") {
  small_cache<> f(4, 12, with(inclusion::exclusive));
  REQUIRE(f.append(8));
  f.settle();
  REQUIRE(f.copy(0, 0) == block_copy::state::absent);
  REQUIRE(f.copy(0, 1) == block_copy::state::resident);
  CHECK(f.read(0));
  CHECK(f.copy(0, 0) == block_copy::state::resident);
  CHECK(f.copy(0, 1) == block_copy::state::absent);
  f.settle();
  for (std::size_t i = 0; i < 8; ++i)
    CHECK((f.copy(i, 0) != block_copy::state::absent) != (f.copy(i, 1) != block_copy::state::absent));
}

TEST_CASE("a block that a prefetch brought stays below until somebody asks for it") {
  small_cache<> f(4, 12, with(inclusion::exclusive));
  REQUIRE(f.append(8));
  f.settle();
  const auto ids = f.ids();
  REQUIRE(f.cache().prefetch(std::span(ids).first(1)) == 1);
  f.settle();
  CHECK(f.copy(0, 0) == block_copy::state::resident);
  CHECK(f.copy(0, 1) == block_copy::state::resident);
  CHECK(f.read(0));
  CHECK(f.copy(0, 1) == block_copy::state::absent);
}

TEST_CASE("nothing is written to an exclusive tier before room is needed; a flush writes it all the same") {
  small_cache<> f(8, 32, with(inclusion::exclusive));
  REQUIRE(f.append(3));
  f.settle();
  CHECK(f.script.writes == 0);
  REQUIRE(f.ctx.sync_wait(f.cache().flush()));
  CHECK(f.script.writes == 3);
  CHECK(f.in_tier_0(0));
}

TEST_CASE("tiers of a size are exclusive by default, a larger one is not") {
  small_cache<> of_a_size(8, 15), larger(8, 16);
  REQUIRE(of_a_size.append(2));
  REQUIRE(larger.append(2));
  of_a_size.settle();
  larger.settle();
  CHECK(of_a_size.script.writes == 0);
  CHECK(larger.script.writes == 2);
}

TEST_CASE("a write that fails on the way down loses nothing") {
  small_cache<> f(4, 12, with(inclusion::exclusive));
  f.script.fail_writes = 1;
  std::uint32_t blocks = 0;
  while (blocks < 7 && f.append(1)) ++blocks;  // while the tier is set aside there may be no room
  f.settle();
  for (std::uint32_t i = 0; i < blocks; ++i) CHECK(f.read(i));
  CHECK(f.cache().stats().tiers[1].failed_stores != 0);
}
