// A stream over a batch: the bits of streaming each sequence alone, and each shared block loaded once.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "catch.hpp"
#include "pattern.hpp"
#include "terrace/attention/stream_batch.hpp"
#include "terrace/codec/q8_0.hpp"
#include "terrace/policy/attention_weighted.hpp"
#include "terrace/testing/scripted.hpp"
#include "top/batch_fixture.hpp"
#include "watcher.hpp"

using namespace terrace;
using namespace batch_test;

namespace {

using lossy = tiered_cache<tier<ram>, tier<ram, q8_0>, tier<nvme>, lru>;

// A prefix of `shared` blocks, and forks of it that go on for `own` blocks each.
requests forks(kv_store& cache, std::uint32_t count, std::uint32_t shared, std::uint32_t own) {
  requests r;
  r.sequences.push_back(cache.make_sequence());
  grow(r.sequences[0], shared * 16, 1);
  while (r.sequences.size() < count) r.sequences.push_back(cache.fork(r.sequences[0]));
  for (std::uint32_t i = 0; i < count; ++i) grow(r.sequences[i], own * 16, 2 + i);
  return r;
}

std::vector<float> streamed(context& ctx, kv_store& cache, const batch& b, std::uint32_t layer,
                            const std::vector<float>& q, stream_options o = {}) {
  std::vector<float> out(q.size());
  REQUIRE(ctx.sync_wait(stream(cache, b, layer, q, out, o)));
  return out;
}

errc refusal(context& ctx, kv_store& cache, const batch& b, std::uint32_t layer, const std::vector<float>& q,
             stream_options o = {}) {
  std::vector<float> out(q.size(), 7.0f);
  auto done = ctx.sync_wait(stream(cache, b, layer, q, out, o));
  REQUIRE_FALSE(done);
  CHECK(out == std::vector<float>(q.size(), 7.0f));
  return done.error().code;
}

// Forks over a scripted tier, of which each has reserved and written a token.
struct scripted_forks {
  scripted_forks(std::size_t slots, std::uint32_t count, std::uint32_t shared, std::uint32_t own,
                 any_prefetcher prefetcher = layer_ahead{})
      : cache(opened(ctx, slots, script)), b(cache, {.sequences = count}) {
    cache.use(std::move(prefetcher));
    r = forks(cache, count, shared, own);
    settle(ctx, cache);
    REQUIRE(b.assign(r.pointers()));
    REQUIRE(b.reserve(ones(count)));
    write_all(b, 1);
  }
  static over_script opened(context& ctx, std::size_t slots, medium_script& script) {
    auto made = over_script::open(ctx, pattern::layout(layers), {.capacity = slots * block},
                                  {.capacity = 600 * block, .script = &script});
    REQUIRE(made);
    return std::move(*made);
  }
  medium_script script;
  context ctx{{.codec_threads = 0}};
  over_script cache;
  requests r;
  batch b;
};

}  // namespace

