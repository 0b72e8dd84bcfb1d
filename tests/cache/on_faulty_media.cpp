// What a cache does when its media misbehave at an awkward moment; all of it was found by the simulator first.
#include <chrono>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "catch.hpp"
#include "pattern.hpp"
#include "simulator/ladders.hpp"
#include "terrace/codec/q8_0.hpp"
#include "terrace/execution/sync_wait.hpp"
#include "terrace/medium/ram.hpp"
#include "terrace/policy/lru.hpp"
#include "terrace/testing/faulty.hpp"
#include "terrace/testing/isolated.hpp"
#include "terrace/testing/simulation_model.hpp"
#include "terrace/testing/virtual_clock.hpp"
#include "terrace/tiered_cache.hpp"

using namespace terrace;

namespace {

constexpr std::size_t slot = pattern::block_bytes;
const block_key first_name{1, 1}, second_name{2, 2};

// A cache of one layer over two faulty devices that stay, the farther of which keeps.
struct faulty_ladder {
  using type = tiered_cache<tier<ram>, tier<faulty>, tier<faulty>, lru>;

  explicit faulty_ladder(std::size_t slots, std::size_t near_blocks = 16) { open(slots, near_blocks); }
  void open(std::size_t slots, std::size_t near_blocks = 16) {
    cache_options tuning;
    tuning.transfers.inclusions[1] = inclusion::inclusive;
    auto opened = type::open(ctx, pattern::layout(1), {.capacity = slots * slot},
                             {.capacity = near_blocks * slot, .device = &near},
                             {.capacity = 32 * slot, .device = &far, .keep = true}, {}, tuning);
    REQUIRE(opened);
    cache.emplace(std::move(*opened));
    tokens.emplace(cache->make_sequence());
  }
  void close() {
    tokens.reset();
    cache.reset();
  }
  void append(std::uint32_t blocks) {
    for (std::uint32_t i = 0; i < blocks; ++i) REQUIRE(pattern::append(*tokens, 16, 1, 1));
  }
  block_id id(std::size_t block) const { return tokens->pages().rows[0][block]; }
  bool in(std::size_t tier, std::size_t block) {
    return cache->control().copy(id(block).index, tier).now() == block_copy::state::resident;
  }
  bool read(std::size_t block) {
    const block_id wanted = id(block);
    const auto held = ctx.sync_wait(cache->acquire({&wanted, 1}));
    return held && pattern::holds(cache->layout().groups[0], (*held)[0].data, 0, block, 1, 16);
  }
  bool flush() { return ctx.sync_wait(cache->flush()).has_value(); }
  // Until nothing is on its way.
  void settle() {
    near.hold = far.hold = false;
    while (near.in_flight() + far.in_flight() != 0 || !ctx.idle())
      ctx.wait(ctx.now() + std::chrono::hours(1));
  }

  virtual_clock clock;
  context ctx{{.codec_threads = 0, .time = &clock}};
  faulty_device near{64 * slot}, far{64 * slot, 2};
  std::optional<type> cache;
  std::optional<sequence> tokens;
};

}  // namespace

TEST_CASE("a block that a flush is writing to a tier is not written there a second time to make room") {
  faulty_ladder f(8, 4);
  f.append(1);
  f.settle();
  REQUIRE(f.in(1, 0));
  REQUIRE(f.cache->name(f.id(0), first_name));
  f.far.longest = f.far.shortest = std::chrono::seconds(1);
  simulated_flush flush(*f.cache, {});
  flush.start();
  while (f.far.in_flight() == 0) f.ctx.poll();
  f.append(4);  // of which the last needs the room that the first has in the near tier
  CHECK(f.far.seen(device_call::write).begun == 1);
  f.settle();
  CHECK(flush.outcome.has_value());
  std::size_t copies = 0;
  for (std::size_t i = 0; i < 5; ++i) copies += f.in(2, i) ? 1 : 0;
  CHECK(f.cache->stats().tiers[2].resident_bytes == copies * slot);
}

TEST_CASE("what is copied out of a lossy copy is said to be lossy") {
  using lossy = tiered_cache<tier<ram>, tier<ram, q8_0>, lru>;
  context ctx{{.codec_threads = 0}};
  cache_options tuning;
  tuning.transfers.inclusions[1] = inclusion::inclusive;
  auto cache =
      lossy::open(ctx, pattern::layout(1), {.capacity = 8 * slot}, {.capacity = 32 * slot}, {}, tuning);
  REQUIRE(cache);
  sequence s = cache->make_sequence();
  for (int i = 0; i < 20; ++i) REQUIRE(pattern::append(s, 16, 1, 1));
  REQUIRE(ctx.sync_wait(cache->flush()));
  REQUIRE(s.truncate(8));  // inside of the first block, which has left tier 0
  sequence other = cache->fork(s);
  for (sequence* each : {&s, &other}) {
    REQUIRE(pattern::append(*each, 8, 1, 1));
    const block_id id = each->pages().rows[0][0];
    const auto held = ctx.sync_wait(cache->acquire({&id, 1}));
    REQUIRE(held);
    CHECK_FALSE((*held)[0].quality.exact());
  }
}

