#include "terrace/attention/stream.hpp"

#include <cmath>
#include <optional>
#include <random>

#include "attention/stream_fixture.hpp"
#include "catch.hpp"
#include "pattern.hpp"
#include "terrace/codec/fp8.hpp"
#include "terrace/codec/q4_0.hpp"
#include "terrace/codec/q8_0.hpp"
#include "terrace/execution/elide.hpp"
#include "terrace/execution/sync_wait.hpp"
#include "terrace/medium/nvme.hpp"
#include "terrace/medium/ram.hpp"
#include "terrace/policy/lru.hpp"
#include "terrace/testing/scripted.hpp"
#include "terrace/tiered_cache.hpp"
#include "watcher.hpp"

using namespace terrace;
using namespace stream_test;

TEST_CASE("stream equals full attention in double") {
  context ctx;
  auto cache =
      ladder::open(ctx, pattern::layout(layers), {.capacity = 20 * pattern::block_bytes},
                   {.capacity = 10 * pattern::block_bytes}, {.capacity = 200 * pattern::block_bytes});
  REQUIRE(cache);
  sequence s = cache->make_sequence();
  for (int i = 0; i < 40; ++i) REQUIRE(pattern::append(s, 17, layers, 3));
  auto r = s.reserve(5);
  REQUIRE(r);
  pattern::write(*r, layers, 3);
  for (std::uint32_t layer = 0; layer < layers; ++layer) {
    const auto q = queries(5, layer);
    std::vector<float> out(q.size());
    REQUIRE(ctx.sync_wait(stream(*cache, s, *r, layer, q, out)));
    CHECK(rel_l2(out, reference(3, layer, q, s.length())) < 1e-5);
  }
}

TEST_CASE("the same bits wherever the blocks are, however many tokens come at once") {
  context ctx;
  const std::vector<std::uint32_t> ones(150, 1), mixed{1, 31, 2, 16, 33, 7, 60};
  auto all = resident::open(ctx, pattern::layout(layers), {.capacity = 64 * pattern::block_bytes});
  REQUIRE(all);
  const auto want = decode(ctx, *all, ones);
  CHECK(decode(ctx, *all, mixed) == want);
  auto small = ladder::open(ctx, pattern::layout(layers), {.capacity = 12 * pattern::block_bytes},
                            {.capacity = 6 * pattern::block_bytes}, {.capacity = 64 * pattern::block_bytes});
  REQUIRE(small);
  CHECK(decode(ctx, *small, ones) == want);
  CHECK(decode(ctx, *small, mixed) == want);
  CHECK(small->stats().tiers[2].loads > 0);
  CHECK(small->stats().hot_bytes_peak <= 12 * pattern::block_bytes);
}

TEST_CASE("a tier 0 that holds little more than the open blocks still gets through") {
  context ctx;
  medium_script script;
  auto cache = over_script::open(ctx, pattern::layout(layers), {.capacity = 5 * pattern::block_bytes},
                                 {.capacity = 64 * pattern::block_bytes, .script = &script});
  REQUIRE(cache);
  auto all = resident::open(ctx, pattern::layout(layers), {.capacity = 64 * pattern::block_bytes});
  REQUIRE(all);
  const std::vector<std::uint32_t> ones(200, 1);
  CHECK(decode(ctx, *cache, ones) == decode(ctx, *all, ones));
}

// Values that each codec gives back exactly: then nothing may show where a block was read, and encoded as what.
template <class Codec, class T>
T survivor(std::uint64_t position, std::uint32_t head, std::uint32_t d, bool values) {
  const auto x =
      static_cast<std::uint32_t>((position * 131 + head * 17 + d * 7 + (values ? 5 : 0)) * 2654435761u);
  // An fp32 plane keeps the product with an odd scale, which the others would round.
  const float scale = std::is_same_v<T, float> ? to_float(to_fp16(0.0123f)) : 0x1p-5f;
  if constexpr (std::is_same_v<Codec, fp8>)
    return from_float<T>(
        to_float(to_fp8_e4m3(static_cast<float>(static_cast<int>((x >> 16) % 2001) - 1000) * 0x1p-8f)));
  const int most = std::is_same_v<Codec, q8_0> ? 127 : 8;
  const int code = d % 32 == 0 ? -most : static_cast<int>((x >> 20) % static_cast<unsigned>(2 * most)) - most;
  return from_float<T>(static_cast<float>(code) * scale);
}

