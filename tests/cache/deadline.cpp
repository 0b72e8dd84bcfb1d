// Transfers that hang: who waits is told in time, and what the device may still write is touched by nobody.
#include <chrono>
#include <span>
#include <vector>

#include "small_cache.hpp"
#include "watched.hpp"

using namespace terrace;
using std::chrono::milliseconds;

namespace {

cache_options patience(milliseconds deadline) {
  cache_options o;
  o.transfers.deadline = deadline;
  return o;
}

// Eight blocks, of which the first four are below tier 0, where reads hang until they are released.
struct hung_reads : small_cache<> {
  static constexpr milliseconds deadline{8};
  hung_reads() : small_cache<>(4, 16, patience(deadline)) {
    REQUIRE(append(8));
    settle();
    all = ids();
    script.hold = true;
  }
  std::span<const block_id> first() const { return std::span(all).first(1); }

  std::vector<block_id> all;
};

}  // namespace

TEST_CASE("an acquire whose read hangs is told so; the slot is in quarantine until the read ends") {
  small_cache<> f(4, 16, patience(milliseconds(5)));
  REQUIRE(f.append(8));
  f.settle();
  const auto ids = f.ids();
  REQUIRE_FALSE(f.in_tier_0(0));
  const std::size_t before = f.cache().stats().tiers[0].resident_bytes;

  f.script.hold = true;
  auto held =
      f.ctx.sync_wait(f.cache().acquire(std::span(ids).first(1)));  // sleeps until the deadline, no longer
  REQUIRE_FALSE(held);
  REQUIRE(held.error().lost.size() == 1);
  CHECK(held.error().lost[0].id == ids[0]);
  CHECK(held.error().lost[0].cause.code == errc::deadline);
  CHECK(f.copy(0, 0) == block_copy::state::absent);
  CHECK(f.cache().health(1).failures == 1);
  CHECK(f.cache().stats().pins == 1);  // the transfer's, on its source
  CHECK(f.cache().stats().tiers[0].resident_bytes == before);

  // Nobody gets the slot meanwhile: three are left.
  f.script.hold = false;
  auto three = f.ctx.sync_wait(f.cache().acquire(std::span(ids).subspan(1, 3)));
  REQUIRE(three);
  auto fourth = f.ctx.sync_wait(f.cache().acquire(std::span(ids).subspan(4, 1)));
  REQUIRE_FALSE(fourth);
  CHECK(fourth.error().code == errc::out_of_capacity);

  f.script.release_all();
  f.settle();
  CHECK(f.cache().stats().pins == 3);
  CHECK(f.read(0));  // the slot is back, and the block was never lost
}

TEST_CASE("a write that hangs leaves the block where it is") {
  small_cache<> f(4, 16, patience(milliseconds(0)));
  f.script.hold = true;
  REQUIRE(f.append(1));
  f.ctx.poll();
  CHECK(f.cache().stats().tiers[1].failed_stores == 1);
  CHECK_FALSE(f.cache().health(1).healthy);
  CHECK(f.cache().health(1).last.code == errc::deadline);
  CHECK(f.copy(0, 1) == block_copy::state::absent);
  CHECK(f.in_tier_0(0));
  f.script.hold = false;
  f.script.release_all();
  f.settle();
  CHECK(f.cache().stats().pins == 0);
  CHECK(f.read(0));
}

TEST_CASE("a sequence may end while its blocks' transfers are in quarantine") {
  small_cache<> f(4, 16, patience(milliseconds(5)));
  REQUIRE(f.append(8));
  f.settle();
  f.script.hold = true;
  const auto ids = f.ids();
  REQUIRE_FALSE(f.ctx.sync_wait(f.cache().acquire(std::span(ids).first(2))));
  f.tokens->release();
  CHECK(f.cache().stats().blocks == 2);
  f.script.hold = false;
  f.settle();
  CHECK(f.cache().stats().blocks == 0);
  CHECK(f.cache().stats().tiers[0].resident_bytes == 0);
  CHECK(f.cache().stats().tiers[1].resident_bytes == 0);
}

TEST_CASE("when every transfer hangs, those in line are told too") {
  cache_options few = patience(milliseconds(5));
  few.transfers.loads_in_flight = 1;
  small_cache<> f(4, 16, few);
  REQUIRE(f.append(8));
  f.settle();
  const auto ids = f.ids();
  f.script.hold = true;
  auto held = f.ctx.sync_wait(f.cache().acquire(std::span(ids).first(3)));
  REQUIRE_FALSE(held);
  REQUIRE(held.error().lost.size() == 3);
  CHECK(held.error().lost[0].cause.code == errc::deadline);
  CHECK(held.error().lost[1].cause.code == errc::deadline);  // as many again as are in flight may hang
  CHECK(held.error().lost[2].cause.code == errc::unavailable);
  f.script.hold = false;
  f.settle();
  for (std::size_t i = 0; i < ids.size(); ++i) CHECK(f.read(i));
}

TEST_CASE("an owner that was away finds what arrived, not what is late") {
  hung_reads f;
  watched asked(f.cache(), f.first());
  ex::start(asked.operation);
  f.ctx.poll();

  f.clock.advance(std::chrono::hours(1));
  f.ctx.poll();
  CHECK_FALSE(asked.done());  // it has been looked for once
  f.script.hold = false;
  f.script.release_all();
  while (!asked.done() && f.ctx.poll() != 0) {
  }
  REQUIRE(asked.held);
  CHECK(f.cache().health(1).failures == 0);
}

TEST_CASE("an owner that comes by seldom is told of what hangs all the same") {
  hung_reads f;
  watched asked(f.cache(), f.first());
  ex::start(asked.operation);
  int looks = 0;
  for (; !asked.done() && looks < 10; ++looks) {
    f.clock.advance(std::chrono::hours(1));
    f.ctx.poll();
  }
  CHECK(looks == 4);
  REQUIRE(asked.failure);
  CHECK(asked.failure->lost.at(0).cause.code == errc::deadline);
  f.script.hold = false;
  f.settle();
}

TEST_CASE("a wait for what hangs ends at the deadline, no later") {
  hung_reads f;
  const auto asked_at = f.clock.now();
  REQUIRE_FALSE(f.ctx.sync_wait(f.cache().acquire(f.first())));
  CHECK(f.clock.now() == asked_at + f.deadline);
  f.script.hold = false;
  f.settle();
}
