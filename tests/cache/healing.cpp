// Tiers that fail, in a cache at work: what wants to go down goes elsewhere or stays, nothing is lost, and what heals
// is used again.
#include <optional>
#include <span>
#include <vector>

#include "small_cache.hpp"
#include "terrace/codec/q8_0.hpp"
#include "terrace/testing/virtual_clock.hpp"

using namespace terrace;
using std::chrono::milliseconds;
using state = tier_health::state;
using verdict = cache_health::verdict;

namespace {

cache_options pauses(milliseconds first, unsigned tolerated = 2) {
  cache_options o;
  o.transfers.health.tolerated = tolerated;
  o.transfers.health.first_pause = first;
  o.transfers.health.longest_pause = std::max(first, milliseconds(40));
  return o;
}
constexpr milliseconds at_once{0}, never{std::chrono::hours(1)};
constexpr unsigned always = 1u << 30;

// Two scripted tiers below four slots.
struct two_below {
  using type = tiered_cache<tier<ram>, tier<scripted>, tier<scripted>, lru>;
  two_below(std::size_t near_blocks, std::size_t far_blocks, cache_options tuning)
      : opened(type::open(ctx, pattern::layout(1), {.capacity = 4 * pattern::block_bytes},
                          {.capacity = near_blocks * pattern::block_bytes, .script = &near},
                          {.capacity = far_blocks * pattern::block_bytes, .script = &far}, {}, tuning)) {
    REQUIRE(opened);
    tokens.emplace(opened->make_sequence());
  }
  bool append(int blocks) {
    for (int i = 0; i < blocks; ++i)
      if (!pattern::append(*tokens, 16, 1, 1)) return false;
    return true;
  }
  // Every block is there and right.
  bool whole() {
    const auto ids = pattern::sealed(*tokens, 0);
    for (std::size_t i = 0; i < ids.size(); ++i) {
      const auto held = ctx.sync_wait(opened->acquire(std::span(ids).subspan(i, 1)));
      if (!held || !pattern::holds(opened->layout().groups[0], (*held)[0].data, 0, i, 1, 16)) return false;
    }
    return true;
  }
  void settle() {
    while (near.in_flight + far.in_flight != 0 || !ctx.idle()) {
      near.release_all();
      far.release_all();
      ctx.poll();
    }
  }

  virtual_clock clock;
  context ctx{{.codec_threads = 0, .time = &clock}};
  medium_script near, far;
  result<type> opened;
  std::optional<sequence> tokens;
};

}  // namespace

TEST_CASE("a tier that takes nothing is passed by: blocks go to the next one, and health says so") {
  two_below c(64, 64, pauses(never));
  CHECK(c.opened->health().now == verdict::working);
  c.near.fail_writes = always;
  REQUIRE(c.append(24));
  REQUIRE(c.ctx.sync_wait(c.opened->flush()));
  CHECK(c.near.writes >= 3);
  CHECK(c.near.writes <= 16);  // as many as were under way
  const cache_health health = c.opened->health();
  CHECK(health.now == verdict::degraded);
  REQUIRE(health.tiers.size() == 3);
  CHECK(health.tiers[0].healthy);
  CHECK(health.tiers[1].now == state::set_aside);
  CHECK(health.tiers[1].last.code == errc::io_error);
  CHECK(health.tiers[1].failures == c.near.writes);
  CHECK(health.tiers[1].next_retry > c.ctx.now());
  CHECK(health.tiers[2].healthy);
  CHECK(c.opened->stats().tiers[1].failed_stores == c.near.writes);
  CHECK(c.opened->stats().tiers[2].stores >= 20);
  CHECK(c.whole());
}

TEST_CASE("where nothing takes blocks reserve is refused at once, nothing is dropped, and flush says why") {
  two_below c(64, 64, pauses(never));
  c.near.fail_writes = c.far.fail_writes = always;
  CHECK_FALSE(c.append(24));
  const auto refused = c.tokens->reserve(16);
  REQUIRE_FALSE(refused);
  CHECK(refused.error().code == errc::out_of_capacity);
  CHECK(c.opened->health().now == verdict::failing);
  CHECK(pattern::sealed(*c.tokens, 0).size() >= 3);
  CHECK(c.whole());
  const auto flushed = c.ctx.sync_wait(c.opened->flush());
  REQUIRE_FALSE(flushed);
  CHECK(flushed.error().code == errc::io_error);
  CHECK(flushed.error().system == ENOSPC);
  CHECK(c.opened->stats().dropped == 0);
}