template <class Codec, class T>
void write_survivors(const reservation& r) {
  for (const bool values : {false, true}) {
    const plane_rows rows = values ? r.v(0) : r.k(0);
    for (std::uint32_t h = 0; h < rows.heads(); ++h)
      for (std::uint32_t d = 0; d < rows.dim(); ++d)
        rows.row<T>(0, h)[d] = survivor<Codec, T>(r.first_position(), h, d, values);
  }
}

TEMPLATE_TEST_CASE("blocks of an attendable codec are attended where they are, with the bits of memory", "",
                   q8_0, q4_0, fp8) {
  for (const element type : {element::fp16, element::bf16, element::fp32}) {
    const auto write = type == element::fp16   ? &write_survivors<TestType, fp16>
                       : type == element::bf16 ? &write_survivors<TestType, bf16>
                                               : &write_survivors<TestType, float>;
    const plane p{.heads = 2, .dim = 64, .type = type};
    const kv_layout layout{.groups = {{.layers = 1, .tokens = 16, .k = p, .v = p}}};
    const std::size_t block = layout.largest_block();
    context ctx;
    const auto run = [&](kv_store& cache) {
      sequence s = cache.make_sequence();
      std::vector<float> all;
      for (std::uint32_t step = 0; step < 300; ++step) {
        auto r = s.reserve(1);
        REQUIRE(r);
        write(*r);
        std::vector<float> q(4 * 64), out(q.size());
        for (std::size_t i = 0; i < q.size(); ++i) q[i] = static_cast<float>((i * 37 + step) % 19) - 9.0f;
        REQUIRE(ctx.sync_wait(stream(cache, s, *r, 0, q, out)));
        all.insert(all.end(), out.begin(), out.end());
        s.commit(std::move(*r), 1);
      }
      return all;
    };
    auto memory = resident::open(ctx, layout, {.capacity = 32 * block});
    auto small = tiered_cache<tier<ram>, tier<ram, TestType>, lru>::open(
        ctx, layout, {.capacity = 10 * block}, {.capacity = 32 * block});
    REQUIRE(memory);
    REQUIRE(small);
    CHECK(run(*small) == run(*memory));
    // Nothing is brought up to be read, but for fp32, which attention reads raw alone.
    CHECK((small->stats().tiers[1].loads == 0) == (type != element::fp32));
  }
}

TEST_CASE("a stream computes in integers where it is asked to, near the result in float") {
  const plane p{.heads = 2, .dim = 64, .type = element::fp16};
  const kv_layout layout{.groups = {{.layers = 1, .tokens = 16, .k = p, .v = p}}};
  const std::size_t block = layout.largest_block();
  const auto run = [&](attention_arithmetic arithmetic) {
    context ctx;
    auto cache = tiered_cache<tier<ram>, tier<ram, q8_0>, lru>::open(ctx, layout, {.capacity = 10 * block},
                                                                     {.capacity = 32 * block});
    REQUIRE(cache);
    sequence s = cache->make_sequence();
    std::vector<float> all;
    for (std::uint32_t step = 0; step < 300; ++step) {
      auto r = s.reserve(1);
      REQUIRE(r);
      write_survivors<q8_0, fp16>(*r);
      std::vector<float> q(4 * 64), out(q.size());
      for (std::size_t i = 0; i < q.size(); ++i) q[i] = static_cast<float>((i * 37 + step) % 19) - 9.0f;
      REQUIRE(ctx.sync_wait(stream(*cache, s, *r, 0, q, out, {.arithmetic = arithmetic})));
      if (step % 10 == 9) all.insert(all.end(), out.begin(), out.end());
      s.commit(std::move(*r), 1);
    }
    return all;
  };
  const std::vector<float> integers = run(attention_arithmetic::integer);
  const std::vector<float> floats = run(attention_arithmetic::floating);
  CHECK(integers != floats);
  CHECK(rel_l2(integers, {floats.begin(), floats.end()}) < 1e-3);
}

