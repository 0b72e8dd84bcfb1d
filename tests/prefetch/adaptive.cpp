#include "terrace/prefetch/adaptive.hpp"

#include <algorithm>
#include <array>
#include <random>
#include <vector>

#include "catch.hpp"
#include "pattern.hpp"
#include "terrace/attention/stream.hpp"
#include "terrace/execution/sync_wait.hpp"
#include "terrace/medium/ram.hpp"
#include "terrace/policy/lru.hpp"
#include "terrace/policy/step_aware.hpp"
#include "terrace/prefetch/attention_pattern.hpp"
#include "terrace/prefetch/layer_ahead.hpp"
#include "terrace/prefetch/sliding_window.hpp"
#include "terrace/testing/scripted.hpp"
#include "terrace/tiered_cache.hpp"

using namespace terrace;

namespace {

using every_prefetcher = adaptive<layer_ahead, sliding_window, attention_pattern>;

template <class Policy>
struct decode {
  using type = tiered_cache<tier<ram>, tier<scripted>, Policy>;
  decode(std::uint32_t layers, std::uint32_t depth, std::size_t slots)
      : cache(std::move(
            *type::open(ctx, pattern::layout(layers), {.capacity = (slots + layers) * pattern::block_bytes},
                        {.capacity = 2 * layers * depth * pattern::block_bytes, .script = &script}))),
        text(cache.make_sequence()) {
    for (std::uint32_t n = 0; n < depth; ++n) REQUIRE(pattern::append(text, 16, layers, 1));
    REQUIRE(pattern::append(text, 1, layers, 1));
    REQUIRE(ctx.sync_wait(cache.flush()));
  }
  // The engine computes: what is on its way arrives.
  void settle() {
    while (script.in_flight != 0 || !ctx.idle()) {
      script.release_all();
      ctx.poll();
    }
  }
  context ctx{{.codec_threads = 0}};
  medium_script script;
  type cache;
  sequence text;
};

}  // namespace

TEST_CASE("adaptive follows whose predictions are used, and nobody where none are") {
  every_prefetcher p(layer_ahead({.blocks = 4}), sliding_window({.blocks = 4, .sinks = 0}),
                     attention_pattern({.blocks = 4}));
  CHECK(p.following() == "none");
  std::array<prefetch_wish, 8> out;
  const auto step = [&](std::uint64_t s, std::uint32_t first_read) {
    for (std::uint32_t row = 0; row < 3; ++row) {
      const row_use use{.sequence = 1, .row = row, .rows = 3, .blocks = 40, .step = s, .selected = true};
      p.observe(use);
      std::vector<float> shares(40);
      for (std::uint32_t b = first_read; b < first_read + 4; ++b) shares[b] = 0.25f;
      p.attended(use, shares);
    }
  };
  for (std::uint64_t s = 0; s < 5; ++s) step(s, 0);
  CHECK(p.following() == "layer_ahead");
  for (std::uint64_t s = 5; s < 60; ++s) step(s, 20);
  CHECK(p.following() == "attention_pattern");
  CHECK(p.usefulness(0) < 0.1f);
  CHECK(p.usefulness(2) > 0.9f);
  REQUIRE(p.suggest(out) == 1);
  CHECK((out[0].first == 20 && out[0].blocks == 4));
  for (std::uint64_t s = 60; s < 200; ++s) step(s, static_cast<std::uint32_t>(4 + 4 * (s % 8)));
  CHECK(p.following() == "none");
  CHECK(p.suggest(out) == 0);
}

TEST_CASE("adaptive: sequences that take turns are judged apart, and of equals the first one is followed") {
  every_prefetcher p;
  for (std::uint64_t s = 0; s < 10; ++s)
    for (std::uint32_t row = 0; row < 3; ++row)
      for (std::uint32_t q = 1; q <= 8; ++q)
        p.observe({.sequence = q, .row = row, .rows = 3, .blocks = 30, .step = s});
  CHECK(p.following() == "layer_ahead");
  CHECK(p.usefulness(0) == 1);
  CHECK(p.usefulness(1) == 1);
}

