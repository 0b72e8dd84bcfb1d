#include "terrace/cache/acquire.hpp"

#include <optional>

#include "catch.hpp"
#include "pattern.hpp"
#include "small_cache.hpp"
#include "terrace/execution/sync_wait.hpp"
#include "terrace/medium/ram.hpp"
#include "terrace/policy/lru.hpp"
#include "terrace/testing/scripted.hpp"
#include "terrace/tiered_cache.hpp"
#include "watched.hpp"

using namespace terrace;

namespace {

using over_script = tiered_cache<tier<ram>, tier<scripted>, lru>;

// One layer, `slots` slots in tier 0, and a tier below that does what the script says.
struct fixture {
  explicit fixture(std::size_t slots, std::size_t below = 64)
      : cache(over_script::open(ctx, pattern::layout(1), {.capacity = slots * pattern::block_bytes},
                                {.capacity = below * pattern::block_bytes, .script = &script})) {
    REQUIRE(cache);
    tokens.emplace(cache->make_sequence());
  }
  // Blocks that only the lower tier has, but for the last ones.
  std::vector<block_id> fill(std::uint32_t blocks) {
    for (std::uint32_t i = 0; i < blocks; ++i) REQUIRE(pattern::append(*tokens, 16, 1, 1));
    REQUIRE(ctx.sync_wait(cache->flush()));
    return pattern::sealed(*tokens, 0);
  }
  bool right(const lease& held, std::size_t first = 0) {
    for (std::size_t i = 0; i < held.size(); ++i)
      if (!pattern::holds(cache->layout().groups[0], held[i].data, 0, first + i, 1, 16)) return false;
    return true;
  }
  void settle() {
    while (script.in_flight != 0 || !ctx.idle()) {
      script.release_all();
      ctx.poll();
    }
  }

  context ctx{{.codec_threads = 0}};
  medium_script script;
  result<over_script> cache;
  std::optional<sequence> tokens;
};

}  // namespace

TEST_CASE("acquire brings blocks back, and they are what was written") {
  fixture f(4);
  const auto ids = f.fill(20);
  for (std::size_t i = 0; i < ids.size(); i += 3) {
    const auto some = std::span(ids).subspan(i, std::min<std::size_t>(3, ids.size() - i));
    auto held = f.ctx.sync_wait(f.cache->acquire(some));
    REQUIRE(held);
    REQUIRE(held->size() == some.size());
    CHECK(f.right(*held, i));
    CHECK((*held)[0].quality.exact());
  }
  CHECK(f.cache->stats().pins == 0);
}

TEST_CASE("acquiring nothing, and the same block twice") {
  fixture f(4);
  const auto ids = f.fill(8);
  auto none = f.ctx.sync_wait(f.cache->acquire({}));
  REQUIRE(none);
  CHECK(none->empty());
  const std::vector<block_id> twice{ids[0], ids[0], ids[1]};
  auto held = f.ctx.sync_wait(f.cache->acquire(twice));
  REQUIRE(held);
  CHECK((*held)[0].data == (*held)[1].data);
  CHECK(f.cache->stats().pins == 3);
  held->release();
  CHECK(f.cache->stats().pins == 0);
}

TEST_CASE("with every slot pinned, out_of_capacity comes at once") {
  fixture f(3);
  const auto ids = f.fill(9);
  auto held = f.ctx.sync_wait(f.cache->acquire(std::span(ids).first(3)));
  REQUIRE(held);
  watched more(*f.cache, std::span(ids).subspan(4, 1));
  more.operation.start();
  REQUIRE(more.failure);
  CHECK(more.failure->code == errc::out_of_capacity);
  CHECK(more.failure->lost.empty());
  held->release();
  auto again = f.ctx.sync_wait(f.cache->acquire(std::span(ids).subspan(4, 1)));
  CHECK(again);
}

TEST_CASE("an acquire larger than tier 0 is refused, not waited for") {
  fixture f(3);
  const auto ids = f.fill(9);
  auto held = f.ctx.sync_wait(f.cache->acquire(std::span(ids).first(4)));
  REQUIRE_FALSE(held);
  CHECK(held.error().code == errc::out_of_capacity);
  CHECK(f.cache->stats().pins == 0);
}

