// Blocks that are read where they lie, as a codec wrote them, of any layer and of latent planes.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "attention/context_of_tokens.hpp"
#include "attention/double_reference.hpp"
#include "catch.hpp"
#include "instruction_sets.hpp"
#include "terrace/attention/attend.hpp"
#include "terrace/codec/fp8.hpp"
#include "terrace/codec/q4_0.hpp"
#include "terrace/codec/q8_0.hpp"
#include "terrace/core/convert.hpp"

using namespace terrace;
using namespace attention_test;

TEMPLATE_TEST_CASE("an encoded block gives the same bits in place as decoded, and agrees with the reference",
                   "", q8_0, q4_0, fp8) {
  struct shape_case {
    std::uint32_t q_heads, kv_heads, dim, v_dim, block, tokens, queries;
    retention keep;
    bool latent = false;
  };
  // GQA, MQA, MHA and MLA; register blocks of 4, 2 and 1 rows; windows with sinks.
  const shape_case cases[] = {
      {6, 2, 96, 64, 80, 160, 5, {}},         {4, 4, 64, 64, 64, 130, 1, {}},
      {8, 1, 128, 128, 256, 300, 2, {50, 5}}, {7, 1, 256, 256, 16, 70, 3, {}},
      {16, 2, 32, 160, 48, 100, 1, {9, 0}},   {2, 1, 64, 96, 100, 210, 40, {64, 4}},
      {8, 1, 576, 512, 32, 70, 2, {}, true},  {3, 1, 96, 32, 64, 100, 1, {20, 3}, true}};
  std::mt19937 random(9);
  for (const shape_case& c : cases) {
    for (const element type : {element::fp16, element::bf16}) {
      for (const page_order order : {page_order::hnd, page_order::nhd}) {
        const attention_shape shape{
            .q_heads = c.q_heads, .kv_heads = c.kv_heads, .dim = c.dim, .scale = 0, .keep = c.keep};
        layer_group group = blocks_of(c.block, type, order);
        (c.latent ? group.latent_v_dim : group.v.dim) = c.v_dim;
        context_of_tokens kv(shape, group, c.tokens);
        kv.fill(random);
        const auto encoded = encode_all<TestType>(kv);
        constexpr auto encoding = static_cast<block_encoding>(TestType::format_id);
        REQUIRE(validate(shape, kv.group(), encoding));
        const query_tile tile =
            tile_of(shape, random_queries(random, shape, c.queries), c.tokens - c.queries);
        for (const isa set : sets_here()) {
          INFO(name(set) << " dim " << c.dim << " heads " << c.q_heads << "/" << c.kv_heads);
          const partial_state decoded = attend_all(kv, tile, set);
          const partial_state in_place = attend_in_place(kv, encoded, encoding, tile, set);
          for (std::size_t row = 0; row < tile.rows(); ++row) REQUIRE(same_bits(decoded, in_place, row, row));
          REQUIRE(error_against_reference(kv, tile, in_place) < 3e-6);
        }
      }
    }
  }
}

TEST_CASE("fp8 blocks of any head dimension and element type are read in place") {
  std::mt19937 random(15);
  for (const element type : {element::fp16, element::bf16, element::fp32}) {
    const attention_shape shape{.q_heads = 4, .kv_heads = 2, .dim = 80, .scale = 0, .keep = {}};
    context_of_tokens kv(shape, blocks_of(48, type), 100);
    kv.fill(random);
    kv.set_key(20, 0, 3, infinity);  // 448 in fp8
    const auto encoded = encode_all<fp8>(kv);
    REQUIRE(validate(shape, kv.group(), block_encoding::fp8));
    const query_tile tile = tile_of(shape, random_queries(random, shape, 2), 98);
    for (const isa set : sets_here()) {
      const partial_state decoded = attend_all(kv, tile, set);
      const partial_state in_place = attend_in_place(kv, encoded, block_encoding::fp8, tile, set);
      for (std::size_t row = 0; row < tile.rows(); ++row) REQUIRE(same_bits(decoded, in_place, row, row));
    }
  }
}

