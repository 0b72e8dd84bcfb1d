// Attention in products of bf16 (attention_arithmetic::bf16). Where the processor has none, it computes in float, and
// the same tests hold.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <span>
#include <vector>

#include "attention/context_of_tokens.hpp"
#include "catch.hpp"
#include "instruction_sets.hpp"
#include "terrace/codec/q8_0.hpp"

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

using namespace terrace;
using namespace attention_test;

namespace {

struct shape_case {
  std::uint32_t q_heads, kv_heads, dim, v_dim, block, tokens, queries;
  retention keep;
};
// GQA 1 to 8, blocks and tiles of all sizes, odd numbers of groups, keys and values of different dimensions.
constexpr shape_case cases[] = {{4, 1, 128, 128, 256, 300, 1, {}}, {8, 1, 128, 128, 64, 129, 1, {}},
                                {2, 2, 64, 64, 16, 37, 3, {}},     {6, 2, 96, 64, 80, 160, 2, {}},
                                {7, 1, 256, 256, 32, 70, 2, {}},   {4, 1, 32, 160, 48, 100, 1, {9, 0}},
                                {5, 1, 64, 96, 5, 23, 4, {}},      {8, 2, 128, 32, 100, 210, 2, {50, 5}},
                                {2, 1, 96, 96, 64, 1, 1, {}},      {4, 2, 64, 64, 1, 9, 9, {}},
                                {4, 1, 64, 64, 64, 200, 70, {}}};

attention_shape shape_of(const shape_case& c, attention_arithmetic how = attention_arithmetic::bf16) {
  return {.q_heads = c.q_heads,
          .kv_heads = c.kv_heads,
          .dim = c.dim,
          .scale = 0,
          .keep = c.keep,
          .arithmetic = how};
}
layer_group group_of(const shape_case& c, element type = element::bf16, page_order order = page_order::hnd) {
  layer_group group = blocks_of(c.block, type, order);
  group.v.dim = c.v_dim;
  return group;
}
// What a model whose activations are bf16 gives.
std::vector<float> as_bf16(std::vector<float> q) {
  for (float& x : q) x = to_float(to_bf16(x));
  return q;
}

// Whether each result is as near to softmax(q k) v in double as attention_arithmetic.hpp says. Returns rel_l2.
double check(context_of_tokens& kv, const query_tile& tile, const partial_state& state) {
  const attention_shape& shape = kv.shape();
  const std::uint32_t dim = kv.group().v_dim(), tokens = kv.tokens();
  std::vector<float> out(state.rows() * dim);
  state.finish(std::span(out));
  double error = 0, norm = 1e-300;
  for (std::uint32_t i = 0; i < tile.size(); ++i)
    for (std::uint32_t h = 0; h < shape.q_heads; ++h) {
      const std::uint32_t kv_head = h / shape.group();
      const std::size_t row = tile.row(i, h);
      std::vector<double> p(tokens, -std::numeric_limits<double>::infinity());
      double most = -std::numeric_limits<double>::infinity(), off = 0, sum = 0;
      for (std::uint32_t t = 0; t < tokens; ++t) {
        if (!sees(shape.keep, tile.first_position() + i, t)) continue;
        double terms = 0;
        p[t] = 0;
        for (std::uint32_t d = 0; d < shape.dim; ++d) {
          const double product = tile.values(row)[d] * kv.key(t, kv_head, d);
          p[t] += product;
          terms += std::fabs(product);
        }
        most = std::max(most, p[t]);
        off = std::max(off, 0x1p-17 * terms + 0x1p-20 * terms);
      }
      for (double& x : p) sum += x = std::exp(x - most);
      const double wrong = std::expm1(2 * off) + 0x1p-8 + 3e-6;
      for (std::uint32_t d = 0; d < dim; ++d) {
        double right = 0, magnitude = 0;
        for (std::uint32_t t = 0; t < tokens; ++t) {
          if (p[t] == 0) continue;
          right += p[t] / sum * kv.value(t, kv_head, d);
          magnitude += p[t] / sum * std::fabs(kv.value(t, kv_head, d));
        }
        const double difference = std::fabs(out[row * dim + d] - right);
        REQUIRE(difference <= wrong * magnitude + 1e-30);
        error += difference * difference;
        norm += right * right;
      }
    }
  return std::sqrt(error / norm);
}

}  // namespace