TEST_CASE("a tier that works again is found out by one probe, without anybody asking") {
  small_cache<> f(4, 64, pauses(milliseconds(1), 0));
  f.script.fail_writes = 4 + 4;  // as many as there are slots, and four probes
  f.script.hold = true;
  REQUIRE(f.append(4));
  f.ctx.poll();
  f.script.hold = false;
  f.script.release_all();
  while (f.cache().health(1).times_aside == 0 || !f.cache().health(1).healthy) {
    f.ctx.wait(f.ctx.now() + std::chrono::seconds(10));
    CHECK((f.cache().health(1).healthy || f.script.in_flight <= 1));
  }
  CHECK(f.script.writes >= 4 + 5);
  CHECK(f.cache().health(1).times_aside == 1);
  CHECK(f.cache().health().now == verdict::working);
  REQUIRE(f.append(20));
  REQUIRE(f.ctx.sync_wait(f.cache().flush()));
  for (std::size_t i = 0; i < f.ids().size(); ++i) CHECK(f.read(i));
}

TEST_CASE("while the probe is under way nothing else is stored there") {
  small_cache<> f(4, 64, pauses(at_once, 0));
  f.script.fail_writes = 4;
  f.script.hold = true;
  REQUIRE(f.append(4));
  f.ctx.poll();
  REQUIRE(f.script.in_flight == 4);
  f.script.release_all();
  f.ctx.poll();  // they fail, and one of them is tried again
  f.ctx.poll();
  CHECK(f.cache().health(1).now == state::probing);
  CHECK(f.script.in_flight == 1);
  CHECK_FALSE(f.cache().health(1).healthy);
  f.settle();
  CHECK(f.cache().health(1).healthy);
}

TEST_CASE("a full tier that nothing may leave is passed by") {
  using ladder = tiered_cache<tier<ram>, tier<ram>, tier<scripted>, lru>;
  virtual_clock clock;
  context ctx{{.codec_threads = 0, .time = &clock}};
  medium_script far;
  cache_options tuning;
  tuning.transfers.inclusions.fill(inclusion::inclusive);
  auto cache = ladder::open(ctx, pattern::layout(1), {.capacity = 4 * pattern::block_bytes},
                            {.capacity = 8 * pattern::block_bytes},
                            {.capacity = 256 * pattern::block_bytes, .script = &far}, {}, tuning);
  REQUIRE(cache);
  sequence tokens = cache->make_sequence();
  // What the second tier has, and tier 0 has not, is pinned there, until it is full and cannot make room.
  std::vector<lease> held;
  std::size_t pinned = 0;
  std::vector<block_id> ids;
  while (pinned < 8) {
    REQUIRE(pattern::append(tokens, 16, 1, 1));
    ids = pattern::sealed(tokens, 0);
    REQUIRE(ids.size() < 200);
    for (const block_id& id : ids)  // what is in neither of them drives the new one out of tier 0
      if (!cache->control().copy(id.index, 1).readable()) REQUIRE(ctx.sync_wait(cache->acquire({&id, 1})));
    for (const block_id& id : ids) {
      const block_copy& warm = cache->control().copy(id.index, 1);
      if (!warm.readable() || warm.pins != 0 || cache->control().copy(id.index, 0).present()) continue;
      auto one = ctx.sync_wait(cache->acquire({&id, 1}));
      REQUIRE(one);
      held.push_back(std::move(*one));
      ++pinned;
    }
  }
  for (int i = 0; i < 20; ++i) REQUIRE(pattern::append(tokens, 16, 1, 1));
  CHECK(cache->stats().tiers[2].stores >= 16);
  held.clear();
  ids = pattern::sealed(tokens, 0);
  for (std::size_t i = 0; i < ids.size(); ++i) {
    const auto one = ctx.sync_wait(cache->acquire({&ids[i], 1}));
    REQUIRE(one);
    CHECK(pattern::holds(cache->layout().groups[0], (*one)[0].data, 0, i, 1, 16));
  }
}

TEST_CASE("blocks whose tier is set aside for its writes are still read there") {
  small_cache<> f(6, 64, pauses(never));
  REQUIRE(f.append(12));
  REQUIRE(f.ctx.sync_wait(f.cache().flush()));
  f.script.fail_writes = always;
  REQUIRE(f.append(3));
  f.settle();
  CHECK(f.cache().health(1).now == state::set_aside);
  CHECK(f.cache().health(1).answers);
  for (std::size_t i = 0; i < 15; ++i) CHECK(f.read(i));
  CHECK(f.cache().health(1).now == state::set_aside);
}

