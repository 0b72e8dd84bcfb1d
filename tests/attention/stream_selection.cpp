// Streams that read a selection of blocks.
#include <cstdint>
#include <span>
#include <vector>

#include "attention/stream_fixture.hpp"
#include "catch.hpp"
#include "pattern.hpp"
#include "terrace/attention/stream.hpp"
#include "terrace/execution/sync_wait.hpp"
#include "terrace/medium/ram.hpp"
#include "terrace/policy/lru.hpp"
#include "terrace/testing/scripted.hpp"
#include "terrace/tiered_cache.hpp"

using namespace terrace;
using namespace stream_test;

TEST_CASE("a stream over a selection reads the chosen blocks and the open ones, and nothing else") {
  context ctx;
  constexpr std::uint32_t length = 680, sealed = length / 16;
  auto cache =
      ladder::open(ctx, pattern::layout(layers), {.capacity = 20 * pattern::block_bytes},
                   {.capacity = 10 * pattern::block_bytes}, {.capacity = 200 * pattern::block_bytes});
  REQUIRE(cache);
  sequence s = cache->make_sequence();
  for (std::uint32_t i = 0; i < length / 17; ++i) REQUIRE(pattern::append(s, 17, layers, 3));
  auto r = s.reserve(3);
  REQUIRE(r);
  pattern::write(*r, layers, 3);
  const auto q = queries(3, 7);
  const auto attend = [&](stream_options o) {
    std::vector<float> out(q.size());
    REQUIRE(ctx.sync_wait(stream(*cache, s, *r, 1, q, out, o)));
    return out;
  };
  std::vector<std::uint32_t> all(sealed), some;
  for (std::uint32_t b = 0; b < sealed; ++b) all[b] = b;
  CHECK(attend({.only = all}) == attend({}));

  std::mt19937 random(11);
  for (const unsigned of_ten : {0u, 1u, 5u, 9u}) {
    CAPTURE(of_ten);
    some.clear();
    std::vector<bool> left_out(std::size_t{sealed} * 16, true);
    for (std::uint32_t b = 0; b < sealed; ++b) {
      if (random() % 10 >= of_ten) continue;
      some.push_back(b);
      std::fill_n(left_out.begin() + b * 16, 16, false);
    }
    const auto want = reference(3, 1, q, length, {}, 0, left_out);
    CHECK(rel_l2(attend({.only = some}), want) < 1e-5);
    // Once more after a stream over everything: no other blocks are asked for.
    cache->use({});
    attend({});
    const auto touched = [&] {
      std::uint64_t n = cache->stats().misses;
      for (const auto& tier : cache->stats().tiers) n += tier.hits;
      return n;
    };
    const auto before = touched();
    CHECK(rel_l2(attend({.only = some}), want) < 1e-5);
    CHECK(touched() - before <= some.size());
  }
}

TEST_CASE("a selection may name blocks that a window hides, and no others than sealed ones, ascending") {
  context ctx;
  kv_layout layout = pattern::layout(layers);
  layout.groups[0].keep = {.window = 40, .sinks = 4};
  auto cache = resident::open(ctx, layout, {.capacity = 64 * pattern::block_bytes});
  REQUIRE(cache);
  sequence s = cache->make_sequence();
  REQUIRE(pattern::append(s, 200, layers, 4));
  auto r = s.reserve(1);
  REQUIRE(r);
  pattern::write(*r, layers, 4);
  const auto q = queries(1, 9);
  std::vector<float> out(q.size());
  const auto with = [&](const std::vector<std::uint32_t>& only) {
    return ctx.sync_wait(stream(*cache, s, *r, 1, q, out, {.only = only}));
  };
  REQUIRE(with({0, 5, 11}));  // the sinks, one that is hidden, one of the window; not the tenth
  std::vector<bool> left_out(176, false);
  std::fill(left_out.begin() + 160, left_out.end(), true);
  CHECK(rel_l2(out, reference(4, 1, q, 200, {40, 4}, 0, left_out)) < 1e-5);
  for (const std::vector<std::uint32_t>& bad :
       {std::vector<std::uint32_t>{12}, {3, 3}, {4, 3}, {1, 4000000000u}}) {
    auto refused = with(bad);
    REQUIRE_FALSE(refused);
    CHECK(refused.error().code == errc::invalid_argument);
  }
}

namespace {
// Notes what it is told.
struct told {
  static constexpr std::string_view name = "told";
  struct notes {
    std::vector<row_use> uses;
    std::vector<float> shares;
  };
  notes* to;
  void observe(const row_use& use) { to->uses.push_back(use); }
  std::size_t suggest(std::span<prefetch_wish>) { return 0; }
  void attended(const row_use&, std::span<const float> shares) {
    to->shares.assign(shares.begin(), shares.end());
  }
};
}  // namespace

TEST_CASE("a prefetcher is told which of the blocks that are seen were read") {
  context ctx;
  auto cache = resident::open(ctx, pattern::layout(layers), {.capacity = 64 * pattern::block_bytes});
  REQUIRE(cache);
  told::notes notes;
  cache->use(told{&notes});
  sequence s = cache->make_sequence();
  REQUIRE(pattern::append(s, 100, layers, 5));
  s.forget(0, 32);  // of six sealed blocks four are left: 2, 3, 4, 5
  auto r = s.reserve(1);
  REQUIRE(r);
  pattern::write(*r, layers, 5);
  const auto q = queries(1, 3);
  std::vector<float> out(q.size());
  const std::vector<std::uint32_t> only{1, 3, 5};
  REQUIRE(ctx.sync_wait(stream(*cache, s, *r, 0, q, out, {.only = only})));
  REQUIRE(notes.uses.size() == 1);
  CHECK(notes.uses[0].blocks == 4);
  CHECK(notes.uses[0].selected);
  REQUIRE(notes.shares.size() == 4);
  CHECK(notes.shares[0] == 0);
  CHECK(notes.shares[1] > 0);
  CHECK(notes.shares[2] == 0);
  CHECK(notes.shares[3] > 0);
  CHECK(notes.shares[1] + notes.shares[3] < 1);  // the open block has drawn the rest
  REQUIRE(ctx.sync_wait(stream(*cache, s, *r, 0, q, out)));
  CHECK_FALSE(notes.uses[1].selected);
}