TEST_CASE("attention in bf16 is as near to float64 attention as it says") {
  std::mt19937 random(31);
  for (const shape_case& c : cases)
    for (const page_order order : {page_order::hnd, page_order::nhd})
      for (const bool exact : {true, false}) {
        context_of_tokens kv(shape_of(c), group_of(c, element::bf16, order), c.tokens);
        kv.fill(random);
        std::vector<float> q = random_queries(random, shape_of(c), c.queries);
        if (exact) q = as_bf16(q);
        const query_tile tile = tile_of(shape_of(c), q, c.tokens - c.queries);
        for (const isa set : sets_here()) {
          INFO(name(set) << " dim " << c.dim << " heads " << c.q_heads << "/" << c.kv_heads);
          CHECK(check(kv, tile, attend_all(kv, tile, set)) < 4e-3);
        }
      }
}

TEST_CASE("the bound of bf16 holds where magnitudes differ as much as they can") {
  const shape_case c{4, 1, 64, 64, 64, 150, 2, {}};
  std::mt19937 random(32);
  std::normal_distribution<float> normal;
  for (int variant = 0; variant < 6; ++variant) {
    context_of_tokens kv(shape_of(c), group_of(c), c.tokens);
    kv.fill(random, variant == 1 ? 20.0f : 1.0f);
    std::vector<float> q = random_queries(random, shape_of(c), c.queries);
    if (variant == 0) std::fill(q.begin(), q.end(), 0.0f);
    for (std::uint32_t t = 0; t < c.tokens; ++t)
      for (std::uint32_t d = 0; d < c.dim; ++d) {
        if (variant == 2 && d % 17 == 3) kv.set_key(t, 0, d, 200 * normal(random));  // outliers
        if (variant == 3 && t % 9 == 2) kv.set_value(t, 0, d, 1e30f * normal(random));
        if (variant == 4 && t % 3 != 0) kv.set_value(t, 0, d, 0);
      }
    if (variant == 5)
      for (std::size_t i = 0; i < q.size(); ++i) q[i] *= i % 2 == 0 ? 0x1p-60f : 1.0f;
    const query_tile tile = tile_of(shape_of(c), q, c.tokens - c.queries);
    INFO("variant " << variant);
    for (const isa set : sets_here()) check(kv, tile, attend_all(kv, tile, set));
  }
}

TEST_CASE("equal values come out as they are: the weights that are summed are those that are multiplied") {
  const shape_case c{4, 1, 64, 64, 64, 150, 1, {}};
  std::mt19937 random(33);
  context_of_tokens kv(shape_of(c), group_of(c), c.tokens);
  kv.fill(random, 2);
  for (std::uint32_t t = 0; t < c.tokens; ++t)
    for (std::uint32_t d = 0; d < c.v_dim; ++d) kv.set_value(t, 0, d, 1.5f);
  const query_tile tile = tile_of(shape_of(c), random_queries(random, shape_of(c), 1), c.tokens - 1);
  std::vector<float> out(4 * 64);
  for (const isa set : sets_here()) {
    attend_all(kv, tile, set).finish(std::span(out));
    for (const float x : out) CHECK(x == Approx(1.5).epsilon(1e-6));
  }
}