TEST_CASE("adaptive: rows of which a selection is read are judged apart, and nobody is believed before") {
  every_prefetcher p(layer_ahead({.blocks = 4}), sliding_window({.blocks = 4, .sinks = 0}),
                     attention_pattern({.blocks = 4}));
  std::uint64_t at_step = 0;
  const auto step = [&](bool selected) {
    ++at_step;
    for (std::uint32_t row = 0; row < 3; ++row) {
      const row_use use{
          .sequence = 1, .row = row, .rows = 3, .blocks = 40, .step = at_step, .selected = selected};
      p.observe(use);
      std::vector<float> shares(40, selected ? 0.0f : 0.025f);
      if (selected) std::fill_n(shares.begin() + 20, 4, 0.25f);
      p.attended(use, shares);
    }
  };
  for (int n = 0; n < 10; ++n) step(false);
  CHECK(p.following() == "layer_ahead");
  step(true);
  CHECK(p.following() == "none");
  CHECK(p.usefulness(0) == 0);
  for (int n = 0; n < 10; ++n) step(true);
  CHECK(p.following() == "attention_pattern");
  step(false);
  CHECK(p.following() == "layer_ahead");
  CHECK(p.usefulness(0) == 1);
  step(true);
  CHECK(p.following() == "attention_pattern");
}

TEST_CASE("adaptive: where the one that it follows is silent it loads nothing, for a while") {
  every_prefetcher p(layer_ahead({.blocks = 4}), sliding_window({.blocks = 4, .sinks = 0}),
                     attention_pattern({.blocks = 4}));
  std::array<prefetch_wish, 8> out;
  std::uint64_t at_step = 0;
  // Attention reads three of the blocks that layer_ahead asks for, and all that attention_pattern does, where it does.
  const auto step = [&](std::uint32_t other) {
    ++at_step;
    for (std::uint32_t row = 0; row < 3; ++row) {
      const row_use use{
          .sequence = 1, .row = row, .rows = 3, .blocks = 40, .step = at_step, .selected = true};
      p.observe(use);
      std::vector<float> shares(40);
      for (const std::uint32_t b : {other, other + 1, other + 2}) shares[b] = 0.25f;
      p.attended(use, shares);
    }
  };
  for (int n = 0; n < 30; ++n) step(1);
  CHECK(p.following() == "attention_pattern");
  CHECK(p.suggest(out) != 0);
  for (std::uint32_t n = 0; n < 4; ++n) step(4 + 3 * n);  // never the same blocks
  CHECK(p.following() == "attention_pattern");
  CHECK(p.suggest(out) == 0);
  for (std::uint32_t n = 0; n < 40; ++n) step(4 + 3 * (n % 11));
  CHECK(p.following() == "none");
}

TEST_CASE("adaptive on a cyclic decode: what it loads is used, and in time") {
  constexpr std::uint32_t layers = 6, depth = 12;
  for (const std::size_t slots : {3 * depth, 4 * depth}) {
    decode<step_aware> d(layers, depth, slots);
    d.cache.use(every_prefetcher(layer_ahead({.blocks = depth}), sliding_window(), attention_pattern()));
    const std::vector<float> query(64);
    std::vector<float> out(64);
    constexpr std::uint64_t warm_up = 2;
    cache_stats before;
    for (std::uint64_t step = 1; step <= 12; ++step) {
      if (step == warm_up + 1) before = d.cache.stats();
      d.cache.advance_step(step);
      auto token = d.text.reserve(1);
      REQUIRE(token);
      for (std::uint32_t layer = 0; layer < layers; ++layer) {
        REQUIRE(d.ctx.sync_wait(stream(d.cache, d.text, *token, layer, query, out)));
        d.settle();
      }
    }
    const cache_stats after = d.cache.stats();
    const auto issued = static_cast<double>(after.prefetch.issued - before.prefetch.issued);
    const auto used = static_cast<double>(after.prefetch.used - before.prefetch.used);
    const auto late = static_cast<double>(after.prefetch.late - before.prefetch.late);
    const auto loads = static_cast<double>(after.tiers[1].loads - before.tiers[1].loads);
    CAPTURE(slots, issued, used, late, loads);
    CHECK(loads > 100);
    CHECK(used >= 0.95 * issued);
    CHECK(used - late >= 0.95 * loads);
  }
}