TEST_CASE("two acquires that together exceed tier 0 never wait for each other") {
  fixture f(4);
  const auto ids = f.fill(12);
  f.script.hold = true;
  watched first(*f.cache, std::span(ids).first(3)), second(*f.cache, std::span(ids).subspan(3, 3));
  first.operation.start();
  second.operation.start();
  CHECK_FALSE(first.done());
  CHECK_FALSE(second.done());
  CHECK(f.cache->stats().pins == 6);  // the second holds nothing: three slots and their sources
  f.script.release_all();
  while (!first.done()) f.ctx.poll();
  REQUIRE(first.held);
  CHECK(f.right(*first.held));
  // Nothing is on its way any more, so the second is told; with the first lease gone it is served.
  REQUIRE(second.failure);
  CHECK(second.failure->code == errc::out_of_capacity);
  first.held.reset();
  f.script.hold = false;
  auto held = f.ctx.sync_wait(f.cache->acquire(std::span(ids).subspan(3, 3)));
  REQUIRE(held);
  CHECK(f.right(*held, 3));
}

TEST_CASE("an acquire that is refused does not take those behind it along") {
  fixture f(4);
  const auto ids = f.fill(12);
  f.script.hold = true;
  watched first(*f.cache, std::span(ids).first(3)), second(*f.cache, std::span(ids).subspan(3, 3)),
      third(*f.cache, std::span(ids).first(1)), fourth(*f.cache, std::span(ids).subspan(1, 2));
  first.operation.start();
  second.operation.start();
  third.operation.start();
  fourth.operation.start();
  f.settle();
  CHECK(first.held);
  REQUIRE(second.failure);
  CHECK(second.failure->code == errc::out_of_capacity);
  REQUIRE(third.held);
  REQUIRE(fourth.held);
  CHECK(f.right(*fourth.held, 1));
}

TEST_CASE("two acquires of one block share its load") {
  fixture f(4);
  const auto ids = f.fill(12);
  f.script.hold = true;
  const unsigned reads = f.script.reads;
  watched first(*f.cache, std::span(ids).first(1)), second(*f.cache, std::span(ids).first(1));
  first.operation.start();
  second.operation.start();
  f.settle();
  REQUIRE(first.held);
  REQUIRE(second.held);
  CHECK(f.script.reads == reads + 1);
  CHECK((*first.held)[0].data == (*second.held)[0].data);
}

TEST_CASE("a block whose only copy is wrong is lost, with its id, its cause and the lease of the others") {
  fixture f(4);
  const auto ids = f.fill(12);
  f.script.flip_reads = 1;
  auto held = f.ctx.sync_wait(f.cache->acquire(std::span(ids).first(3)));
  REQUIRE_FALSE(held);
  const block_error& e = held.error();
  CHECK(e.code == errc::lost);
  REQUIRE(e.lost.size() == 1);
  CHECK(e.lost[0].id == ids[0]);
  CHECK(e.lost[0].cause.code == errc::corrupt);
  REQUIRE(e.rest.size() == 3);
  CHECK(e.rest[0].data == nullptr);
  CHECK(pattern::holds(f.cache->layout().groups[0], e.rest[1].data, 0, 1, 1, 16));
  CHECK(f.cache->stats().tiers[1].lost == 1);
  // It stays lost, at once and without a read.
  const unsigned reads = f.script.reads;
  auto again = f.ctx.sync_wait(f.cache->acquire(std::span(ids).first(1)));
  REQUIRE_FALSE(again);
  CHECK(f.script.reads == reads);
  CHECK(again.error().lost.size() == 1);
}

TEST_CASE("an id of a block that is gone is lost, not another block") {
  fixture f(4);
  const auto ids = f.fill(6);
  f.tokens->release();
  f.fill(6);
  auto held = f.ctx.sync_wait(f.cache->acquire(std::span(ids).first(1)));
  REQUIRE_FALSE(held);
  CHECK(held.error().lost[0].id == ids[0]);
}

TEST_CASE("a stop request gives everything back, wherever it comes") {
  fixture f(4);
  const auto ids = f.fill(12);
  const auto wanted = std::span(ids).first(3);
  f.script.hold = true;

  SECTION("before the start") {
    watched w(*f.cache, wanted);
    w.stop.request_stop();
    w.operation.start();
    CHECK(w.stopped);
  }
  SECTION("while its loads are on their way") {
    watched w(*f.cache, wanted);
    w.operation.start();
    w.stop.request_stop();
    f.ctx.poll();
    CHECK(w.stopped);
    f.settle();
    CHECK(f.cache->stats().tiers[0].resident_bytes <= 4 * pattern::block_bytes);
  }
  SECTION("in line behind another") {
    watched first(*f.cache, wanted), w(*f.cache, std::span(ids).subspan(3, 3));
    first.operation.start();
    w.operation.start();
    w.stop.request_stop();
    f.ctx.poll();
    CHECK(w.stopped);
    f.settle();
    CHECK(first.held);
  }
  SECTION("at the same moment as the completion") {
    watched w(*f.cache, wanted);
    w.operation.start();
    f.script.release_all();
    w.stop.request_stop();  // its task stands in line behind the completions
    f.settle();
    CHECK(w.done());
    CHECK_FALSE(w.failure);
  }
  f.settle();
  f.script.hold = false;
  CHECK(f.cache->stats().pins == 0);
  auto held = f.ctx.sync_wait(f.cache->acquire(wanted));
  REQUIRE(held);
  CHECK(f.right(*held));
}

