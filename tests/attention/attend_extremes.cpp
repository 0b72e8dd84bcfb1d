// Logits and values that have no good place in floating point, and the exponential itself.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <span>
#include <vector>

#include "attention/context_of_tokens.hpp"
#include "attention/double_reference.hpp"
#include "catch.hpp"
#include "instruction_sets.hpp"
#include "terrace/attention/attend.hpp"
#include "terrace/core/convert.hpp"

using namespace terrace;
using namespace attention_test;

TEST_CASE("huge logits give the answer of the largest, and ties share it") {
  const attention_shape shape{.q_heads = 1, .kv_heads = 1, .dim = 16, .scale = 1, .keep = {}};
  for (const float size : {1e4f, 1e30f, 3e38f}) {
    context_of_tokens kv(shape, blocks_of(64, element::fp32), 130);
    for (std::uint32_t t = 0; t < 130; ++t)
      for (std::uint32_t d = 0; d < 16; ++d) {
        kv.set_key(t, 0, d, d == 0 ? (t == 70 || t == 129 ? size : -size) : 0.0f);
        kv.set_value(t, 0, d, static_cast<float>(t));
      }
    std::vector<float> q(16, 0.0f);
    for (const float direction : {1.0f, 8.0f}) {  // 8 * 3e38 is beyond the floats
      q[0] = direction;
      const query_tile tile = tile_of(shape, q, 129);
      for (const isa set : sets_here()) {
        std::vector<float> out(16);
        attend_all(kv, tile, set).finish(std::span(out));
        INFO(name(set) << " " << size);
        CHECK(out[3] == (70.0f + 129.0f) / 2);
      }
    }
  }
}

TEST_CASE("logits of minus infinity weigh nothing, and a row with no others is empty") {
  const attention_shape shape{.q_heads = 1, .kv_heads = 1, .dim = 16, .scale = 1, .keep = {}};
  context_of_tokens kv(shape, blocks_of(64, element::fp32), 100);
  for (std::uint32_t t = 0; t < 100; ++t)
    for (std::uint32_t d = 0; d < 16; ++d) {
      kv.set_key(t, 0, d, d == 0 ? -infinity : 0.0f);
      kv.set_value(t, 0, d, 1.0f + static_cast<float>(t));
    }
  std::vector<float> q(16, 0.0f);
  q[0] = 1;
  const query_tile tile = tile_of(shape, q, 99);
  for (const isa set : sets_here()) {
    context_of_tokens mixed = kv;
    std::vector<float> out(16);
    partial_state none = attend_all(kv, tile, set);
    none.finish(std::span(out));
    CHECK(none.scalars(0).empty());
    CHECK(out[5] == 0);
    mixed.set_key(80, 0, 0, -1e30f);
    attend_all(mixed, tile, set).finish(std::span(out));
    CHECK(out[5] == 81);
  }
}

TEST_CASE("a NaN in a visible key or value shows in its rows") {
  std::mt19937 random(7);
  const attention_shape shape{.q_heads = 1, .kv_heads = 1, .dim = 32, .scale = 0, .keep = {}};
  for (const bool in_key : {true, false}) {
    context_of_tokens kv(shape, blocks_of(64), 100);
    kv.fill(random);
    in_key ? kv.set_key(20, 0, 7, not_a_number) : kv.set_value(20, 0, 7, not_a_number);
    const query_tile tile = tile_of(shape, random_queries(random, shape, 1), 99);
    for (const isa set : sets_here()) {
      std::vector<float> out(32);
      attend_all(kv, tile, set).finish(std::span(out));
      CHECK(std::isnan(out[7]));
    }
  }
}

TEST_CASE("the weights are exponentials to two units in the last place, exactly 1 at the largest logit") {
  // Token t has logit x[t], and its weight appears in element t of the output, alone.
  const attention_shape shape{.q_heads = 1, .kv_heads = 1, .dim = 64, .scale = 1, .keep = {}};
  std::vector<float> q(64, 0.0f);
  q[0] = 1;
  const query_tile tile = tile_of(shape, q, 63);
  std::mt19937 random(8);
  std::uniform_real_distribution<float> uniform(-1, 0);
  for (const isa set : sets_here()) {
    double worst = 0;
    for (int round = 0; round < 300; ++round) {
      context_of_tokens kv(shape, blocks_of(64, element::fp32), 64);
      const float range = round % 3 == 0 ? 1.0f : round % 3 == 1 ? 12.0f : 87.0f;
      std::vector<float> x(64);
      for (std::uint32_t t = 0; t < 64; ++t) {
        x[t] = t == 13 ? 0.0f : range * uniform(random);
        for (std::uint32_t d = 0; d < 64; ++d) {
          kv.set_key(t, 0, d, d == 0 ? x[t] : 0.0f);
          kv.set_value(t, 0, d, d == t ? 1.0f : 0.0f);
        }
      }
      const partial_state state = attend_all(kv, tile, set);
      REQUIRE(state.o(0)[13] == 1.0f);
      for (std::uint32_t t = 0; t < 64; ++t) {
        const double right = std::exp(double{x[t]});
        const float rounded = static_cast<float>(right);
        const double unit = double{std::nextafter(rounded, infinity)} - rounded;
        worst = std::max(worst, std::fabs(state.o(0)[t] - right) / unit);
      }
    }
    INFO(name(set));
    CHECK(worst <= 2.0);
  }
}
