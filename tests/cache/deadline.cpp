// Transfers that hang: who waits is told in time, and what the device may still write is touched by nobody.
#include <chrono>
#include <optional>
#include <span>
#include <utility>

#include "small_cache.hpp"

using namespace terrace;
using std::chrono::milliseconds;

namespace {

cache_options patience(milliseconds deadline) {
  cache_options o;
  o.transfers.deadline = deadline;
  return o;
}

// What became of an acquire that nobody waits for in wait().
struct outcome {
  struct receiver {
    using receiver_concept = ex::receiver_t;
    outcome* to;
    void set_value(lease blocks) noexcept { to->held.emplace(std::move(blocks)); }
    void set_error(block_error e) noexcept { to->why.emplace(std::move(e)); }
    void set_stopped() noexcept { to->stopped = true; }
    ex::env<> get_env() const noexcept { return {}; }
  };
  bool ended() const noexcept { return held.has_value() || why.has_value() || stopped; }

  std::optional<lease> held;
  std::optional<block_error> why;
  bool stopped = false;
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
  const milliseconds deadline(8);
  small_cache<> f(4, 16, patience(deadline));
  REQUIRE(f.append(8));
  f.settle();
  const auto ids = f.ids();
  f.script.hold = true;
  outcome told;
  auto asked = ex::connect(f.cache().acquire(std::span(ids).first(1)), outcome::receiver{&told});
  ex::start(asked);
  f.ctx.poll();

  f.clock.advance(std::chrono::hours(1));
  f.ctx.poll();
  CHECK_FALSE(told.ended());  // it has been looked for once
  f.script.hold = false;
  f.script.release_all();
  while (!told.ended() && f.ctx.poll() != 0) {
  }
  REQUIRE(told.held);
  CHECK(f.cache().health(1).failures == 0);
}

TEST_CASE("an owner that comes by seldom is told of what hangs all the same") {
  const milliseconds deadline(8);
  small_cache<> f(4, 16, patience(deadline));
  REQUIRE(f.append(8));
  f.settle();
  const auto ids = f.ids();
  f.script.hold = true;
  outcome told;
  auto asked = ex::connect(f.cache().acquire(std::span(ids).first(1)), outcome::receiver{&told});
  ex::start(asked);
  int looks = 0;
  for (; !told.ended() && looks < 10; ++looks) {
    f.clock.advance(std::chrono::hours(1));
    f.ctx.poll();
  }
  CHECK(looks == 4);
  REQUIRE(told.why);
  CHECK(told.why->lost.at(0).cause.code == errc::deadline);
  f.script.hold = false;
  f.settle();
}

TEST_CASE("a wait for what hangs ends at the deadline, no later") {
  const milliseconds deadline(8);
  small_cache<> f(4, 16, patience(deadline));
  REQUIRE(f.append(8));
  f.settle();
  const auto ids = f.ids();
  f.script.hold = true;
  const auto asked_at = f.clock.now();
  REQUIRE_FALSE(f.ctx.sync_wait(f.cache().acquire(std::span(ids).first(1))));
  CHECK(f.clock.now() == asked_at + deadline);
  f.script.hold = false;
  f.settle();
}
