// Capacities that change while the cache is at work: blocks leave as they can, and nothing is lost.
#include "small_cache.hpp"
#include "terrace/execution/memory_pressure.hpp"
#include "terrace/medium/nvme.hpp"

using namespace terrace;

namespace {

using three_tiers = tiered_cache<tier<ram>, tier<ram>, tier<nvme>, lru>;
constexpr std::size_t block = pattern::block_bytes;

struct fixture {
  explicit fixture(std::size_t hot, std::size_t warm, std::size_t cool)
      : opened(three_tiers::open(ctx, pattern::layout(1), {.capacity = hot * block},
                                 {.capacity = warm * block}, {.capacity = cool * block})) {
    REQUIRE(opened);
    tokens.emplace(opened->make_sequence());
  }
  void fill(std::uint32_t blocks) {
    for (std::uint32_t i = 0; i < blocks; ++i) REQUIRE(pattern::append(*tokens, 16, 1, 1));
    REQUIRE(ctx.sync_wait(opened->flush()));
  }
  std::size_t resident(std::size_t tier) const { return opened->stats().tiers[tier].resident_bytes / block; }
  void settle() {
    while (opened->stats().pins != 0 && ctx.wait(context::clock::now() + std::chrono::seconds(5))) {
    }
  }
  void check_all() {
    const auto ids = pattern::sealed(*tokens, 0);
    for (std::size_t i = 0; i < ids.size(); ++i) {
      auto held = ctx.sync_wait(opened->acquire(std::span(ids).subspan(i, 1)));
      REQUIRE(held);
      REQUIRE(pattern::holds(opened->layout().groups[0], (*held)[0].data, 0, i, 1, 16));
    }
  }

  context ctx{{.codec_threads = 0}};
  result<three_tiers> opened;
  std::optional<sequence> tokens;
};

}  // namespace

TEST_CASE("tier 0 shrinks at once by what nobody holds, and grows again") {
  fixture f(8, 32, 64);
  f.fill(16);
  REQUIRE(f.resident(0) == 8);
  REQUIRE(f.opened->resize(0, 3 * block));
  CHECK(f.resident(0) == 3);
  CHECK(f.opened->stats().tiers[0].capacity_bytes == 3 * block);
  f.check_all();
  CHECK(f.resident(0) <= 3);
  REQUIRE(f.opened->resize(0, 8 * block));
  f.fill(8);
  CHECK(f.resident(0) == 8);
  f.check_all();
}

TEST_CASE("what is held stays until it is released") {
  fixture f(4, 32, 64);
  f.fill(4);
  auto writing = f.tokens->reserve(16);  // one open slot
  REQUIRE(writing);
  REQUIRE(f.opened->resize(0, block));
  CHECK(f.resident(0) == 1);
  auto more = f.opened->make_sequence();
  const auto none = more.reserve(1);
  REQUIRE_FALSE(none);
  CHECK(none.error().code == errc::out_of_capacity);
  pattern::write(*writing, 1, 1);
  f.tokens->commit(std::move(*writing), 16);
  f.settle();
  CHECK(more.reserve(1));
  f.check_all();
}

TEST_CASE("a tier in the middle hands its blocks down") {
  fixture f(4, 16, 64);
  f.fill(16);
  REQUIRE(f.resident(1) == 16);
  REQUIRE(f.opened->resize(1, 4 * block));
  f.settle();
  CHECK(f.resident(1) == 4);
  CHECK(f.resident(2) == 12);
  f.check_all();
  REQUIRE(f.opened->resize(1, 32 * block));
  f.fill(8);
  f.check_all();
}

TEST_CASE("a tier whose blocks have nowhere to go keeps them") {
  fixture f(2, 8, 8);
  f.fill(14);
  const std::size_t before = f.resident(1) + f.resident(2);
  REQUIRE(f.opened->resize(2, 2 * block));
  f.settle();
  CHECK(f.resident(1) + f.resident(2) == before);
  CHECK(f.opened->stats().dropped == 0);
  f.check_all();
}

TEST_CASE("sizes that cannot be are refused, and nothing has changed") {
  fixture f(4, 8, 8);
  f.fill(4);
  const auto too_small = f.opened->resize(0, block - 1);
  REQUIRE_FALSE(too_small);
  CHECK(too_small.error().code == errc::invalid_argument);
  CHECK_FALSE(f.opened->resize(3, block));
  CHECK(f.opened->stats().tiers[0].capacity_bytes == 4 * block);
  small_cache<> fixed(4, 8);
  const auto unavailable = fixed.cache().resize(1, 4 * block);
  REQUIRE_FALSE(unavailable);
  CHECK(unavailable.error().code == errc::unavailable);
  f.check_all();
}

TEST_CASE("under memory pressure the tiers in RAM become smaller, and the blocks go to the disk") {
  fixture f(8, 16, 64);
  f.fill(16);
  bool pressed = false;
  auto watch = memory_pressure::open(
      f.ctx,
      [&](memory_pressure::level how) {
        REQUIRE(how == memory_pressure::level::full);
        REQUIRE(f.opened->resize(0, 2 * block));
        REQUIRE(f.opened->resize(1, 4 * block));
        pressed = true;
      },
      {.reading = [&]() -> std::optional<memory_pressure::level> { return memory_pressure::level::full; },
       .interval = std::chrono::milliseconds(0)});
  REQUIRE(watch);
  while (!pressed) f.ctx.poll();
  watch->reset();
  f.settle();
  CHECK(f.resident(0) <= 2);
  CHECK(f.resident(1) <= 4);
  f.check_all();
}
