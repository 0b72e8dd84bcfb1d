#include "terrace/attention/attention_arithmetic.hpp"

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
#include "terrace/codec/fp8.hpp"
#include "terrace/codec/q4_0.hpp"
#include "terrace/codec/q8_0.hpp"

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

using namespace terrace;
using namespace attention_test;

namespace {

constexpr double u = 0x1p-16;

// A context as a codec stores it, and the values of that exactly: code * scale as float.
template <codec C>
class encoded_context {
 public:
  static constexpr auto encoding = static_cast<block_encoding>(C::format_id);

  encoded_context(attention_shape shape, const layer_group& group, std::uint32_t tokens)
      : kv(shape, group, tokens), exact_(shape, as_float(group), tokens) {}

  // Stores what `kv` holds.
  void encode() {
    blocks = encode_all<C>(kv);
    decode();
  }
  void decode() {
    for (std::size_t i = 0; i < kv.blocks(); ++i)
      static_cast<void>(C::decode(exact_.group(), blocks[i], exact_.block(i)));
  }
  // The scale of the group of 32 that has dimension d of a token's key or value.
  std::byte* scale_at(bool of_value, std::uint32_t token, std::uint32_t head, std::uint32_t d) {
    block_view view = kv.view(token / kv.group().tokens);
    view.data = blocks[token / kv.group().tokens].data();
    view.encoding = encoding;
    const token_rows rows = of_value ? value_rows(view, head) : key_rows(view, head);
    return blocks[token / kv.group().tokens].data() + (rows[token % kv.group().tokens] - view.data) +
           d / 32 * C::group_bytes;
  }
  void set_scale(bool of_value, std::uint32_t token, std::uint32_t head, std::uint32_t d, float scale) {
    const fp16 half = to_fp16(scale);
    std::memcpy(scale_at(of_value, token, head, d), &half, sizeof half);
  }
  partial_state attend(const query_tile& tile, isa set) const {
    return attend_in_place(kv, blocks, encoding, tile, set);
  }

  // Whether each result is as near to softmax(q k) v in double as attention_arithmetic.hpp says. Returns the largest
  // difference, relative to the largest value.
  double check(const query_tile& tile, const partial_state& state) {
    const attention_shape& shape = kv.shape();
    const std::uint32_t dim = kv.group().v_dim(), tokens = kv.tokens();
    const std::uint32_t in_tile = std::min(max_tile_tokens, kv.group().tokens);
    std::vector<float> out(state.rows() * dim);
    state.finish(std::span(out));
    double worst = 0, largest = 1e-30;
    for (std::uint32_t i = 0; i < tile.size(); ++i) {
      for (std::uint32_t h = 0; h < shape.q_heads; ++h) {
        const std::uint32_t kv_head = h / shape.group();
        const std::size_t row = tile.row(i, h);
        const float* const q = tile.values(row);
        double most_q = 0;
        for (std::uint32_t d = 0; d < shape.dim; ++d) most_q = std::max(most_q, std::fabs(double{q[d]}));
        std::vector<double> p(tokens, -std::numeric_limits<double>::infinity());
        double most = -std::numeric_limits<double>::infinity(), off = 0, sum = 0;
        for (std::uint32_t t = 0; t < tokens; ++t) {
          if (!sees(shape.keep, tile.first_position() + i, t)) continue;
          double keys = 0, terms = 0;
          p[t] = 0;
          for (std::uint32_t d = 0; d < shape.dim; ++d) {
            const double k = exact_.key(t, kv_head, d);
            p[t] += q[d] * k;
            terms += std::fabs(q[d] * k);
            keys += std::fabs(k);
          }
          most = std::max(most, p[t]);
          off = std::max(off, u * most_q * keys + 0x1p-20 * terms + 0x1p-100 * keys);
        }
        for (double& x : p) sum += x = std::exp(x - most);
        const double wrong_softmax = std::expm1(2 * off);
        for (std::uint32_t d = 0; d < dim; ++d) {
          double right = 0, bound = 0, magnitude = 0;
          for (std::uint32_t begin = 0, end = 0; begin < tokens; begin = end) {
            const std::uint32_t block_end = (begin / kv.group().tokens + 1) * kv.group().tokens;
            end = std::min({begin + in_tile, block_end, tokens});
            double weight = 0, codes = 0;
            for (std::uint32_t t = begin; t < end; ++t) {
              if (p[t] == 0) continue;
              const double v = exact_.value(t, kv_head, d);
              fp16 half;
              std::memcpy(&half, scale_at(true, t, kv_head, d), sizeof half);
              const double scale = std::fabs(double{to_float(half)});
              right += p[t] / sum * v;
              magnitude += p[t] / sum * std::fabs(v);
              largest = std::max(largest, std::fabs(v));
              weight = std::max(weight, p[t] / sum * scale);
              if (scale != 0) codes += std::fabs(v) / scale;
            }
            bound += u * weight * codes + 0x1p-100 * codes;
          }
          bound = 1.01 * (1 + wrong_softmax) * bound + wrong_softmax * magnitude + 3e-6 * magnitude + 1e-30;
          const double difference = std::fabs(out[row * dim + d] - right);
          REQUIRE(difference <= bound);
          worst = std::max(worst, difference);
        }
      }
    }
    return worst / largest;
  }