TEST_CASE("in bf16 the bits of a row do not depend on what else is computed with it") {
  const shape_case mixed[] = {{8, 2, 64, 64, 64, 150, 90, {}},
                              {7, 1, 96, 128, 48, 100, 70, {9, 0}},
                              {4, 1, 128, 128, 256, 150, 60, {50, 5}},
                              {2, 2, 32, 32, 16, 70, 40, {}}};
  std::mt19937 random(34);
  for (const shape_case& c : mixed) {
    const attention_shape shape = shape_of(c);
    context_of_tokens kv(shape, group_of(c), c.tokens);
    kv.fill(random, 3);
    std::vector<float> q = random_queries(random, shape, c.queries, 2);
    const std::size_t row_floats = std::size_t{shape.q_heads} * shape.dim;
    for (std::size_t i = 0; i < q.size(); ++i)  // some rows need one bf16, others two
      if (i / shape.dim % 3 == 0) q[i] = to_float(to_bf16(q[i]));
    const query_tile prefill = tile_of(shape, q, c.tokens - c.queries);
    for (const isa set : sets_here()) {
      INFO(name(set) << " dim " << c.dim << " heads " << c.q_heads << "/" << c.kv_heads);
      const partial_state together = attend_all(kv, prefill, set);
      for (std::uint32_t i = 0; i < c.queries; i += 7) {
        const std::uint32_t position = c.tokens - c.queries + i;
        const query_tile one = tile_of(shape, std::span(q).subspan(i * row_floats, row_floats), position);
        const partial_state decoded = attend_up_to(
            kv, one, [&](std::size_t b) { return kv.view(b); }, set);
        for (std::uint32_t h = 0; h < shape.q_heads; ++h)
          REQUIRE(same_bits(together, decoded, prefill.row(i, h), one.row(0, h)));
      }
    }
  }
}

TEST_CASE("in bf16 what a row does not see may be anything, and what it sees decides") {
  const shape_case c{5, 1, 64, 96, 48, 90, 1, {.window = 20, .sinks = 2}};
  std::mt19937 random(35);
  context_of_tokens kv(shape_of(c), group_of(c), c.tokens);
  kv.fill(random);
  const query_tile tile = tile_of(shape_of(c), random_queries(random, shape_of(c), 1), c.tokens - 1);
  for (const isa set : sets_here())
    for (const float hostile : {not_a_number, infinity, -infinity}) {
      INFO(name(set) << " " << hostile);
      const partial_state clean = attend_all(kv, tile, set);
      context_of_tokens unseen = kv;
      for (std::uint32_t t = 2; t < c.tokens - 20; ++t)
        for (std::uint32_t d = 0; d < 64; ++d) {
          unseen.set_key(t, 0, d, hostile);
          unseen.set_value(t, 0, d, hostile);
        }
      const partial_state same = attend_all(unseen, tile, set);
      for (std::size_t row = 0; row < tile.rows(); ++row) REQUIRE(same_bits(clean, same, row, row));

      context_of_tokens seen = kv;
      seen.set_value(c.tokens - 1, 0, 40, hostile);  // the last of an odd number, too
      std::vector<float> out(tile.rows() * c.v_dim), before(out.size());
      clean.finish(std::span(before));
      attend_all(seen, tile, set).finish(std::span(out));
      for (std::size_t i = 0; i < out.size(); ++i)
        if (i % c.v_dim == 40)
          REQUIRE((std::isnan(hostile) ? std::isnan(out[i]) : out[i] == hostile));
        else
          REQUIRE(out[i] == before[i]);
      seen = kv;
      seen.set_key(c.tokens - 5, 0, 3, not_a_number);
      attend_all(seen, tile, set).finish(std::span(out));
      CHECK(std::all_of(out.begin(), out.end(), [](float x) { return std::isnan(x); }));
    }
}

