// The windows of a batch: what they show and what they hold, and what becomes of them where they are given up.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "catch.hpp"
#include "pattern.hpp"
#include "terrace/batch.hpp"
#include "terrace/execution/sync_wait.hpp"
#include "terrace/testing/scripted.hpp"
#include "top/batch_fixture.hpp"
#include "watcher.hpp"

using namespace terrace;
using namespace batch_test;

TEST_CASE("a block that sequences share is loaded once for a layer") {
  context ctx{{.codec_threads = 0}};  // so idle() sees all that is under way
  const bool ahead = GENERATE(false, true);
  auto cache =
      to_disk::open(ctx, pattern::layout(layers), {.capacity = 40 * block}, {.capacity = 600 * block});
  REQUIRE(cache);
  requests r;
  r.sequences.push_back(cache->make_sequence());
  grow(r.sequences[0], 20 * 16, 1);
  for (std::uint32_t i = 1; i < 8; ++i) r.sequences.push_back(cache->fork(r.sequences[0]));
  sequence other = cache->make_sequence();
  grow(other, 48 * 16, 9);
  fill_tier_0(ctx, *cache, pattern::sealed(other, 0));

  batch b(*cache, {.sequences = 8, .window_bytes = 3 * block, .look_ahead = ahead});
  REQUIRE(b.assign(r.pointers()));
  REQUIRE(b.reserve(ones(8)));
  write_all(b, 1);
  const cache_stats before = cache->stats();
  std::set<std::pair<std::int32_t, std::int32_t>> seen;  // position, index
  std::vector<std::int32_t> shown(8, 0);
  while (auto window = ctx.sync_wait(b.next(0))) {
    if (window->empty()) break;
    const page_arrays a = window->arrays();
    for (std::size_t p = 0; p < a.indices.size(); ++p)
      if (a.positions[p] < 20 * 16) seen.insert({a.positions[p], a.indices[p]});
    for (std::size_t i = 0; i < 8; ++i) {
      if (!window->last()) CHECK(a.indptr[i + 1] - a.indptr[i] == a.indptr[1]);
      shown[i] += a.indptr[i + 1] - a.indptr[i];
    }
  }
  CHECK(seen.size() == 20);                          // one index for each position, whoever it is
  CHECK(shown == std::vector<std::int32_t>(8, 21));  // and everybody has all of them
  settle(ctx, *cache);
  const cache_stats after = cache->stats();
  // Of what was prefetched, only the first window of the next layer has not been used.
  const std::uint64_t for_next =
      (after.prefetch.issued - before.prefetch.issued) - (after.prefetch.used - before.prefetch.used);
  CHECK(for_next == (ahead ? 3u : 0u));
  CHECK(after.tiers[1].loads - before.tiers[1].loads == 20 + for_next);
  b.commit(std::vector<std::uint32_t>(8, 0));
}

TEST_CASE("pages lie where the arrays say, and hold what was written") {
  context ctx;
  auto cache = ladder::open(ctx, pattern::layout(layers), {.capacity = 30 * block}, {.capacity = 20 * block},
                            {.capacity = 600 * block});
  REQUIRE(cache);
  // Lengths: nothing, less than a block, one block, a block and a bit, many.
  const std::vector<std::uint32_t> lengths{0, 5, 16, 20, 230};
  requests r;
  for (std::uint32_t i = 0; i < lengths.size(); ++i) {
    r.sequences.push_back(cache->make_sequence());
    grow(r.sequences[i], lengths[i], 1 + i);
  }
  batch b(*cache, {.sequences = 5, .pages = 6});
  REQUIRE(b.assign(r.pointers()));
  const std::vector<std::uint32_t> tokens{3, 0, 1, 14, 2};
  const layer_group& g = cache->layout().groups[0];
  for (const bool reserved : {false, true}) {
    if (reserved) {
      REQUIRE(b.reserve(tokens));
      write_all(b, 1);
    }
    for (std::uint32_t layer = 0; layer < layers; ++layer) {
      std::vector<std::int32_t> next(5, 0);
      bool last = false;
      while (auto window = ctx.sync_wait(b.next(layer))) {
        if (window->empty()) break;
        CHECK_FALSE(last);
        last = window->last();
        const page_arrays a = window->arrays();
        REQUIRE(a.indptr.size() == 6);
        REQUIRE(a.last_page_len.size() == 5);
        CHECK(a.indptr[0] == 0);
        CHECK(a.indptr[5] == static_cast<std::int32_t>(a.indices.size()));
        CHECK(a.positions.size() == a.indices.size());
        CHECK(a.indices.size() <= 6);
        for (std::uint32_t i = 0; i < 5; ++i) {
          for (std::int32_t p = a.indptr[i]; p < a.indptr[i + 1]; ++p) {
            const bool end = p + 1 == a.indptr[i + 1];
            const auto at = static_cast<std::size_t>(p);
            CHECK(a.positions[at] == next[i]);
            const std::int32_t length = end ? a.last_page_len[i] : 16;
            const std::byte* data =
                window->base() + std::ptrdiff_t{a.indices[at]} * std::ptrdiff_t{batch_window::page_stride};
            CHECK(window->page(at).data == data);
            CHECK(window->page(at).tokens == static_cast<std::uint32_t>(length));
            CHECK(pattern::holds(g, data, layer, static_cast<std::uint64_t>(next[i]) / 16, 1 + i,
                                 static_cast<std::uint32_t>(length)));
            next[i] += length;
          }
          if (a.indptr[i] == a.indptr[i + 1]) CHECK(a.last_page_len[i] == 0);
        }
      }
      CHECK(last);
      for (std::size_t i = 0; i < 5; ++i) {
        const bool takes_part = !reserved || tokens[i] != 0;
        CHECK(next[i] == static_cast<std::int32_t>(takes_part ? b.tokens(i) : 0));
      }
    }
  }
  b.commit(tokens);
  CHECK(r.sequences[3].length() == 34);
}