  context_of_tokens kv;
  std::vector<std::vector<std::byte>> blocks;

 private:
  static layer_group as_float(layer_group group) {
    group.k.type = group.v.type = element::fp32;
    return group;
  }
  context_of_tokens exact_;
};

struct shape_case {
  std::uint32_t q_heads, kv_heads, dim, v_dim, block, tokens, queries;
  retention keep;
};

attention_shape shape_of(const shape_case& c) {
  return {.q_heads = c.q_heads,
          .kv_heads = c.kv_heads,
          .dim = c.dim,
          .scale = 0,
          .keep = c.keep,
          .arithmetic = attention_arithmetic::integer};
}
layer_group group_of(const shape_case& c, element type, page_order order) {
  layer_group group = blocks_of(c.block, type, order);
  group.v.dim = c.v_dim;
  return group;
}

}  // namespace

TEMPLATE_TEST_CASE("attention in integers is as near to float64 attention as it says", "", q8_0, q4_0) {
  // GQA 1 to 8, blocks and tiles of all sizes, odd numbers of groups, keys and values of different dimensions.
  const shape_case cases[] = {{4, 1, 128, 128, 256, 300, 1, {}}, {8, 1, 128, 128, 64, 129, 1, {}},
                              {2, 2, 64, 64, 16, 37, 3, {}},     {6, 2, 96, 64, 80, 160, 2, {}},
                              {7, 1, 256, 256, 32, 70, 2, {}},   {4, 1, 32, 160, 48, 100, 1, {9, 0}},
                              {5, 1, 64, 96, 5, 23, 4, {}},      {8, 2, 128, 32, 100, 210, 2, {50, 5}},
                              {2, 1, 96, 96, 64, 1, 1, {}},      {4, 2, 64, 64, 1, 9, 9, {}}};
  std::mt19937 random(21);
  for (const shape_case& c : cases) {
    for (const element type : {element::fp16, element::bf16}) {
      for (const page_order order : {page_order::hnd, page_order::nhd}) {
        encoded_context<TestType> context(shape_of(c), group_of(c, type, order), c.tokens);
        context.kv.fill(random);
        context.encode();
        const query_tile tile =
            tile_of(shape_of(c), random_queries(random, shape_of(c), c.queries), c.tokens - c.queries);
        for (const isa set : sets_here()) {
          INFO(name(set) << " dim " << c.dim << " heads " << c.q_heads << "/" << c.kv_heads);
          CHECK(context.check(tile, context.attend(tile, set)) < 5e-5);
        }
      }
    }
  }
}