TEST_CASE("the values of a latent plane are the first elements of its vectors") {
  struct shape_case {
    std::uint32_t q_heads, dim, v_dim, block, tokens, queries;
    retention keep;
  };
  const shape_case cases[] = {{16, 576, 512, 64, 100, 1, {}},
                              {128, 576, 512, 32, 40, 1, {}},
                              {4, 96, 80, 16, 70, 5, {.window = 30, .sinks = 2}},
                              {3, 64, 64, 100, 101, 2, {}},
                              {2, 48, 16, 64, 65, 65, {}}};
  std::mt19937 random(16);
  for (const shape_case& c : cases) {
    for (const element type : {element::fp16, element::bf16, element::fp32, element::fp8_e4m3}) {
      const attention_shape shape{
          .q_heads = c.q_heads, .kv_heads = 1, .dim = c.dim, .scale = 0.07f, .keep = c.keep};
      layer_group group = blocks_of(c.block, type, page_order::nhd);
      group.latent_v_dim = c.v_dim;
      context_of_tokens kv(shape, group, c.tokens);
      kv.fill(random);
      REQUIRE(kv.group().planes() == 1);
      REQUIRE(validate(shape, kv.group()));
      const query_tile tile = tile_of(shape, random_queries(random, shape, c.queries), c.tokens - c.queries);
      for (const isa set : sets_here()) {
        INFO(name(set) << " dim " << c.dim << " of which values " << c.v_dim);
        REQUIRE(error_against_reference(kv, tile, attend_all(kv, tile, set)) < 3e-6);
      }
    }
  }
}

TEST_CASE("any layer of an encoded block of several is read") {
  std::mt19937 random(14);
  const attention_shape shape{.q_heads = 2, .kv_heads = 2, .dim = 64, .scale = 0, .keep = {}};
  context_of_tokens kv(shape, blocks_of(32), 32);
  kv.fill(random);
  const auto encoded = encode_all<q4_0>(kv);
  const query_tile tile = tile_of(shape, random_queries(random, shape, 2), 30);
  layer_group three = kv.group();
  three.layers = three.layers_per_block = 3;
  std::vector<std::byte> block(q4_0::max_encoded_size(three), std::byte{0xff});
  std::copy(encoded[0].begin(), encoded[0].end(),
            block.begin() + static_cast<std::ptrdiff_t>(2 * encoded[0].size()));
  const partial_state expected = attend_all(kv, tile, best_isa());
  partial_state state;
  REQUIRE(state.reset(tile.rows(), 64));
  for (std::uint32_t head = 0; head < 2; ++head)
    attend(tile,
           {.group = &three,
            .data = block.data(),
            .layer_in_block = 2,
            .first_position = 0,
            .tokens = 32,
            .encoding = block_encoding::q4_0},
           state, head, 0, 2);
  for (std::size_t row = 0; row < tile.rows(); ++row) CHECK(same_bits(state, expected, row, row));
}

TEST_CASE("any layer of a block of several is read") {
  std::mt19937 random(10);
  const attention_shape shape{.q_heads = 2, .kv_heads = 2, .dim = 32, .scale = 0, .keep = {}};
  context_of_tokens kv(shape, blocks_of(64), 64);
  kv.fill(random);
  const query_tile tile = tile_of(shape, random_queries(random, shape, 2), 62);
  layer_group three = kv.group();
  three.layers = three.layers_per_block = 3;
  std::vector<std::byte> block(three.block_bytes(), std::byte{0xff});
  std::copy(kv.block(0).begin(), kv.block(0).end(),
            block.begin() + static_cast<std::ptrdiff_t>(three.k_offset(2)));
  const partial_state expected = attend_all(kv, tile, best_isa());
  partial_state state;
  REQUIRE(state.reset(tile.rows(), 32));
  for (std::uint32_t head = 0; head < 2; ++head)
    attend(tile,
           {.group = &three, .data = block.data(), .layer_in_block = 2, .first_position = 0, .tokens = 64},
           state, head, 0, 2);
  for (std::size_t row = 0; row < tile.rows(); ++row) CHECK(same_bits(state, expected, row, row));
}