TEST_CASE("adaptive on a top-k pattern that drifts: what it loads is used") {
  constexpr std::uint32_t layers = 4, depth = 64, k = 8;
  decode<lru> d(layers, depth, 3 * k);
  d.cache.use(every_prefetcher(layer_ahead({.blocks = k}), sliding_window({.blocks = k}),
                               attention_pattern({.blocks = k})));
  std::mt19937 random(11);
  std::vector<std::vector<std::uint32_t>> hot(layers);
  for (auto& row : hot)
    while (row.size() < k)
      if (const auto b = static_cast<std::uint32_t>(random() % depth);
          std::find(row.begin(), row.end(), b) == row.end())
        row.push_back(b);
  cache_stats before;
  for (std::uint64_t step = 1; step <= 220; ++step) {
    if (step == 21) before = d.cache.stats();
    d.cache.advance_step(step);
    for (std::uint32_t row = 0; row < layers; ++row) {
      for (std::uint32_t& b : hot[row])  // one block in twelve is another one at the next step
        if (random() % 12 == 0) do
            b = static_cast<std::uint32_t>(random() % depth);
          while (std::count(hot[row].begin(), hot[row].end(), b) != 1);
      const row_use use{.sequence = d.text.number(),
                        .row = row,
                        .rows = layers,
                        .blocks = depth,
                        .step = step,
                        .selected = true};
      const std::vector<block_id> ids = pattern::sealed(d.text, row);
      std::vector<block_id> read;
      std::vector<float> shares(depth);
      for (const std::uint32_t b : hot[row]) {
        read.push_back(ids[b]);
        shares[b] = 1.0f / k;
      }
      d.cache.prefetcher().observe(use);
      REQUIRE(d.ctx.sync_wait(d.cache.acquire(read)));
      d.cache.prefetcher().attended(use, shares);
      std::array<prefetch_wish, 16> wishes;
      std::vector<block_id> wanted;
      const std::size_t count = d.cache.prefetcher().suggest(wishes);
      for (const prefetch_wish& wish : std::span(wishes).first(count)) {
        const std::vector<block_id> next = pattern::sealed(d.text, wish.row);
        for (std::uint32_t b = wish.first; b < wish.first + wish.blocks; ++b) wanted.push_back(next[b]);
      }
      d.cache.prefetch(wanted);
      d.settle();
    }
  }
  const prefetch_stats after = d.cache.stats().prefetch;
  const auto issued = static_cast<double>(after.issued - before.prefetch.issued);
  const auto used = static_cast<double>(after.used - before.prefetch.used);
  CAPTURE(issued, used);
  CHECK(issued > 1000);
  CHECK(used >= 0.85 * issued);
}

TEST_CASE(
    "a prefetch never takes the room of another one that is still to be used, and goes with its sequence") {
  decode<lru> d(1, 40, 8);
  const std::vector<block_id> ids = pattern::sealed(d.text, 0);
  d.cache.prefetch(std::span(ids).first(16));
  d.settle();
  d.cache.prefetch(std::span(ids).subspan(16, 16));
  d.settle();
  const prefetch_stats held = d.cache.stats().prefetch;
  CHECK(held.issued > 0);
  CHECK(held.wasted == 0);
  d.text.release();
  CHECK(d.cache.prefetch(ids) == 0);
  d.settle();
  CHECK(d.cache.stats().prefetch.wasted == held.issued);
  CHECK(d.cache.stats().blocks == 0);
}
