// Attention through the windows of a batch has the bits of streaming each sequence alone.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <set>
#include <span>
#include <vector>

#include "catch.hpp"
#include "pattern.hpp"
#include "terrace/attention/stream.hpp"
#include "terrace/batch.hpp"
#include "terrace/codec/q8_0.hpp"
#include "terrace/execution/sync_wait.hpp"
#include "top/batch_fixture.hpp"

using namespace terrace;
using namespace batch_test;

namespace {
using lossy = tiered_cache<tier<ram>, tier<ram, q8_0>, lru>;
}

TEST_CASE("a batch of forks gives the bits of streaming each sequence alone") {
  context ctx;
  auto cache = ladder::open(ctx, pattern::layout(layers), {.capacity = 32 * block}, {.capacity = 12 * block},
                            {.capacity = 600 * block});
  REQUIRE(cache);
  requests r;
  r.sequences.push_back(cache->make_sequence());
  grow(r.sequences[0], 40 + 12 * 16, 1);
  for (std::uint32_t i = 1; i < 5; ++i) {
    r.sequences.push_back(cache->fork(r.sequences[0]));
    grow(r.sequences[i], 13 * i, 1 + i);
  }
  r.sequences.push_back(cache->make_sequence());  // shares nothing, and has nothing
  batch b(*cache, {.sequences = 8, .window_bytes = block});
  REQUIRE(b.assign(r.pointers()));
  for (const auto& tokens : {std::vector<std::uint32_t>{1, 1, 1, 1, 1, 1}, {5, 0, 40, 1, 17, 3}}) {
    REQUIRE(b.reserve(tokens));
    write_all(b, 1);
    std::size_t count = 0;
    for (const std::uint32_t n : tokens) count += n;
    for (std::uint32_t layer = 0; layer < layers; ++layer) {
      const auto q = queries(count, layer);
      std::vector<float> out(q.size());
      CHECK(attend_all(ctx, b, r, layer, q, out) > 1);
      CHECK(std::ranges::equal(out, stream_each(ctx, *cache, b, r, layer, q)));
    }
    b.commit(tokens);
  }
  CHECK(r.sequences[2].length() == 40 + 12 * 16 + 26 + 41);
  CHECK(cache->stats().tiers[2].loads > 0);
  CHECK(cache->stats().hot_bytes_peak <= 32 * block);
}

TEST_CASE("the bits do not depend on how a batch is cut into windows") {
  context ctx;
  auto cache =
      to_disk::open(ctx, pattern::layout(layers), {.capacity = 64 * block}, {.capacity = 600 * block});
  REQUIRE(cache);
  requests r;
  for (std::uint32_t i = 0; i < 3; ++i) {
    r.sequences.push_back(cache->make_sequence());
    grow(r.sequences[i], 30 + 90 * i, 1 + i);
  }
  std::vector<float> first;
  std::set<std::size_t> windows;
  const auto q = queries(3, 7);
  for (const std::size_t bytes : {block, 2 * block, 3 * block, 7 * block, 600 * block})
    for (const std::uint32_t pages : {3u, 4u, 1000u})
      for (const bool ahead : {false, true}) {
        batch b(*cache, {.sequences = 3, .pages = pages, .window_bytes = bytes, .look_ahead = ahead});
        REQUIRE(b.assign(r.pointers()));
        REQUIRE(b.reserve(ones(3)));
        write_all(b, 1);
        std::vector<float> out(q.size());
        windows.insert(attend_all(ctx, b, r, 1, q, out));
        if (first.empty()) first = out;
        CHECK(std::ranges::equal(out, first));
        b.commit(std::vector<std::uint32_t>(3, 0));
      }
  CHECK(windows.size() > 3);
}