TEMPLATE_TEST_CASE("the bound holds where magnitudes differ as much as they can", "", q8_0, q4_0) {
  const shape_case c{4, 1, 64, 64, 64, 150, 2, {}};
  std::mt19937 random(22);
  std::normal_distribution<float> normal;
  for (int variant = 0; variant < 8; ++variant) {
    encoded_context<TestType> context(shape_of(c), group_of(c, element::fp16, page_order::hnd), c.tokens);
    context.kv.fill(random, variant == 1 ? 20.0f : 1.0f);
    std::vector<float> q = random_queries(random, shape_of(c), c.queries);
    if (variant == 0) std::fill(q.begin(), q.end(), 0.0f);
    for (std::uint32_t t = 0; t < c.tokens; ++t) {
      for (std::uint32_t d = 0; d < c.dim; ++d) {
        if (variant == 2 && d % 17 == 3) context.kv.set_key(t, 0, d, 200 * normal(random));  // outliers
        if (variant == 3 && t % 9 == 2) context.kv.set_value(t, 0, d, 60000 * normal(random) / 4);
        if (variant == 4) context.kv.set_value(t, 0, d, 0x1p-24f * static_cast<float>(t % 5));  // subnormal
        if (variant == 5 && t % 3 != 0) context.kv.set_key(t, 0, d, 0);
        if (variant == 5 && t % 4 != 0) context.kv.set_value(t, 0, d, 0);
        if (variant == 7) context.kv.set_value(t, 0, d, d < 32 ? 60000.0f : 1e-5f);
      }
    }
    if (variant == 2)
      for (std::size_t i = 5; i < q.size(); i += 16) q[i] *= 500;
    if (variant == 6)
      for (float& x : q) x *= 0x1p-110f;
    context.encode();
    if (variant == 3) context.set_scale(true, 7, 0, 0, 65504.0f / 128);
    context.decode();
    const query_tile tile = tile_of(shape_of(c), q, c.tokens - c.queries);
    for (const isa set : sets_here()) {
      INFO(name(set) << " variant " << variant);
      context.check(tile, context.attend(tile, set));
    }
  }
}

TEMPLATE_TEST_CASE("in integers the bits of a row do not depend on what else is computed with it", "", q8_0,
                   q4_0) {
  const shape_case cases[] = {{8, 2, 64, 64, 64, 150, 90, {}},
                              {7, 1, 96, 128, 48, 100, 70, {9, 0}},
                              {4, 1, 128, 128, 256, 150, 60, {50, 5}},
                              {2, 2, 32, 32, 16, 70, 40, {}}};
  std::mt19937 random(23);
  for (const shape_case& c : cases) {
    const attention_shape shape = shape_of(c);
    encoded_context<TestType> context(shape, group_of(c, element::fp16, page_order::hnd), c.tokens);
    context.kv.fill(random, 3);
    context.encode();
    const std::vector<float> q = random_queries(random, shape, c.queries, 2);
    const query_tile prefill = tile_of(shape, q, c.tokens - c.queries);
    for (const isa set : sets_here()) {
      INFO(name(set) << " dim " << c.dim << " heads " << c.q_heads << "/" << c.kv_heads);
      const partial_state together = context.attend(prefill, set);
      const std::size_t row_floats = std::size_t{shape.q_heads} * shape.dim;
      for (std::uint32_t i = 0; i < c.queries; i += 7) {
        const std::uint32_t position = c.tokens - c.queries + i;
        const query_tile one = tile_of(shape, std::span(q).subspan(i * row_floats, row_floats), position);
        const auto encoded_view = [&](std::size_t b) {
          block_view view = context.kv.view(b);
          view.data = context.blocks[b].data();
          view.encoding = context.encoding;
          return view;
        };
        const partial_state decoded = attend_up_to(context.kv, one, encoded_view, set);
        for (std::uint32_t h = 0; h < shape.q_heads; ++h)
          REQUIRE(same_bits(together, decoded, prefill.row(i, h), one.row(0, h)));
      }
    }
  }
}