TEST_CASE("the arrays never move") {
  context ctx;
  auto cache =
      to_disk::open(ctx, pattern::layout(layers), {.capacity = 64 * block}, {.capacity = 600 * block});
  REQUIRE(cache);
  requests r;
  for (std::uint32_t i = 0; i < 6; ++i) {
    r.sequences.push_back(cache->make_sequence());
    grow(r.sequences[i], 10 + 25 * i, 1 + i);
  }
  batch b(*cache, {.sequences = 6});
  std::set<const void*> addresses;
  const std::byte* base = nullptr;
  for (const std::size_t n : {std::size_t{1}, std::size_t{6}, std::size_t{3}}) {
    const auto all = r.pointers();
    REQUIRE(b.assign(std::span(all).first(n)));
    REQUIRE(b.reserve(ones(n)));
    for (std::uint32_t layer = 0; layer < layers; ++layer)
      while (auto window = ctx.sync_wait(b.next(layer))) {
        if (window->empty()) break;
        const page_arrays a = window->arrays();
        CHECK(a.indptr.size() == n + 1);
        for (const void* p : {a.indptr.data(), a.indices.data(), a.last_page_len.data(), a.positions.data()})
          addresses.insert(p);
        if (base == nullptr) base = window->base();
        CHECK(window->base() == base);
        CHECK(window->v_base() == base + cache->layout().groups[0].v_offset());
      }
    b.commit(std::vector<std::uint32_t>(n, 0));
  }
  CHECK(addresses.size() == 4);
}

TEST_CASE("a window that is dropped midway returns its pins, and the layer can be begun anew") {
  context ctx{{.codec_threads = 0}};  // so idle() sees all that is under way
  auto cache =
      to_disk::open(ctx, pattern::layout(layers), {.capacity = 24 * block}, {.capacity = 600 * block});
  REQUIRE(cache);
  requests r;
  for (std::uint32_t i = 0; i < 2; ++i) {
    r.sequences.push_back(cache->make_sequence());
    grow(r.sequences[i], 10 * 16, 1 + i);
  }
  {
    batch b(*cache, {.sequences = 2, .window_bytes = 2 * block});
    REQUIRE(b.assign(r.pointers()));
    REQUIRE(b.reserve(ones(2)));
    write_all(b, 1);
    settle(ctx, *cache);
    const auto pins = cache->stats().pins;  // of the reservation
    const auto q = queries(2, 3);
    std::vector<float> want(q.size()), got(q.size());
    attend_all(ctx, b, r, 0, q, want);
    std::int32_t next = 0;
    {
      auto first = ctx.sync_wait(b.next(0));
      auto moved = std::move(*first);
      CHECK(first->empty());
      CHECK_FALSE(moved.last());
      CHECK(moved.arrays().positions[0] == 0);
      next = 16 * moved.arrays().indptr[1];
      CHECK(cache->stats().pins > pins);
    }
    settle(ctx, *cache);
    CHECK(cache->stats().pins == pins);
    auto second = ctx.sync_wait(b.next(0));
    CHECK(second->arrays().positions[0] == next);  // goes on
    second->release();
    settle(ctx, *cache);
    CHECK(cache->stats().pins == pins);
    b.rewind();
    CHECK(ctx.sync_wait(b.next(0))->arrays().positions[0] == 0);
    CHECK(ctx.sync_wait(b.next(1))->arrays().positions[0] == 0);
    attend_all(ctx, b, r, 0, q, got);
    CHECK(std::ranges::equal(got, want));
    settle(ctx, *cache);
    CHECK(cache->stats().pins == pins);
  }
  // The batch ended without a commit: nothing is kept.
  CHECK(r.sequences[0].length() == 160);
  CHECK(cache->stats().pins == 0);
}