TEST_CASE("a stream over one latent plane, as MLA has, gives its values, with the scale that is asked for") {
  constexpr std::uint32_t heads = 6, latent = 96, values = 64;
  kv_layout layout{
      .groups = {{.layers = 1, .tokens = 16, .k = {.heads = 1, .dim = latent}, .latent_v_dim = values}}};
  const std::size_t block = layout.largest_block();
  context ctx;
  auto cache =
      ladder::open(ctx, layout, {.capacity = 12 * block}, {.capacity = 6 * block}, {.capacity = 64 * block});
  REQUIRE(cache);
  const auto element_at = [](std::uint64_t position, std::uint32_t d) {
    return pattern::element_at(8, 0, false, 0, position, d);
  };
  sequence s = cache->make_sequence();
  constexpr std::uint32_t steps = 250;
  for (std::uint32_t step = 0; step < steps; ++step) {
    auto r = s.reserve(1);
    REQUIRE(r);
    for (std::uint32_t d = 0; d < latent; ++d) r->k(0).row<fp16>(0, 0)[d] = element_at(step, d);
    if (step + 1 < steps) {
      s.commit(std::move(*r), 1);
      continue;
    }
    std::vector<float> q(heads * latent), out(heads * values);
    for (std::size_t i = 0; i < q.size(); ++i) q[i] = static_cast<float>(i * 37 % 19) - 9.0f;
    REQUIRE(ctx.sync_wait(stream(*cache, s, *r, 0, q, out, {.scale = 0.05f})));
    std::vector<double> want(out.size());
    for (std::uint32_t h = 0; h < heads; ++h) {
      std::vector<double> p(steps);
      double sum = 0;
      for (std::uint32_t k = 0; k < steps; ++k) {
        for (std::uint32_t d = 0; d < latent; ++d)
          p[k] +=
              0.05 * static_cast<double>(q[h * latent + d]) * static_cast<double>(to_float(element_at(k, d)));
        sum += p[k] = std::exp(p[k]);
      }
      for (std::uint32_t k = 0; k < steps; ++k)
        for (std::uint32_t d = 0; d < values; ++d)
          want[h * values + d] += p[k] / sum * static_cast<double>(to_float(element_at(k, d)));
    }
    CHECK(rel_l2(out, want) < 1e-5);
    CHECK(cache->stats().tiers[2].loads > 0);
  }
  layout.groups[0].latent_v_dim = latent + 16;
  CHECK(validate(layout).error().code == errc::invalid_argument);
}

TEST_CASE("latent values that end within a group of 32 are not read where they are encoded") {
  constexpr std::uint32_t heads = 8, latent = 96, values = 80, steps = 300;
  const kv_layout layout{
      .groups = {{.layers = 1, .tokens = 16, .k = {.heads = 1, .dim = latent}, .latent_v_dim = values}}};
  const std::size_t block = layout.largest_block();
  std::vector<std::vector<float>> found;
  for (const std::size_t slots : {64u, 8u}) {  // all in tier 0, and most of them below it
    context ctx;
    auto cache = tiered_cache<tier<ram>, tier<ram, q8_0>, lru>::open(ctx, layout, {.capacity = slots * block},
                                                                     {.capacity = 64 * block});
    REQUIRE(cache);
    sequence s = cache->make_sequence();
    auto r = s.reserve(1);
    for (std::uint32_t step = 0; step < steps; ++step) {
      REQUIRE(r);
      for (std::uint32_t d = 0; d < latent; ++d)
        r->k(0).row<fp16>(0, 0)[d] = pattern::element_at(8, 0, false, 0, step, d);
      if (step + 1 == steps) break;
      s.commit(std::move(*r), 1);
      r = s.reserve(1);
    }
    std::vector<float> q(heads * latent);
    for (std::size_t i = 0; i < q.size(); ++i) q[i] = static_cast<float>(i * 37 % 19) - 9.0f;
    found.emplace_back(heads * values);
    const std::size_t most = std::size_t{1} << 61;  // of a window: more than there can be
    REQUIRE(ctx.sync_wait(stream(*cache, s, *r, 0, q, found.back(), {.scale = 0.05f, .window_bytes = most})));
  }
  CHECK(rel_l2(found[1], {found[0].begin(), found[0].end()}) < 0.02);
}