TEST_CASE("what cannot be computed in bf16 is computed in float, and q8_0 in integers") {
  std::mt19937 random(36);
  struct fallback {
    std::uint32_t dim, v_dim;
    element type;
  };
  for (const fallback& f :
       {fallback{48, 64, element::bf16}, fallback{64, 48, element::bf16}, fallback{64, 64, element::fp16},
        fallback{64, 64, element::fp32}, fallback{1056, 32, element::bf16}}) {
    const shape_case c{4, 1, f.dim, f.v_dim, 32, 50, 1, {}};
    context_of_tokens kv(shape_of(c), group_of(c, f.type), c.tokens);
    kv.fill(random);
    const std::vector<float> q = random_queries(random, shape_of(c), 1);
    const query_tile a = tile_of(shape_of(c), q, 49);
    const query_tile b = tile_of(shape_of(c, attention_arithmetic::floating), q, 49);
    for (const isa set : sets_here()) {
      const partial_state x = attend_all(kv, a, set), y = attend_all(kv, b, set);
      for (std::size_t row = 0; row < a.rows(); ++row) REQUIRE(same_bits(x, y, row, row));
    }
  }
  const shape_case c{4, 1, 64, 64, 32, 50, 1, {}};
  context_of_tokens kv(shape_of(c), group_of(c), c.tokens);
  kv.fill(random);
  const auto blocks = encode_all<q8_0>(kv);
  const std::vector<float> q = random_queries(random, shape_of(c), 1);
  const query_tile a = tile_of(shape_of(c), q, 49);
  const query_tile b = tile_of(shape_of(c, attention_arithmetic::integer), q, 49);
  for (const isa set : sets_here()) {
    const partial_state x = attend_in_place(kv, blocks, block_encoding::q8_0, a, set);
    const partial_state y = attend_in_place(kv, blocks, block_encoding::q8_0, b, set);
    for (std::size_t row = 0; row < a.rows(); ++row) REQUIRE(same_bits(x, y, row, row));
  }
}

TEST_CASE("bf16 is used where the processor has it") {
  const shape_case c{4, 1, 64, 64, 64, 100, 1, {}};
  std::mt19937 random(37);
  context_of_tokens kv(shape_of(c), group_of(c), c.tokens);
  kv.fill(random);
  const std::vector<float> q = random_queries(random, shape_of(c), 1);
  const query_tile a = tile_of(shape_of(c), q, c.tokens - 1);
  const query_tile b = tile_of(shape_of(c, attention_arithmetic::floating), q, c.tokens - 1);
  for (const isa set : sets_here())
    CHECK(same_bits(attend_all(kv, a, set), attend_all(kv, b, set), 0, 0) ==
          !(set == isa::avx512 && has_bf16_products()));
}

TEST_CASE("latent values, as MLA has, are the beginning of the keys in bf16 too") {
  attention_shape shape{.q_heads = 6, .kv_heads = 1, .dim = 96, .arithmetic = attention_arithmetic::bf16};
  layer_group group;
  group.tokens = 64;
  group.k.type = element::bf16;
  group.latent_v_dim = 64;
  context_of_tokens kv(shape, group, 150);
  std::mt19937 random(38);
  kv.fill(random);
  const query_tile tile = tile_of(shape, random_queries(random, shape, 3), 147);
  for (const isa set : sets_here()) CHECK(check(kv, tile, attend_all(kv, tile, set)) < 4e-3);
}

#if defined(__linux__)
TEST_CASE("in bf16 nothing is read behind the valid tokens of a block") {
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  std::mt19937 random(39);
  for (const std::uint32_t tokens : {1u, 3u, 15u, 16u, 17u, 63u, 64u}) {
    const shape_case c{4, 1, 64, 64, tokens, tokens, 1, {}};
    context_of_tokens kv(shape_of(c), group_of(c), tokens);
    kv.fill(random);
    const std::vector<std::byte>& block = kv.block(0);
    const std::size_t room = (block.size() + page - 1) / page * page;
    void* const memory =
        ::mmap(nullptr, room + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    REQUIRE(memory != MAP_FAILED);
    auto* const guard = static_cast<std::byte*>(memory) + room;
    REQUIRE(::mprotect(guard, page, PROT_NONE) == 0);
    std::byte* const copy = guard - block.size();
    std::memcpy(copy, block.data(), block.size());
    const query_tile tile = tile_of(shape_of(c), random_queries(random, shape_of(c), 1), tokens - 1);
    for (const isa set : sets_here()) {
      partial_state state;
      REQUIRE(state.reset(tile.rows(), c.v_dim));
      block_view view = kv.view(0);
      view.data = copy;
      attend(tile, view, state, 0, 0, 1, set);
      const partial_state expected = attend_all(kv, tile, set);
      for (std::size_t row = 0; row < tile.rows(); ++row) REQUIRE(same_bits(state, expected, row, row));
    }
    REQUIRE(::munmap(memory, room + page) == 0);
  }
}
#endif