TEST_CASE("windows become smaller where tier 0 has less room than it seems") {
  context ctx;
  auto cache =
      to_disk::open(ctx, pattern::layout(layers), {.capacity = 12 * block}, {.capacity = 600 * block});
  REQUIRE(cache);
  requests r;
  for (std::uint32_t i = 0; i < 3; ++i) {
    r.sequences.push_back(cache->make_sequence());
    grow(r.sequences[i], 8 * 16, 1 + i);
  }
  sequence other = cache->make_sequence();
  REQUIRE(pattern::append(other, 16, layers, 9));
  batch b(*cache, {.sequences = 3, .window_bytes = 10 * block});
  REQUIRE(b.assign(r.pointers()));
  REQUIRE(b.reserve(ones(3)));  // 6 open blocks
  write_all(b, 1);
  const auto q = queries(3, 5);
  std::vector<float> got(q.size());
  CHECK(attend_all(ctx, b, r, 1, q, got) >= 4);
  CHECK(std::ranges::equal(got, stream_each(ctx, *cache, b, r, 1, q)));

  // No room for a single block: said at once, and asking again goes on when there is.
  std::vector<reservation> taken;
  std::vector<sequence> more;
  for (int i = 0; i < 3; ++i) {
    more.push_back(cache->make_sequence());
    auto one = more.back().reserve(1);
    REQUIRE(one);
    taken.push_back(std::move(*one));
  }
  CHECK(ctx.sync_wait(b.next(0)).error().code == errc::out_of_capacity);
  taken.clear();
  CHECK_FALSE(ctx.sync_wait(b.next(0))->empty());
  b.commit(ones(3));
}

TEST_CASE("a window that was stopped or has lost blocks is still the next one") {
  context ctx{{.codec_threads = 0}};
  medium_script script;
  auto cache = over_script::open(ctx, pattern::layout(layers), {.capacity = 16 * block},
                                 {.capacity = 200 * block, .script = &script});
  REQUIRE(cache);
  requests r;
  r.sequences.push_back(cache->make_sequence());
  grow(r.sequences[0], 20 * 16, 1);
  r.sequences.push_back(cache->fork(r.sequences[0]));
  batch b(*cache, {.sequences = 2, .window_bytes = 4 * block, .look_ahead = false});
  REQUIRE(b.assign(r.pointers()));
  settle(ctx, *cache);
  const auto pins = cache->stats().pins;
  fill_tier_0(ctx, *cache, pattern::sealed(r.sequences[0], 1));
  // Stopping while the blocks are on their way leaves nothing pinned, and the window is still the next.
  ending how{};
  ex::inplace_stop_source stop;
  script.hold = true;
  auto operation = b.next(0).connect(watcher{&how, stop.get_token()});
  ex::start(operation);
  CHECK(how == ending::none);
  CHECK(ctx.sync_wait(b.next(0)).error().code == errc::invalid_argument);
  stop.request_stop();
  ctx.poll();
  CHECK(how == ending::stopped);
  script.hold = false;
  script.release_all();
  while (!ctx.idle()) ctx.poll();
  CHECK(cache->stats().pins == pins);
  CHECK(ctx.sync_wait(b.next(0))->arrays().positions[0] == 0);

  script.flip_reads = 1;
  {
    auto window = ctx.sync_wait(b.next(0));
    REQUIRE_FALSE(window);
    CHECK(window.error().code == errc::lost);
    REQUIRE(window.error().lost.size() == 1);  // shared, and named once
    CHECK(window.error().rest.size() == 4);
    CHECK(cache->stats().pins == pins + 3);
  }
  CHECK(cache->stats().pins == pins);
  auto again = ctx.sync_wait(b.next(0));  // the same window; what is lost stays lost
  REQUIRE_FALSE(again);
  CHECK(again.error().lost.size() == 1);
  again.error().rest.release();
}
