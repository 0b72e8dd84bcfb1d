#include "terrace/batch.hpp"

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <type_traits>

#include "catch.hpp"
#include "pattern.hpp"
#include "terrace/attention/attend_batch.hpp"
#include "terrace/attention/stream.hpp"
#include "terrace/codec/q8_0.hpp"
#include "terrace/medium/nvme.hpp"
#include "terrace/medium/ram.hpp"
#include "terrace/policy/lru.hpp"
#include "terrace/testing/scripted.hpp"
#include "terrace/tiered_cache.hpp"

using namespace terrace;

namespace {

constexpr std::size_t block = pattern::block_bytes;
constexpr std::uint32_t layers = 2, q_heads = 2, dim = 64;

using resident = tiered_cache<tier<ram>, lru>;
using to_disk = tiered_cache<tier<ram>, tier<nvme>, lru>;
using ladder = tiered_cache<tier<ram>, tier<ram>, tier<nvme>, lru>;
using lossy = tiered_cache<tier<ram>, tier<ram, q8_0>, lru>;
using over_script = tiered_cache<tier<ram>, tier<scripted>, lru>;

std::vector<float> random_queries(std::size_t tokens, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<float> q(tokens * q_heads * dim);
  for (float& x : q) x = static_cast<float>(static_cast<int>(random() % 2001) - 1000) / 250.0f;
  return q;
}

// Notes how a window came: 1 with a value, 2 with an error, 3 stopped.
struct watcher {
  using receiver_concept = ex::receiver_t;
  int* how;
  ex::inplace_stop_token token;
  void set_value(batch_window) noexcept { *how = 1; }
  void set_error(block_error) noexcept { *how = 2; }
  void set_stopped() noexcept { *how = 3; }
  struct env {
    ex::inplace_stop_token token;
    ex::inplace_stop_token query(ex::get_stop_token_t) const noexcept { return token; }
  };
  env get_env() const noexcept { return {token}; }
};

// A batch, its sequences, and what it is attended with.
struct requests {
  std::vector<sequence> sequences;
  std::vector<query_tile> queries;
  std::vector<partial_state> states;

  std::vector<sequence*> pointers() {
    std::vector<sequence*> all;
    for (sequence& s : sequences) all.push_back(&s);
    return all;
  }
  void make_tiles() {
    queries = std::vector<query_tile>(sequences.size());
    states = std::vector<partial_state>(sequences.size());
  }
};

// Attention of the batch's new tokens in one layer, through its windows; how many there were.
std::size_t attend_all(context& ctx, batch& b, requests& r, std::uint32_t layer, const std::vector<float>& q,
                       std::vector<float>& out, lease_form form = lease_form::raw) {
  r.make_tiles();
  REQUIRE(load(b, layer, q, r.queries, r.states));
  std::size_t windows = 0;
  while (auto window = ctx.sync_wait(b.next(layer, form))) {
    if (window->empty()) {
      REQUIRE(finish(r.states, out));
      return windows;
    }
    ++windows;
    attend(*window, r.queries, r.states);
  }
  FAIL("a window could not be had");
  return windows;
}

// The same by streaming each sequence alone.
std::vector<float> stream_each(context& ctx, kv_store& cache, const batch& b, const requests& r,
                               std::uint32_t layer, const std::vector<float>& q) {
  std::vector<float> all(q.size());
  std::size_t at = 0;
  for (std::size_t i = 0; i < b.size(); ++i) {
    if (b.new_tokens(i) == 0) continue;
    const std::size_t count = std::size_t{b.new_tokens(i)} * q_heads * dim;
    const auto out = std::span(all).subspan(at, count);
    REQUIRE(ctx.sync_wait(
        stream(cache, r.sequences[i], b.reserved(i), layer, std::span(q).subspan(at, count), out)));
    at += count;
  }
  return all;
}

// Appends tokens a block at a time, so that tier 0 need not hold them all.
void grow(sequence& s, std::uint32_t tokens, std::uint32_t tag, std::uint32_t in_layers = layers) {
  for (std::uint32_t done = 0; done < tokens; done += 16)
    REQUIRE(pattern::append(s, std::min(16u, tokens - done), in_layers, tag));
}

std::vector<std::uint32_t> ones(std::size_t n) { return std::vector<std::uint32_t>(n, 1); }

void write_all(const batch& b, std::uint32_t tag) {
  for (std::size_t i = 0; i < b.size(); ++i)
    if (b.new_tokens(i) != 0) pattern::write(b.reserved(i), layers, tag + static_cast<std::uint32_t>(i));
}

template <class Cache>
void settle(context& ctx, Cache& cache) {
  static_cast<void>(ctx.sync_wait(cache.flush()));
  while (!ctx.idle()) ctx.poll();
}

// Pushes everything out of tier 0 that may leave.
void fill_tier_0(context& ctx, kv_store& cache, const std::vector<block_id>& with) {
  for (const block_id id : with) REQUIRE(ctx.sync_wait(cache.acquire({&id, 1})));
  settle(ctx, cache);
}

}  // namespace

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
      const auto q = random_queries(count, layer);
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
  const auto q = random_queries(3, 7);
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

