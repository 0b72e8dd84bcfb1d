#include "terrace/prefetch/layer_ahead.hpp"

#include <array>
#include <span>
#include <utility>
#include <vector>

#include "catch.hpp"
#include "pattern.hpp"
#include "terrace/attention/stream.hpp"
#include "terrace/execution/sync_wait.hpp"
#include "terrace/medium/ram.hpp"
#include "terrace/policy/lru.hpp"
#include "terrace/policy/step_aware.hpp"
#include "terrace/testing/scripted.hpp"
#include "terrace/tiered_cache.hpp"

using namespace terrace;

TEST_CASE("layer_ahead asks for the first absent blocks of the next row, and wraps into the next step") {
  layer_ahead p({.blocks = 4});
  std::array<prefetch_wish, 2> out;
  CHECK(p.suggest(out) == 0);
  p.observe({.sequence = 1, .row = 0, .rows = 3, .blocks = 10, .step = 5});
  REQUIRE(p.suggest(out) == 1);
  CHECK(out[0].row == 1);
  CHECK(out[0].first == 0);
  CHECK(out[0].blocks == 4);
  CHECK(out[0].at_step == 5);
  CHECK(out[0].absent);
  p.observe({.sequence = 1, .row = 2, .rows = 3, .blocks = 2, .step = 5});
  REQUIRE(p.suggest(out) == 1);
  CHECK(out[0].row == 0);
  CHECK(out[0].blocks == 2);
  CHECK(out[0].at_step == 6);
  CHECK(p.suggest({}) == 0);
}

TEST_CASE("any_prefetcher holds a prefetcher or none") {
  any_prefetcher none;
  std::array<prefetch_wish, 1> out;
  none.observe({});
  CHECK(none.suggest(out) == 0);
  CHECK(none.name() == "none");
  any_prefetcher some = layer_ahead{};
  some.observe({.rows = 2, .blocks = 3});
  CHECK(some.suggest(out) == 1);
  CHECK(some.name() == "layer_ahead");
}

TEST_CASE("layer_ahead brings sinks and window of the next layer, and nothing that attention has passed") {
  constexpr std::uint32_t layers = 4, depth = 20, seen = 1 + 4;  // a block of sinks, and those of the window
  context ctx;
  medium_script script;
  kv_layout layout = pattern::layout(layers);
  layout.groups[0].keep = {.window = 16 * 4 + 2, .sinks = 16};
  // The layers together do not fit, so that each step brings what the step before has pushed out.
  auto cache = tiered_cache<tier<ram>, tier<scripted>, lru>::open(
      ctx, layout, {.capacity = (layers + 3 * seen) * pattern::block_bytes},
      {.capacity = 2 * layers * depth * pattern::block_bytes, .script = &script});
  REQUIRE(cache);
  cache->use(layer_ahead({.blocks = seen}));
  sequence text = cache->make_sequence();
  for (std::uint32_t n = 0; n < depth; ++n) REQUIRE(pattern::append(text, 16, layers, 1));
  REQUIRE(pattern::append(text, 1, layers, 1));
  REQUIRE(ctx.sync_wait(cache->flush()));

  const std::vector<float> query(64);
  std::vector<float> out(64);
  for (std::uint64_t step = 1; step <= 4; ++step) {
    cache->advance_step(step);
    auto token = text.reserve(1);
    REQUIRE(token);
    for (std::uint32_t layer = 0; layer < layers; ++layer)
      REQUIRE(ctx.sync_wait(stream(*cache, text, *token, layer, query, out, {.attend = false})));
  }
  const prefetch_stats stats = cache->stats().prefetch;
  CHECK(stats.used >= 3 * layers * seen);
  CHECK(stats.wasted == 0);
  CHECK(stats.issued - stats.used <= seen);  // the last wish is for a step that does not come
}

TEST_CASE("layer_ahead passes over what is here already") {
  constexpr std::uint32_t layers = 2, depth = 24, ahead = 4, steps = 6;
  context ctx;
  medium_script script;
  // The front of each layer stays, as step_aware would have it in a larger tier: a wish for the first blocks would find
  // nothing to bring.
  auto cache = tiered_cache<tier<ram>, tier<scripted>, step_aware>::open(
      ctx, pattern::layout(layers), {.capacity = layers * depth / 2 * pattern::block_bytes},
      {.capacity = 2 * layers * depth * pattern::block_bytes, .script = &script});
  REQUIRE(cache);
  cache->use(layer_ahead({.blocks = ahead}));
  sequence text = cache->make_sequence();
  for (std::uint32_t n = 0; n < depth; ++n) REQUIRE(pattern::append(text, 16, layers, 1));
  REQUIRE(ctx.sync_wait(cache->flush()));

  std::vector<lease> fronts;
  for (const auto& row : text.pages().rows) {
    auto front = ctx.sync_wait(cache->acquire(std::span(row).first(ahead)));
    REQUIRE(front);
    fronts.push_back(std::move(*front));
  }

  const std::vector<float> query(64);
  std::vector<float> out(64);
  prefetch_stats learnt;  // after the first step: from then on the policy knows the order
  for (std::uint64_t step = 1; step <= steps; ++step) {
    cache->advance_step(step);
    auto token = text.reserve(1);
    REQUIRE(token);
    for (std::uint32_t layer = 0; layer < layers; ++layer)
      REQUIRE(ctx.sync_wait(stream(*cache, text, *token, layer, query, out, {.attend = false})));
    if (step == 1) learnt = cache->stats().prefetch;
  }
  const prefetch_stats stats = cache->stats().prefetch;
  CHECK(stats.used - learnt.used == (steps - 1) * layers * ahead);
  CHECK(stats.wasted == learnt.wasted);
}