TEMPLATE_TEST_CASE("in integers all instruction sets agree up to the rounding of float", "", q8_0, q4_0) {
  const shape_case c{4, 1, 128, 128, 64, 200, 1, {}};
  std::mt19937 random(24);
  encoded_context<TestType> context(shape_of(c), group_of(c, element::fp16, page_order::hnd), c.tokens);
  context.kv.fill(random);
  context.encode();
  const query_tile tile = tile_of(shape_of(c), random_queries(random, shape_of(c), 1), c.tokens - 1);
  std::vector<float> expected(tile.rows() * c.v_dim), out(expected.size());
  context.attend(tile, isa::portable).finish(std::span(expected));
  for (const isa set : sets_here()) {
    context.attend(tile, set).finish(std::span(out));
    double worst = 0;
    for (std::size_t i = 0; i < out.size(); ++i)
      worst = std::max(worst, std::fabs(double{out[i]} - expected[i]));
    INFO(name(set));
    CHECK(worst < 4e-6);  // a weight on the border of two integers may fall on either side
  }
}

TEMPLATE_TEST_CASE("hostile scales make NaN of what they touch, and of nothing that does not see them", "",
                   q8_0, q4_0) {
  const shape_case c{5, 1, 64, 96, 48, 90, 1, {.window = 20, .sinks = 2}};
  std::mt19937 random(25);
  encoded_context<TestType> context(shape_of(c), group_of(c, element::fp16, page_order::hnd), c.tokens);
  context.kv.fill(random);
  context.encode();
  const query_tile tile = tile_of(shape_of(c), random_queries(random, shape_of(c), 1), c.tokens - 1);
  for (const isa set : sets_here()) {
    for (const float hostile : {not_a_number, infinity, -infinity}) {
      INFO(name(set) << " scale " << hostile);
      const partial_state clean = context.attend(tile, set);
      encoded_context<TestType> unseen = context;
      for (std::uint32_t t = 2; t < c.tokens - 20; ++t) {
        unseen.set_scale(false, t, 0, 0, hostile);
        unseen.set_scale(true, t, 0, 32, hostile);
      }
      const partial_state same = unseen.attend(tile, set);
      for (std::size_t row = 0; row < tile.rows(); ++row) REQUIRE(same_bits(clean, same, row, row));

      encoded_context<TestType> seen = context;
      seen.set_scale(true, 80, 0, 32, hostile);
      std::vector<float> out(tile.rows() * c.v_dim), before(out.size());
      clean.finish(std::span(before));
      seen.attend(tile, set).finish(std::span(out));
      for (std::size_t i = 0; i < out.size(); ++i) {
        const std::size_t d = i % c.v_dim;
        if (d >= 32 && d < 64)
          REQUIRE(std::isnan(out[i]));
        else
          REQUIRE(out[i] == before[i]);
      }
      seen = context;
      seen.set_scale(false, 80, 0, 0, hostile);
      static_cast<void>(seen.attend(tile, set));  // some answer, and no undefined behaviour
    }
  }
}

TEST_CASE("a query that has no finite largest element gives NaN in integers, and a tiny one the mean") {
  const shape_case c{4, 1, 64, 64, 64, 64, 1, {}};
  std::mt19937 random(26);
  encoded_context<q8_0> context(shape_of(c), group_of(c, element::fp16, page_order::hnd), c.tokens);
  context.kv.fill(random);
  for (std::uint32_t t = 0; t < c.tokens; ++t) context.kv.set_value(t, 0, 0, t < 32 ? 1.0f : 3.0f);
  context.encode();
  for (const isa set : sets_here()) {
    std::vector<float> out(4 * 64);
    std::vector<float> q(4 * 64, 1.0f);
    q[3] = not_a_number;
    q[64 + 9] = infinity;
    std::fill_n(q.begin() + 128, 64, std::numeric_limits<float>::denorm_min());
    context.attend(tile_of(shape_of(c), q, 63), set).finish(std::span(out));
    INFO(name(set));
    CHECK(std::isnan(out[0]));
    CHECK(std::isnan(out[64]));
    CHECK(std::fabs(out[128] - 2) < 1e-2);
    CHECK(!std::isnan(out[192]));
  }
}