TEST_CASE("a load that fails while the cache ends ends with it, though another tier has the block") {
  const auto outcome = run_isolated(
      [] {
        faulty_ladder f(4);
        f.append(1);
        REQUIRE(f.cache->name(f.id(0), first_name));
        REQUIRE(f.flush());
        f.append(6);
        f.settle();
        REQUIRE((f.in(1, 0) && f.in(2, 0) && !f.in(0, 0)));
        f.near.script(device_call::read, 0, fault::io_error);
        const block_id id = f.id(0);
        REQUIRE(f.cache->prefetch({&id, 1}) == 1);
        f.close();
        return std::string("closed");
      },
      10);
  CHECK(outcome.said == "closed");
}

TEST_CASE("a copy that cannot be read is not tried again while somebody else has pinned it") {
  const auto outcome = run_isolated(
      [] {
        faulty_ladder f(4);
        f.append(8);
        f.settle();
        REQUIRE((f.in(1, 0) && !f.in(0, 0)));
        REQUIRE(f.cache->name(f.id(0), first_name));
        f.far.longest = f.far.shortest = std::chrono::seconds(1);
        simulated_flush flush(*f.cache, {});
        flush.start();  // reads the near copy, and has it pinned until it is written
        while (f.far.in_flight() == 0) f.ctx.poll();
        f.near.rates.io_error = 1;
        const auto before = f.near.seen(device_call::read).begun;
        CHECK_FALSE(f.read(0));
        CHECK(f.near.seen(device_call::read).begun == before + 1);
        f.settle();
        REQUIRE(f.in(2, 0));
        CHECK(f.read(0));
        return std::string("done");
      },
      10);
  CHECK(outcome.said == "done");
}

TEST_CASE("a name that was forgotten is not found again, though its block stays under another one") {
  faulty_ladder f(8);
  f.append(1);
  REQUIRE(f.cache->name(f.id(0), first_name));
  REQUIRE(f.flush());
  f.cache->forget(first_name);
  REQUIRE(f.cache->name(f.id(0), second_name));
  f.close();
  f.open(8);
  CHECK_FALSE(f.cache->find(first_name));
}

TEST_CASE("a sync makes the name durable that it wrote, not one that was given meanwhile") {
  faulty_ladder f(8);
  f.append(1);
  REQUIRE(f.cache->name(f.id(0), first_name));
  f.far.longest = f.far.shortest = std::chrono::seconds(1);
  simulated_flush flush(*f.cache, {});
  flush.start();
  while (f.far.seen(device_call::sync).begun == 0) f.ctx.wait(f.ctx.now() + std::chrono::seconds(2));
  f.cache->forget(first_name);
  REQUIRE(f.cache->name(f.id(0), second_name));
  f.settle();
  REQUIRE(f.flush());
  f.far.cut_power();
  f.close();
  f.open(8);
  CHECK(f.cache->find(second_name));
  CHECK_FALSE(f.cache->find(first_name));
}

TEST_CASE("a tier may be made smaller while a block is on its way to it that turns out to need less room") {
  using compressed = tiered_cache<tier<ram>, tier<faulty, simulated::padding>, lru>;
  virtual_clock clock;
  context ctx{{.codec_threads = 0, .time = &clock}};
  faulty_device device(64 * slot);
  cache_options tuning;
  tuning.transfers.inclusions[1] = inclusion::inclusive;
  auto cache = compressed::open(ctx, pattern::layout(1), {.capacity = 16 * slot},
                                {.capacity = 32 * slot, .device = &device}, {}, tuning);
  REQUIRE(cache);
  sequence s = cache->make_sequence();
  for (int i = 0; i < 4; ++i) REQUIRE(pattern::append(s, 16, 1, 1));  // encoded by now, and not yet written
  REQUIRE(cache->resize(1, 0));
  while (!ctx.idle()) ctx.wait(ctx.now() + std::chrono::hours(1));
  CHECK(cache->stats().tiers[1].resident_bytes == 0);
  CHECK(cache->stats().pins == 0);
  REQUIRE(cache->resize(1, 32 * slot));
  clock.advance(std::chrono::hours(1));
  REQUIRE(ctx.sync_wait(cache->flush()));
  for (const block_id id : pattern::sealed(s, 0))
    CHECK(cache->control().copy(id.index, 1).now() == block_copy::state::resident);
}