TEST_CASE("where reads hang, one acquire waits for its deadline, and those after it are answered at once") {
  cache_options o = pauses(never);
  o.transfers.deadline = milliseconds(5);
  small_cache<> f(6, 64, o);
  REQUIRE(f.append(20));
  f.settle();
  const auto ids = f.ids();
  f.script.hold = true;
  auto held = f.ctx.sync_wait(f.cache().acquire(std::span(ids).first(3)));
  REQUIRE_FALSE(held);
  CHECK(held.error().lost.size() == 3);
  CHECK(f.cache().health(1).now == state::set_aside);
  CHECK_FALSE(f.cache().health(1).answers);
  const unsigned reads = f.script.reads;
  held = f.ctx.sync_wait(f.cache().acquire(std::span(ids).subspan(5, 2)));
  REQUIRE_FALSE(held);
  REQUIRE(held.error().lost.size() == 2);
  CHECK(held.error().lost[0].cause.code == errc::unavailable);
  CHECK(f.cache().prefetch(std::span(ids).subspan(5, 1)) == 0);
  CHECK(f.script.reads == reads);
  // The blocks are where they were: lost for who asked, and for nobody else.
  CHECK(f.copy(5, 1) == block_copy::state::resident);
  f.script.hold = false;
  f.settle();
}

TEST_CASE("reads that hang no more are found out by a probe") {
  cache_options o = pauses(milliseconds(1));
  o.transfers.deadline = milliseconds(5);
  small_cache<> f(6, 64, o);
  REQUIRE(f.append(20));
  f.settle();
  const auto ids = f.ids();
  f.script.hold = true;
  REQUIRE_FALSE(f.ctx.sync_wait(f.cache().acquire(std::span(ids).first(3))));
  REQUIRE_FALSE(f.cache().health(1).answers);
  f.script.hold = false;
  f.settle();
  while (!f.read(0)) f.ctx.wait(f.ctx.now() + milliseconds(1));
  CHECK(f.cache().health(1).answers);
  for (std::size_t i = 0; i < ids.size(); ++i) CHECK(f.read(i));
}

TEST_CASE("a tier that hangs does not stop the others") {
  cache_options o = pauses(milliseconds(1));
  o.transfers.deadline = milliseconds(5);
  o.transfers.loads_in_flight = 2;
  o.transfers.stores_in_flight = 2;
  two_below c(64, 64, o);
  c.near.hold = true;  // whatever goes there hangs
  REQUIRE(c.append(3));
  while (c.opened->health(1).now == state::working) c.ctx.wait(c.ctx.now() + std::chrono::seconds(1));
  REQUIRE(c.append(24));
  CHECK(c.near.writes <= 2);  // and no probe before they have ended
  CHECK(c.opened->stats().tiers[2].stores >= 20);
  CHECK(c.opened->health(1).now == state::set_aside);
  CHECK(c.opened->health(2).healthy);
  CHECK(c.whole());
  c.near.hold = false;
  c.settle();
  while (!c.opened->health(1).healthy) {
    REQUIRE(c.append(1));
    c.ctx.wait(c.ctx.now() + milliseconds(1));
  }
  CHECK(c.whole());
}

TEST_CASE("who finds no staging in time is answered, and its tier is not blamed") {
  cache_options o;
  o.transfers.deadline = milliseconds(300);
  o.staging_buffers = 2;
  using ladder = tiered_cache<tier<ram>, tier<scripted, q8_0>, lru>;
  virtual_clock clock;
  context ctx{{.codec_threads = 0, .time = &clock}};
  medium_script script;
  auto cache = ladder::open(ctx, pattern::layout(1), {.capacity = 24 * pattern::block_bytes},
                            {.capacity = 64 * pattern::block_bytes, .script = &script}, {}, o);
  REQUIRE(cache);
  std::optional<sequence> tokens(cache->make_sequence());
  for (int i = 0; i < 60; ++i) REQUIRE(pattern::append(*tokens, 16, 1, 1));
  REQUIRE(ctx.sync_wait(cache->flush()));
  script.hold = true;
  const auto ids = pattern::sealed(*tokens, 0);
  const auto held = ctx.sync_wait(cache->acquire(std::span(ids).first(6)));
  REQUIRE_FALSE(held);
  CHECK(held.error().lost.size() == 6);
  CHECK(script.in_flight == 2);
  CHECK(cache->health(1).failures == 2);
  CHECK(cache->health(1).answers);
  CHECK(cache->stats().pins == 2);
  script.hold = false;
  script.release_all();
  while (cache->stats().pins != 0) ctx.poll();
  for (const block_id& id : ids) CHECK(ctx.sync_wait(cache->acquire({&id, 1})));
}