TEST_CASE("a stream over ragged sequences gives the bits of streaming each alone") {
  context ctx;
  auto cache = lossy::open(ctx, pattern::layout(layers), {.capacity = 40 * block}, {.capacity = 12 * block},
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
  batch b(*cache, {.sequences = 8});
  REQUIRE(b.assign(r.pointers()));
  // The last one has so many queries that they are cut into several work items.
  for (const auto& tokens : {std::vector<std::uint32_t>{1, 1, 1, 1, 1, 1}, {5, 0, 40, 1, 17, 70}}) {
    REQUIRE(b.reserve(tokens));
    write_all(b, 1);
    std::size_t count = 0;
    for (const std::uint32_t n : tokens) count += n;
    for (std::uint32_t layer = 0; layer < layers; ++layer) {
      const auto q = queries(count, layer);
      const auto each = stream_each(ctx, *cache, b, r, layer, q);
      CHECK(streamed(ctx, *cache, b, layer, q) == each);
      CHECK(streamed(ctx, *cache, b, layer, q, {.window_bytes = block}) == each);
    }
    b.commit(tokens);
  }
  CHECK(cache->stats().tiers[2].loads > 0);
  CHECK(cache->stats().hot_bytes_peak <= 40 * block);
}

TEST_CASE("groups of other shapes, sliding windows and what was forgotten, in a stream over a batch") {
  context ctx;
  kv_layout layout{
      {{.first_layer = 0, .layers = 4, .tokens = 16, .k = {1, 64}, .v = {1, 64}, .layers_per_block = 2},
       {.first_layer = 4, .layers = 1, .tokens = 8, .k = {2, 64}, .v = {2, 32}},
       tensor_pages(element::fp16, 1024)}};
  layout.groups[1].keep = {.window = 40, .sinks = 20};
  auto cache = to_disk::open(ctx, layout, {.capacity = 40 * block}, {.capacity = 600 * block});
  REQUIRE(cache);
  requests r;
  for (const std::uint32_t length : {200u, 30u, 1u}) {
    r.sequences.push_back(cache->make_sequence());
    grow(r.sequences.back(), length, 1, 5);
  }
  r.sequences[0].forget(32, 150);
  batch b(*cache, {.sequences = 3});
  REQUIRE(b.assign(r.pointers()));
  const std::vector<std::uint32_t> tokens{20, 1, 3};
  REQUIRE(b.reserve(tokens));
  for (std::size_t i = 0; i < 3; ++i) pattern::write(b.reserved(i), 5, 3);
  for (std::uint32_t layer = 0; layer < 5; ++layer) {
    const std::size_t v_dim = layer == 4 ? 32 : 64;
    const auto q = queries(24, layer);
    std::vector<float> got(q.size() / dim * v_dim), want(got.size());
    REQUIRE(ctx.sync_wait(stream(*cache, b, layer, q, got)));
    std::size_t from = 0;
    for (std::size_t i = 0; i < 3; from += tokens[i++])
      REQUIRE(ctx.sync_wait(
          stream(*cache, r.sequences[i], b.reserved(i), layer,
                 std::span(q).subspan(from * q_heads * dim, tokens[i] * q_heads * dim),
                 std::span(want).subspan(from * q_heads * v_dim, tokens[i] * q_heads * v_dim))));
    CHECK(got == want);
  }
  b.commit(tokens);
}

TEST_CASE("what several sequences of a batch share is loaded once") {
  constexpr std::uint32_t shared = 60, own = 4, count = 6;
  scripted_forks f(44, count, shared, own, {});
  auto& [script, ctx, cache, r, b] = f;
  const auto q = queries(count, 5);
  for (std::uint32_t layer = 0; layer < layers; ++layer) streamed(ctx, cache, b, layer, q);  // as ever
  const auto reads = script.reads;
  for (std::uint32_t layer = 0; layer < layers; ++layer) streamed(ctx, cache, b, layer, q);
  const auto together = script.reads - reads;
  CHECK(together <= layers * (shared + count * own));
  CHECK(together > 0);
  for (std::uint32_t layer = 0; layer < layers; ++layer) stream_each(ctx, cache, b, r, layer, q);
  CHECK(script.reads - reads - together > 3 * together);
  b.commit(ones(count));
}

TEST_CASE("policies are told the sum of what the sequences of a batch looked at") {
  using weighted = tiered_cache<tier<ram>, attention_weighted>;
  context ctx;
  auto cache = weighted::open(ctx, pattern::layout(layers), {.capacity = 100 * block});
  REQUIRE(cache);
  requests r = forks(*cache, 3, 5, 2);
  batch b(*cache, {.sequences = 3});
  REQUIRE(b.assign(r.pointers()));
  REQUIRE(b.reserve(ones(3)));
  write_all(b, 1);
  const auto q = queries(3, 5);
  const auto mass = [&](block_id id) { return cache->control().record(id.index).mass; };
  std::vector<float> alone(5 + 3 * 2, 0.0f);
  for (std::size_t i = 0; i < 3; ++i) {
    std::vector<float> out(q.size() / 3);
    REQUIRE(ctx.sync_wait(stream(*cache, r.sequences[i], b.reserved(i), 1,
                                 std::span(q).subspan(i * out.size(), out.size()), out)));
    const auto blocks = pattern::sealed(r.sequences[i], 1);
    for (std::size_t n = 0; n < 7; ++n) alone[n < 5 ? n : n + 2 * i] += mass(blocks[n]);
  }
  streamed(ctx, *cache, b, 1, q);
  for (std::size_t i = 0; i < 3; ++i) {
    const auto blocks = pattern::sealed(r.sequences[i], 1);
    for (std::size_t n = 0; n < 7; ++n)
      CHECK(mass(blocks[n]) == Approx(alone[n < 5 ? n : n + 2 * i]).epsilon(1e-4).margin(1e-6));
  }
  CHECK(*std::ranges::max_element(alone) > 0.1f);
  b.commit(ones(3));
}

TEST_CASE("a block that one sequence of a batch lost is named, and the others go on without that sequence") {
  scripted_forks f(30, 3, 0, 20, {});
  auto& [script, ctx, cache, r, b] = f;
  const auto pins = cache.stats().pins;
  auto q = queries(3, 5);
  std::vector<float> out(q.size(), 7.0f);
  std::size_t at_fault = 3;
  {
    script.fail_reads = 1;
    auto done = ctx.sync_wait(stream(cache, b, 0, q, out));
    REQUIRE_FALSE(done);
    CHECK(done.error().code == errc::lost);
    REQUIRE(done.error().lost.size() == 1);
    CHECK(out == std::vector<float>(q.size(), 7.0f));
    for (std::size_t i = 0; i < 3; ++i)
      if (std::ranges::count(r.sequences[i].pages().rows[0], done.error().lost[0].id) == 1) at_fault = i;
    REQUIRE(at_fault < 3);
  }
  settle(ctx, cache);
  CHECK(cache.stats().pins == pins);
  REQUIRE(b.drop(at_fault));
  q.resize(q.size() / 3 * 2);
  CHECK(streamed(ctx, cache, b, 0, q) == stream_each(ctx, cache, b, r, 0, q));
  auto kept = ones(3);
  kept[at_fault] = 0;
  b.commit(kept);
}

TEST_CASE("a stream over a batch can be stopped at every point") {
  scripted_forks f(16, 3, 10, 4);
  auto& [script, ctx, cache, r, b] = f;
  const auto pins = cache.stats().pins;
  const auto q = queries(3, 5);
  unsigned stopped = 0;
  for (unsigned after = 0; after < 60; ++after) {
    CAPTURE(after);
    std::vector<float> out(q.size(), 7.0f);
    ending how{};
    ex::inplace_stop_source stop;
    auto operation = stream(cache, b, 0, q, out).connect(watcher{&how, stop.get_token()});
    script.hold = true;
    ex::start(operation);
    for (unsigned i = 0; i < after && how == ending::none; ++i) {
      script.release_all();
      ctx.poll();
    }
    stop.request_stop();
    ctx.poll();
    CHECK((how == ending::stopped || how == ending::value));
    if (how == ending::stopped) CHECK(out == std::vector<float>(q.size(), 7.0f));
    stopped += how == ending::stopped ? 1 : 0;
    script.hold = false;
    while (script.in_flight != 0 || !ctx.idle()) {
      script.release_all();
      ctx.poll();
    }
    CHECK(cache.stats().pins == pins);
    if (how == ending::value) break;
  }
  CHECK(stopped > 3);
  CHECK(streamed(ctx, cache, b, 0, q) == stream_each(ctx, cache, b, r, 0, q));
  b.commit(ones(3));
}

TEST_CASE("what a stream over a batch refuses") {
  context ctx;
  auto cache = resident::open(ctx, pattern::layout(layers), {.capacity = 64 * block});
  auto other = resident::open(ctx, pattern::layout(layers), {.capacity = 64 * block});
  REQUIRE(cache);
  REQUIRE(other);
  requests r = forks(*cache, 2, 3, 0);
  batch b(*cache, {.sequences = 2});
  const auto q = queries(2, 5);
  REQUIRE(b.assign(r.pointers()));
  CHECK(refusal(ctx, *cache, b, 0, q) == errc::invalid_argument);  // nothing is reserved
  REQUIRE(b.reserve(ones(2)));
  write_all(b, 1);
  CHECK(refusal(ctx, *cache, b, layers, q) == errc::invalid_argument);
  CHECK(refusal(ctx, *other, b, 0, q) == errc::invalid_argument);
  CHECK(refusal(ctx, *cache, b, 0, std::vector<float>(q.size() + 1)) == errc::invalid_argument);
  CHECK(refusal(ctx, *cache, b, 0, q, {.q_heads = q_heads + 1}) == errc::invalid_argument);
  CHECK(refusal(ctx, *cache, b, 0, queries(4, 5), {.q_heads = q_heads}) == errc::invalid_argument);
  const std::vector<std::uint32_t> first{0};
  CHECK(refusal(ctx, *cache, b, 0, q, {.only = first}) == errc::invalid_argument);
  std::vector<float> odd(q.size() + 1);
  CHECK_FALSE(ctx.sync_wait(stream(*cache, b, 0, q, odd)));
  CHECK(ctx.sync_wait(stream(*cache, b, 0, q, std::span(odd).first(q.size()))));
  b.commit(ones(2));
}

TEST_CASE("a sequence that is changed under a stream fails it") {
  scripted_forks f(30, 2, 0, 12);
  auto& [script, ctx, cache, r, b] = f;
  const auto q = queries(2, 5);
  std::vector<float> out(q.size(), 7.0f);
  ending how{};
  script.hold = true;
  ex::inplace_stop_source stop;
  auto operation = stream(cache, b, 0, q, out).connect(watcher{&how, stop.get_token()});
  ex::start(operation);
  REQUIRE(how == ending::none);
  CHECK(b.drop(0).error().code == errc::invalid_argument);  // while it is under way
  CHECK(b.assign(r.pointers()).error().code == errc::invalid_argument);
  r.sequences[1].forget(0, 16);
  script.hold = false;
  while (how == ending::none) {
    script.release_all();
    ctx.poll();
  }
  CHECK(how == ending::error);
  CHECK(out == std::vector<float>(q.size(), 7.0f));
  CHECK(b.drop(0));
  b.commit(std::vector<std::uint32_t>(2, 0));
}