TEST_CASE("what a batch cannot take it refuses, and is as it was") {
  context ctx;
  auto cache = resident::open(ctx, pattern::layout(layers), {.capacity = 64 * block});
  auto stranger = resident::open(ctx, pattern::layout(layers), {.capacity = 8 * block});
  REQUIRE(cache);
  REQUIRE(stranger);
  STATIC_REQUIRE_FALSE(std::is_copy_constructible_v<batch_window>);
  sequence a = cache->make_sequence(), c = cache->make_sequence(), d = cache->make_sequence();
  sequence elsewhere = stranger->make_sequence();
  batch b(*cache, {.sequences = 2, .pages = 2});
  const auto code = [](const result<void>& r) { return r ? errc{} : r.error().code; };
  const auto refused = [&](std::vector<sequence*> all) {
    const auto assigned = b.assign(all);
    return !assigned && assigned.error().code == errc::invalid_argument;
  };
  CHECK(refused({&a, &c, &d}));
  CHECK(refused({&a, &a}));
  CHECK(refused({&a, &elsewhere}));
  CHECK(refused({nullptr}));
  CHECK(b.size() == 0);
  REQUIRE(b.assign(std::vector<sequence*>{&a, &c}));
  CHECK(code(b.reserve(ones(1))) == errc::invalid_argument);
  CHECK(code(b.reserve(std::vector<std::uint32_t>{16, 17})) == errc::invalid_argument);  // three open pages
  CHECK(b.new_tokens(0) == 0);
  REQUIRE(b.reserve(std::vector<std::uint32_t>{16, 1}));
  CHECK(refused({&d}));
  CHECK(code(b.reserve(ones(2))) == errc::invalid_argument);
  CHECK(ctx.sync_wait(b.next(layers)).error().code == errc::invalid_argument);

  // One window at a time.
  auto window = ctx.sync_wait(b.next(0));
  REQUIRE(window);
  CHECK_FALSE(window->empty());
  CHECK(ctx.sync_wait(b.next(0)).error().code == errc::invalid_argument);
  CHECK(ctx.sync_wait(b.next(1)).error().code == errc::invalid_argument);
  window->release();
  CHECK(window->empty());
  CHECK(ctx.sync_wait(b.next(0))->empty());
  CHECK_FALSE(ctx.sync_wait(b.next(0))->empty());  // begun anew

  requests r;
  r.make_tiles();
  CHECK(code(load(b, 0, random_queries(17, 1), r.queries, r.states)) == errc::invalid_argument);
  r.queries = std::vector<query_tile>(2);
  r.states = std::vector<partial_state>(2);
  CHECK(code(load(b, 0, std::vector<float>(17 * dim + 1), r.queries, r.states)) == errc::invalid_argument);
  CHECK(code(load(b, layers, random_queries(17, 1), r.queries, r.states)) == errc::invalid_argument);
  CHECK(load(b, 0, random_queries(17, 1), r.queries, r.states));
  std::vector<float> small(5);
  CHECK(code(finish(r.states, small)) == errc::invalid_argument);
  b.commit(std::vector<std::uint32_t>{16, 0});
  CHECK(a.length() == 16);
  CHECK(c.length() == 0);
}

TEST_CASE("a batch without sequences or tokens has no windows") {
  context ctx;
  auto cache = resident::open(ctx, pattern::layout(layers), {.capacity = 16 * block});
  REQUIRE(cache);
  batch b(*cache);
  CHECK(ctx.sync_wait(b.next(0))->empty());
  sequence s = cache->make_sequence();
  REQUIRE(b.assign(std::vector<sequence*>{&s}));
  CHECK(ctx.sync_wait(b.next(1))->empty());
  REQUIRE(b.reserve(std::vector<std::uint32_t>{0}));
  CHECK(ctx.sync_wait(b.next(0))->empty());
  b.commit(std::vector<std::uint32_t>{0});
}

