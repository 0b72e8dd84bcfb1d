// Bytes that a medium gives back wrong: the block is lost from there, and never served.
#include <optional>
#include <span>
#include <vector>

#include "catch.hpp"
#include "pattern.hpp"
#include "terrace/codec/q8_0.hpp"
#include "terrace/policy/lru.hpp"
#include "terrace/testing/scripted.hpp"
#include "terrace/tiered_cache.hpp"

using namespace terrace;

namespace {

// Two scripted tiers below one slot or more of RAM; the codec of the farther one may differ.
template <class Near, class Far>
struct ladder {
  using type = tiered_cache<tier<ram>, tier<scripted, Near>, tier<scripted, Far>, lru>;
  explicit ladder(std::size_t near_blocks, std::size_t far_blocks)
      : opened(type::open(ctx, pattern::layout(1), {.capacity = 16 * pattern::block_bytes},
                          {.capacity = near_blocks * pattern::block_bytes, .script = &near},
                          {.capacity = far_blocks * pattern::block_bytes, .script = &far}, {}, tuning())) {
    REQUIRE(opened);
    tokens.emplace(opened->make_sequence());
    for (int i = 0; i < 40; ++i) REQUIRE(pattern::append(*tokens, 16, 1, 1));
    REQUIRE(ctx.sync_wait(opened->flush()));
  }
  static cache_options tuning() {
    cache_options o{.staging_buffers = 4};
    o.transfers.inclusions.fill(inclusion::inclusive);
    return o;
  }
  auto acquire(std::size_t block) {
    const auto ids = pattern::sealed(*tokens, 0);
    return ctx.sync_wait(opened->acquire(std::span(ids).subspan(block, 1)));
  }
  const block_copy& copy(std::size_t block, std::size_t tier) {
    return opened->control().copy(pattern::sealed(*tokens, 0)[block].index, tier);
  }

  context ctx{{.codec_threads = 0}};
  medium_script near, far;
  result<type> opened;
  std::optional<sequence> tokens;
};

}  // namespace

TEMPLATE_TEST_CASE("a flipped bit loses the block, and serves nothing wrong", "", identity, q8_0) {
  ladder<TestType, identity> cache(64, 0);
  REQUIRE_FALSE(cache.copy(0, 0).present());
  cache.near.flip_reads = 1;
  const auto lost = cache.acquire(0);
  REQUIRE_FALSE(lost);
  REQUIRE(lost.error().lost.size() == 1);
  CHECK(lost.error().lost[0].cause.code == errc::corrupt);
  CHECK(cache.opened->stats().tiers[1].lost == 1);
  CHECK_FALSE(cache.copy(0, 1).present());
  // The others are as they were, and the lost one stays lost.
  CHECK_FALSE(cache.acquire(0));
  CHECK(cache.acquire(1));
}

TEST_CASE("what is wrong when it is moved down is lost there and then, and the target is not blamed") {
  ladder<identity, identity> cache(24, 64);
  const std::size_t moved = cache.opened->stats().tiers[2].stores;
  cache.near.flip_reads = 1;
  for (int i = 0; i < 8; ++i) REQUIRE(pattern::append(*cache.tokens, 16, 1, 1));
  REQUIRE(cache.ctx.sync_wait(cache.opened->flush()));
  REQUIRE(cache.near.flip_reads == 0);
  const cache_stats stats = cache.opened->stats();
  CHECK(stats.tiers[1].lost == 1);
  CHECK(stats.tiers[2].stores > moved);
  CHECK(stats.tiers[2].failed_stores == 0);
  CHECK(cache.opened->health(2).healthy);
  unsigned lost = 0;
  const auto ids = pattern::sealed(*cache.tokens, 0);
  for (std::size_t i = 0; i < ids.size(); ++i) {
    const auto held = cache.acquire(i);
    if (held)
      CHECK(pattern::holds(cache.opened->layout().groups[0], (*held)[0].data, 0, i, 1, 16));
    else
      ++lost;
  }
  CHECK(lost == 1);
}

TEST_CASE("a checksum goes with the bytes that move as they are") {
  ladder<identity, identity> cache(8, 64);
  std::size_t checked = 0;
  for (std::size_t i = 0; i < 40; ++i)
    if (cache.copy(i, 2).now() == block_copy::state::resident) {
      CHECK(cache.copy(i, 2).checksum != 0);
      cache.far.flip_reads = 1;
      if (!cache.copy(i, 0).present() && !cache.copy(i, 1).present()) {
        CHECK_FALSE(cache.acquire(i));
        ++checked;
      }
      cache.far.flip_reads = 0;
    }
  CHECK(checked != 0);
}