TEST_CASE("sliding windows and sinks: only what is seen is brought") {
  context ctx;
  kv_layout layout = pattern::layout(layers);
  layout.groups[0].keep = {.window = 40, .sinks = 20};
  auto cache = to_disk::open(ctx, layout, {.capacity = 64 * block}, {.capacity = 600 * block});
  REQUIRE(cache);
  requests r;
  for (const std::uint32_t length : {200u, 30u, 61u, 1u}) {
    r.sequences.push_back(cache->make_sequence());
    REQUIRE(
        pattern::append(r.sequences.back(), length, layers, static_cast<std::uint32_t>(r.sequences.size())));
  }
  r.sequences[0].forget(32, 150);
  batch b(*cache, {.sequences = 4, .window_bytes = 2 * block});
  REQUIRE(b.assign(r.pointers()));
  REQUIRE(b.reserve(std::vector<std::uint32_t>{2, 1, 3, 1}));
  write_all(b, 1);
  std::vector<std::vector<std::int32_t>> seen(4);
  while (auto window = ctx.sync_wait(b.next(0))) {
    if (window->empty()) break;
    const page_arrays a = window->arrays();
    for (std::size_t i = 0; i < 4; ++i)
      for (std::int32_t p = a.indptr[i]; p < a.indptr[i + 1]; ++p)
        seen[i].push_back(a.positions[static_cast<std::size_t>(p)]);
  }
  using list = std::vector<std::int32_t>;
  CHECK(seen[0] == list{0, 16, 160, 176, 192});  // token 200 sees 0..19 and 161..200
  CHECK(seen[1] == list{0, 16});
  CHECK(seen[2] == list{0, 16, 32, 48});  // token 61 sees from 22
  CHECK(seen[3] == list{0});
  const auto q = queries(7, 11);
  for (std::uint32_t layer = 0; layer < layers; ++layer) {
    std::vector<float> out(q.size());
    attend_all(ctx, b, r, layer, q, out);
    CHECK(std::ranges::equal(out, stream_each(ctx, *cache, b, r, layer, q)));
  }
  b.commit(std::vector<std::uint32_t>(4, 0));
}

TEST_CASE("blocks of several layers, and groups of different shapes") {
  context ctx;
  kv_layout layout{
      {{.first_layer = 0, .layers = 4, .tokens = 16, .k = {1, 64}, .v = {1, 64}, .layers_per_block = 2},
       {.first_layer = 4, .layers = 1, .tokens = 8, .k = {2, 64}, .v = {2, 32}},
       tensor_pages(element::fp16, 1024)}};
  auto cache = to_disk::open(ctx, layout, {.capacity = 40 * block}, {.capacity = 600 * block});
  REQUIRE(cache);
  requests r;
  r.sequences.push_back(cache->make_sequence());
  grow(r.sequences[0], 100, 1, 5);
  r.sequences.push_back(cache->fork(r.sequences[0]));
  grow(r.sequences[1], 60, 2, 5);
  batch b(*cache, {.sequences = 2, .window_bytes = 3 * block});
  REQUIRE(b.assign(r.pointers()));
  REQUIRE(b.reserve(std::vector<std::uint32_t>{20, 1}));
  for (std::size_t i = 0; i < 2; ++i) pattern::write(b.reserved(i), 5, 3);
  for (std::uint32_t layer = 0; layer < 5; ++layer) {
    const auto q = queries(21, layer);
    const std::size_t v_dim = layer == 4 ? 32 : 64;
    std::vector<float> got(q.size() / dim * v_dim), want(got.size());
    attend_all(ctx, b, r, layer, q, got);
    for (std::size_t i = 0; i < 2; ++i) {
      const std::size_t from = i == 0 ? 0 : 20, count = i == 0 ? 20 : 1;
      REQUIRE(
          ctx.sync_wait(stream(*cache, r.sequences[i], b.reserved(i), layer,
                               std::span(q).subspan(from * q_heads * dim, count * q_heads * dim),
                               std::span(want).subspan(from * q_heads * v_dim, count * q_heads * v_dim))));
    }
    CHECK(std::ranges::equal(got, want));
  }
  b.commit(std::vector<std::uint32_t>{20, 1});
}

TEST_CASE("encoded blocks are attended in place where they are asked for so") {
  context ctx{{.codec_threads = 0}};  // so idle() sees all that is under way
  auto cache = lossy::open(ctx, pattern::layout(layers), {.capacity = 30 * block}, {.capacity = 200 * block});
  REQUIRE(cache);
  requests r;
  for (std::uint32_t i = 0; i < 2; ++i) {
    r.sequences.push_back(cache->make_sequence());
    grow(r.sequences[i], 20 * 16, 1 + i);
  }
  batch b(*cache, {.sequences = 2, .look_ahead = false});
  REQUIRE(b.assign(r.pointers()));
  REQUIRE(b.reserve(ones(2)));
  write_all(b, 1);
  settle(ctx, *cache);
  const auto q = queries(2, 3);
  std::vector<float> raw(q.size()), encoded(q.size());
  const auto loads = cache->stats().tiers[1].loads;
  attend_all(ctx, b, r, 0, q, encoded, lease_form::attendable);
  CHECK(cache->stats().tiers[1].loads == loads);
  CHECK(std::ranges::equal(encoded, stream_each(ctx, *cache, b, r, 0, q)));
  attend_all(ctx, b, r, 0, q, raw);
  CHECK(cache->stats().tiers[1].loads > loads);
  b.commit(ones(2));
}