TEST_CASE("prefetched blocks are counted as that, not as hits") {
  fixture f(6);
  const auto ids = f.fill(20);
  const auto before = f.cache->stats();
  CHECK(f.cache->prefetch(std::span(ids).first(3)) == 3);
  f.settle();
  CHECK(f.cache->prefetch(std::span(ids).first(3)) == 0);  // they are here
  {
    auto held = f.ctx.sync_wait(f.cache->acquire(std::span(ids).first(2)));
    REQUIRE(held);
    CHECK(f.right(*held));
  }
  auto now = f.cache->stats();
  CHECK(now.prefetch.issued - before.prefetch.issued == 3);
  CHECK(now.prefetch.used - before.prefetch.used == 2);
  CHECK(now.prefetch.late == before.prefetch.late);
  CHECK(now.tiers[0].hits == before.tiers[0].hits);
  CHECK(now.misses == before.misses);
  // Used once more, they are hits; the one that nobody asked for is wasted when it leaves.
  REQUIRE(f.ctx.sync_wait(f.cache->acquire(std::span(ids).first(2))));
  CHECK(f.cache->stats().tiers[0].hits == before.tiers[0].hits + 2);
  REQUIRE(f.ctx.sync_wait(f.cache->acquire(std::span(ids).subspan(6, 6))));
  CHECK(f.cache->stats().prefetch.wasted == before.prefetch.wasted + 1);
}

TEST_CASE("a block that is demanded while its prefetch is on its way is late") {
  fixture f(6);
  const auto ids = f.fill(20);
  f.script.hold = true;
  REQUIRE(f.cache->prefetch(std::span(ids).first(1)) == 1);
  watched w(*f.cache, std::span(ids).first(1));
  w.operation.start();
  CHECK_FALSE(w.done());
  f.settle();
  REQUIRE(w.held);
  CHECK(f.cache->stats().prefetch.late == 1);
  CHECK(f.cache->stats().prefetch.used == 1);
}

TEST_CASE("a write that fails leaves the block where it is, and is tried again") {
  fixture f(4);
  f.script.fail_writes = 3;
  REQUIRE(pattern::append(*f.tokens, 48, 1, 1));
  while (f.cache->stats().tiers[1].failed_stores < 3)
    f.ctx.wait(context::clock::now() + std::chrono::seconds(1));
  CHECK_FALSE(f.cache->health(1).healthy);
  CHECK(f.cache->health(1).last.system == ENOSPC);
  CHECK(f.cache->stats().tiers[0].resident_bytes >= 3 * pattern::block_bytes);
  // The tier is left alone for a little while; then the blocks go, and it is healthy again.
  for (std::uint64_t step = 1; !f.cache->health(1).healthy; ++step) {
    f.cache->advance_step(step);
    f.ctx.poll();
  }
  REQUIRE(f.ctx.sync_wait(f.cache->flush()));
  auto held = f.ctx.sync_wait(f.cache->acquire(pattern::sealed(*f.tokens, 0)));
  REQUIRE(held);
  CHECK(f.right(*held));
}

TEST_CASE("a full lower tier keeps blocks in the upper one, and flush says so") {
  fixture f(8, 2);
  for (int i = 0; i < 4; ++i) REQUIRE(pattern::append(*f.tokens, 16, 1, 1));
  auto flushed = f.ctx.sync_wait(f.cache->flush());
  REQUIRE_FALSE(flushed);
  CHECK(flushed.error().code == errc::out_of_capacity);
  auto held = f.ctx.sync_wait(f.cache->acquire(pattern::sealed(*f.tokens, 0)));
  REQUIRE(held);
  CHECK(f.right(*held));
}

TEST_CASE("while a block that was read is checked, the next one is read") {
  cache_options one;
  one.transfers.loads_in_flight = 1;
  small_cache<> f(4, 16, one);
  REQUIRE(f.append(8));
  f.settle();
  const auto ids = f.ids();
  f.script.hold = true;
  f.script.reads = f.script.most_in_flight = 0;
  watched asked(f.cache(), std::span(ids).first(2));
  ex::start(asked.operation);
  f.ctx.poll();
  REQUIRE(f.script.reads == 1);
  f.script.release_all();
  f.ctx.poll();  // it has been read, and its checking has been posted back
  CHECK(f.script.reads == 2);
  CHECK(f.script.most_in_flight == 1);
  CHECK_FALSE(f.in_tier_0(0));
  f.script.hold = false;
  f.settle();
  CHECK(asked.held);
}