TEST_CASE("a batch reserves for all or for none") {
  context ctx;
  auto cache = resident::open(ctx, pattern::layout(layers), {.capacity = 12 * block});
  REQUIRE(cache);
  requests r;
  for (std::uint32_t i = 0; i < 3; ++i) {
    r.sequences.push_back(cache->make_sequence());
    grow(r.sequences[i], 16, 1 + i);
  }
  batch b(*cache);
  REQUIRE(b.assign(r.pointers()));
  const auto before = cache->stats();
  const auto reserved = b.reserve(std::vector<std::uint32_t>{16, 16, 33});  // 2 + 2 + 6 of 6 blocks
  REQUIRE_FALSE(reserved);
  CHECK(reserved.error().code == errc::out_of_capacity);
  CHECK(cache->stats().blocks == before.blocks);
  CHECK(cache->stats().pins == before.pins);
  for (std::size_t i = 0; i < 3; ++i) {
    CHECK(b.new_tokens(i) == 0);
    CHECK(r.sequences[i].length() == 16);
  }
  REQUIRE(b.reserve(std::vector<std::uint32_t>{16, 16, 16}));
  write_all(b, 1);
  b.commit(std::vector<std::uint32_t>{16, 3, 0});
  CHECK(r.sequences[0].length() == 32);
  CHECK(r.sequences[1].length() == 19);
  CHECK(r.sequences[2].length() == 16);
  CHECK(cache->stats().blocks == before.blocks + 4);
}

TEST_CASE("forks with a common open tail share it again where a batch has no room for all") {
  context ctx;
  auto cache = resident::open(ctx, pattern::layout(layers), {.capacity = 12 * block});
  REQUIRE(cache);
  requests r;
  r.sequences.push_back(cache->make_sequence());
  REQUIRE(pattern::append(r.sequences[0], 20, layers, 1));
  for (int i = 0; i < 7; ++i) r.sequences.push_back(cache->fork(r.sequences[0]));
  batch b(*cache);
  REQUIRE(b.assign(r.pointers()));
  const auto before = cache->stats();
  CHECK(before.blocks == 4);
  CHECK(b.reserve(ones(8)).error().code == errc::out_of_capacity);  // 16 copies
  CHECK(cache->stats().blocks == before.blocks);
  CHECK(cache->stats().pins == before.pins);
  // So there is room for as many as fit.
  REQUIRE(b.reserve(std::vector<std::uint32_t>{1, 1, 1, 1, 0, 0, 0, 0}));
  write_all(b, 1);
  b.commit(std::vector<std::uint32_t>{1, 0, 1, 1, 0, 0, 0, 0});
  CHECK(cache->stats().blocks == before.blocks + 6);
  CHECK(r.sequences[1].length() == 20);
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
    const auto q = random_queries(2, 3);
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
  const auto q = random_queries(3, 5);
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
  const auto q = random_queries(7, 11);
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
    const auto q = random_queries(21, layer);
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
  const auto q = random_queries(2, 3);
  std::vector<float> raw(q.size()), encoded(q.size());
  const auto loads = cache->stats().tiers[1].loads;
  attend_all(ctx, b, r, 0, q, encoded, lease_form::attendable);
  CHECK(cache->stats().tiers[1].loads == loads);
  CHECK(std::ranges::equal(encoded, stream_each(ctx, *cache, b, r, 0, q)));
  attend_all(ctx, b, r, 0, q, raw);
  CHECK(cache->stats().tiers[1].loads > loads);
  b.commit(ones(2));
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
  int how = 0;
  ex::inplace_stop_source stop;
  script.hold = true;
  auto operation = b.next(0).connect(watcher{&how, stop.get_token()});
  ex::start(operation);
  CHECK(how == 0);
  CHECK(ctx.sync_wait(b.next(0)).error().code == errc::invalid_argument);
  stop.request_stop();
  ctx.poll();
  CHECK(how == 3);
  script.hold = false;
  script.release_all();
  while (!ctx.idle()) ctx.poll();
  CHECK(cache->stats().pins == pins);
  CHECK(ctx.sync_wait(b.next(0))->arrays().positions[0] == 0);

  script.fail_reads = 1;
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