TEST_CASE("a sliding window with sinks sees what it keeps and no more") {
  context ctx;
  kv_layout layout = pattern::layout(layers);
  layout.groups[0].keep = {.window = 40, .sinks = 4};
  medium_script script;
  auto cache = over_script::open(ctx, layout, {.capacity = 16 * pattern::block_bytes},
                                 {.capacity = 64 * pattern::block_bytes, .script = &script});
  REQUIRE(cache);
  sequence s = cache->make_sequence();
  for (int i = 0; i < 20; ++i) REQUIRE(pattern::append(s, 10, layers, 4));
  auto r = s.reserve(3);
  REQUIRE(r);
  pattern::write(*r, layers, 4);
  const auto q = queries(3, 9);
  std::vector<float> out(q.size());
  REQUIRE(ctx.sync_wait(stream(*cache, s, *r, 1, q, out)));
  CHECK(rel_l2(out, reference(4, 1, q, 200, {40, 4})) < 1e-5);
}

TEST_CASE("what a sequence forgot is not seen any more") {
  context ctx;
  auto cache = resident::open(ctx, pattern::layout(layers), {.capacity = 64 * pattern::block_bytes});
  REQUIRE(cache);
  sequence s = cache->make_sequence();
  REQUIRE(pattern::append(s, 100, layers, 5));
  s.forget(0, 64);
  auto r = s.reserve(1);
  REQUIRE(r);
  pattern::write(*r, layers, 5);
  const auto q = queries(1, 3);
  std::vector<float> out(q.size());
  REQUIRE(ctx.sync_wait(stream(*cache, s, *r, 0, q, out)));
  CHECK(rel_l2(out, reference(5, 0, q, 100, {}, 64)) < 1e-5);
}

namespace {
// Forty blocks below a tier 0 of ten, and a token that is to attend to them.
struct mostly_below {
  mostly_below()
      : cache(over_script::open(ctx, pattern::layout(layers), {.capacity = 10 * pattern::block_bytes},
                                {.capacity = 64 * pattern::block_bytes, .script = &script})) {
    REQUIRE(cache);
    s.emplace(cache->make_sequence());
    for (int i = 0; i < 20; ++i) REQUIRE(pattern::append(*s, 16, layers, 6));
    REQUIRE(ctx.sync_wait(cache->flush()));
    r.emplace(s->reserve(1));
    REQUIRE(*r);
    pattern::write(**r, layers, 6);
  }
  auto attention() { return stream(*cache, *s, **r, 0, q, out); }

  context ctx{{.codec_threads = 0}};
  medium_script script;
  result<over_script> cache;
  std::optional<sequence> s;
  std::optional<result<reservation>> r;
  std::vector<float> q = queries(1, 3);
  std::vector<float> out = std::vector<float>(q.size(), 7.0f);
};
}  // namespace

TEST_CASE("a lost block fails the stream and names itself; nothing stays pinned") {
  mostly_below f;
  f.cache->use({});
  const auto pinned = f.cache->stats().pins;
  f.script.fail_reads = 1;
  {
    auto done = f.ctx.sync_wait(f.attention());
    REQUIRE_FALSE(done);
    CHECK(done.error().code == errc::lost);
    REQUIRE(done.error().lost.size() == 1);
    CHECK(done.error().lost[0].cause.code == errc::io_error);
    CHECK(f.out == std::vector<float>(f.q.size(), 7.0f));
  }
  while (!f.ctx.idle()) f.ctx.poll();
  CHECK(f.cache->stats().pins == pinned);
}