TEST_CASE("what cannot be computed in integers is computed in float, with its bits") {
  struct fallback {
    std::uint32_t dim, v_dim;
    block_encoding encoding;
  };
  std::mt19937 random(27);
  for (const fallback& f : {fallback{288, 64, block_encoding::q8_0}, fallback{64, 288, block_encoding::q8_0},
                            fallback{64, 64, block_encoding::raw}, fallback{64, 64, block_encoding::fp8}}) {
    const shape_case c{4, 1, f.dim, f.v_dim, 32, 50, 1, {}};
    const attention_shape integer = shape_of(c);
    attention_shape floating = integer;
    floating.arithmetic = attention_arithmetic::floating;
    context_of_tokens kv(integer, group_of(c, element::fp16, page_order::hnd), c.tokens);
    kv.fill(random);
    const std::vector<float> q = random_queries(random, integer, 1);
    const query_tile a = tile_of(integer, q, 49), b = tile_of(floating, q, 49);
    std::vector<std::vector<std::byte>> blocks;
    if (f.encoding == block_encoding::q8_0) blocks = encode_all<q8_0>(kv);
    if (f.encoding == block_encoding::fp8) blocks = encode_all<fp8>(kv);
    if (blocks.empty())
      for (std::size_t i = 0; i < kv.blocks(); ++i) blocks.push_back(kv.block(i));
    for (const isa set : sets_here()) {
      const partial_state x = attend_in_place(kv, blocks, f.encoding, a, set);
      const partial_state y = attend_in_place(kv, blocks, f.encoding, b, set);
      for (std::size_t row = 0; row < a.rows(); ++row) REQUIRE(same_bits(x, y, row, row));
    }
  }
  CHECK(attention_shape{}.arithmetic == attention_arithmetic::floating);
}

#if defined(__linux__)
TEMPLATE_TEST_CASE("in integers nothing is read behind the valid tokens of a block", "", q8_0, q4_0) {
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  std::mt19937 random(28);
  for (const std::uint32_t tokens : {1u, 3u, 15u, 16u, 17u, 63u, 64u}) {
    const shape_case c{4, 1, 64, 64, tokens, tokens, 1, {}};
    encoded_context<TestType> context(shape_of(c), group_of(c, element::fp16, page_order::hnd), tokens);
    context.kv.fill(random);
    context.encode();
    const std::size_t size = context.blocks[0].size(), pages = (size + page - 1) / page * page;
    void* const mapped =
        mmap(nullptr, pages + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    REQUIRE(mapped != MAP_FAILED);
    std::byte* const data = static_cast<std::byte*>(mapped) + pages - size;
    std::memcpy(data, context.blocks[0].data(), size);
    REQUIRE(mprotect(static_cast<std::byte*>(mapped) + pages, page, PROT_NONE) == 0);
    const query_tile tile = tile_of(shape_of(c), random_queries(random, shape_of(c), 1), tokens - 1);
    block_view view = context.kv.view(0);
    view.data = data;
    view.encoding = context.encoding;
    for (const isa set : sets_here()) {
      partial_state state;
      REQUIRE(state.reset(tile.rows(), 64));
      attend(tile, view, state, 0, 0, 1, set);
      CHECK(same_bits(state, context.attend(tile, set), 0, 0));
    }
    REQUIRE(munmap(mapped, pages + page) == 0);
  }
}
#endif