TEST_CASE("a stream that is stopped ends, and gives everything back") {
  mostly_below f;
  const auto pinned = f.cache->stats().pins;

  // Stops after each possible number of completed transfers.
  for (unsigned after = 0; after < 40; ++after) {
    CAPTURE(after);
    ending how{};
    ex::inplace_stop_source stop;
    auto operation = f.attention().connect(watcher{&how, stop.get_token()});
    f.script.hold = true;
    ex::start(operation);
    for (unsigned i = 0; i < after && how == ending::none; ++i) {
      f.script.release_all();
      f.ctx.poll();
    }
    stop.request_stop();
    f.ctx.poll();
    CHECK((how == ending::stopped || how == ending::value));
    f.script.hold = false;
    while (f.script.in_flight != 0 || !f.ctx.idle()) {
      f.script.release_all();
      f.ctx.poll();
    }
    CHECK(how != ending::none);
    CHECK(f.cache->stats().pins == pinned);
    if (how == ending::value) break;
  }
  REQUIRE(f.ctx.sync_wait(f.attention()));
  CHECK(rel_l2(f.out, reference(6, 0, f.q, f.s->length())) < 1e-5);
}

namespace {
struct code_of_error {
  using receiver_concept = ex::receiver_t;
  std::optional<errc>* code;
  void set_value() noexcept {}
  void set_error(block_error e) noexcept { *code = e.code; }
  void set_stopped() noexcept {}
};
}  // namespace

TEST_CASE(
    "a stream whose sequence forgets blocks meanwhile says that it was changed, not that they are lost") {
  mostly_below f;
  std::optional<errc> failed;
  f.script.hold = true;
  auto operation = f.attention().connect(code_of_error{&failed});
  ex::start(operation);
  f.s->forget(0, 19 * 16);
  f.script.hold = false;
  while (!failed && (f.script.in_flight != 0 || !f.ctx.idle())) {
    f.script.release_all();
    f.ctx.poll();
  }
  CHECK(failed == errc::invalid_argument);
  CHECK(f.out == std::vector<float>(f.q.size(), 7.0f));
}

TEST_CASE("a stream that has completed leaves the cache alone, and its workspace to the next") {
  context ctx;
  std::optional<resident> cache =
      std::move(*resident::open(ctx, pattern::layout(layers), {.capacity = 64 * pattern::block_bytes}));
  std::optional<sequence> s = cache->make_sequence();
  REQUIRE(pattern::append(*s, 40, layers, 6));
  auto r = s->reserve(1);
  REQUIRE(r);
  pattern::write(*r, layers, 6);
  const auto q = queries(1, 3);
  std::vector<float> out(q.size());
  ending how{};
  ex::inplace_stop_source stop;
  const auto connected = [&] {
    return stream(*cache, *s, *r, 0, q, out).connect(watcher{&how, stop.get_token()});
  };
  std::optional<decltype(connected())> held;
  held.emplace(elide(connected));
  ex::start(*held);
  while (how == ending::none) ctx.poll();
  CHECK(how == ending::value);
  s->commit(std::move(*r), 0);
  s.reset();
  cache.reset();
  held.reset();  // uses nothing that has gone
}

TEST_CASE("spans of a wrong size are refused") {
  context ctx;
  auto cache = resident::open(ctx, pattern::layout(layers), {.capacity = 64 * pattern::block_bytes});
  REQUIRE(cache);
  sequence s = cache->make_sequence();
  auto r = s.reserve(2);
  REQUIRE(r);
  pattern::write(*r, layers, 1);
  std::vector<float> q(2 * q_heads * dim), out(q.size());
  std::vector<float> odd(q.size() + 1);
  CHECK(ctx.sync_wait(stream(*cache, s, *r, 0, q, out)));
  auto bad = ctx.sync_wait(stream(*cache, s, *r, 0, odd, out));
  REQUIRE_FALSE(bad);
  CHECK(bad.error().code == errc::invalid_argument);
  CHECK_FALSE(ctx.sync_wait(stream(*cache, s, *r, 0, q, odd)));
}
