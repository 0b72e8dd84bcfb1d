#include "terrace/attention/attend.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "attention/context_of_tokens.hpp"
#include "attention/double_reference.hpp"
#include "catch.hpp"
#include "instruction_sets.hpp"
#include "terrace/core/convert.hpp"

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

using namespace terrace;
using namespace attention_test;

TEST_CASE("attend agrees with a float64 reference over shapes, element types and page orders") {
  struct shape_case {
    std::uint32_t q_heads, kv_heads, dim, block, tokens, queries;
  };
  // Head dimensions 64, 80, 96, 128 and 256 as MQA and as GQA, and others.
  const shape_case cases[] = {{1, 1, 16, 64, 1, 1},     {2, 2, 64, 16, 37, 3},    {4, 2, 64, 256, 300, 5},
                              {8, 1, 64, 32, 65, 2},    {6, 2, 80, 64, 100, 2},   {6, 2, 96, 16, 50, 3},
                              {8, 4, 256, 32, 40, 2},   {3, 1, 80, 96, 200, 4},   {4, 1, 96, 48, 130, 1},
                              {8, 2, 128, 256, 257, 7}, {16, 1, 128, 64, 129, 2}, {5, 1, 256, 5, 23, 6},
                              {7, 1, 112, 100, 150, 3}, {6, 3, 64, 1, 9, 9},      {2, 1, 256, 128, 70, 70}};
  std::mt19937 random(1);
  for (const shape_case& c : cases) {
    for (const element type : {element::fp16, element::bf16, element::fp32, element::fp8_e4m3}) {
      for (const page_order order : {page_order::hnd, page_order::nhd}) {
        const attention_shape shape{
            .q_heads = c.q_heads, .kv_heads = c.kv_heads, .dim = c.dim, .scale = 0, .keep = {}};
        context_of_tokens kv(shape, blocks_of(c.block, type, order), c.tokens);
        kv.fill(random);
        REQUIRE(validate(shape, kv.group()));
        const query_tile tile =
            tile_of(shape, random_queries(random, shape, c.queries), c.tokens - c.queries);
        for (const isa set : sets_here()) {
          INFO(name(set) << " dim " << c.dim << " heads " << c.q_heads << "/" << c.kv_heads << " block "
                         << c.block);
          REQUIRE(error_against_reference(kv, tile, attend_all(kv, tile, set)) < 3e-6);
        }
      }
    }
  }
}

TEST_CASE("each query sees its window and the sinks") {
  std::mt19937 random(2);
  for (const retention keep : {retention{1, 0}, retention{7, 0}, retention{64, 4}, retention{20, 70},
                               retention{500, 3}, retention{3, 3}, retention{0, 9}}) {
    const attention_shape shape{.q_heads = 6, .kv_heads = 2, .dim = 32, .scale = 0.3f, .keep = keep};
    context_of_tokens kv(shape, blocks_of(80), 200);
    kv.fill(random);
    for (const std::uint32_t queries : {1u, 90u, 200u}) {
      const query_tile tile = tile_of(shape, random_queries(random, shape, queries), 200 - queries);
      for (const isa set : sets_here()) {
        INFO(name(set) << " window " << keep.window << " sinks " << keep.sinks);
        REQUIRE(error_against_reference(kv, tile, attend_all(kv, tile, set)) < 3e-6);
      }
    }
  }
}

TEST_CASE("the visible tokens of a tile are those of the definition") {
  for (const retention keep :
       {retention{0, 0}, retention{1, 0}, retention{5, 2}, retention{70, 66}, retention{64, 64}})
    for (std::uint64_t position = 0; position < 150; ++position)
      for (std::uint64_t first = 0; first <= 128; first += 32)
        for (const std::uint32_t tokens : {1u, 31u, 64u}) {
          token_mask expected = 0;
          for (std::uint32_t t = 0; t < tokens; ++t)
            expected |= token_mask{sees(keep, position, first + t) ? 1u : 0u} << t;
          REQUIRE(visible_tokens(keep, position, first, tokens) == expected);
        }
}

TEST_CASE("the bits of a row do not depend on what else is computed with it") {
  std::mt19937 random(3);
  struct shape_case {
    std::uint32_t q_heads, kv_heads, dim, block;
    retention keep;
    element type;
  };
  const shape_case cases[] = {{8, 2, 64, 64, {}, element::fp16},     {2, 2, 128, 96, {}, element::bf16},
                              {3, 1, 80, 16, {}, element::fp32},     {2, 1, 96, 256, {50, 5}, element::fp16},
                              {7, 1, 64, 48, {9, 0}, element::bf16}, {16, 1, 64, 256, {}, element::fp16}};
  for (const shape_case& c : cases) {
    const attention_shape shape{
        .q_heads = c.q_heads, .kv_heads = c.kv_heads, .dim = c.dim, .scale = 0, .keep = c.keep};
    constexpr std::uint32_t tokens = 210, queries = 150;
    context_of_tokens kv(shape, blocks_of(c.block, c.type), tokens);
    kv.fill(random, 3);
    const std::vector<float> q = random_queries(random, shape, queries, 2);
    const query_tile prefill = tile_of(shape, q, tokens - queries);
    for (const isa set : sets_here()) {
      INFO(name(set) << " dim " << c.dim << " heads " << c.q_heads << "/" << c.kv_heads);
      const partial_state together = attend_all(kv, prefill, set);
      for (const std::uint32_t chunk : {1u, 2u, 3u, 5u, 64u, 149u}) {
        const partial_state apart = attend_all(kv, prefill, set, chunk);
        for (std::size_t row = 0; row < prefill.rows(); ++row) REQUIRE(same_bits(together, apart, row, row));
      }
      // Decode, and recomputation of a few: each query as a tile of its own, with only the tokens up to it
      // there.
      const std::size_t row_floats = std::size_t{shape.q_heads} * shape.dim;
      for (const std::uint32_t i : {0u, 1u, 3u, 4u, 63u, 64u, 100u, 149u}) {
        const std::uint32_t position = tokens - queries + i;
        const query_tile one = tile_of(shape, std::span(q).subspan(i * row_floats, row_floats), position);
        const partial_state decoded = attend_up_to(
            kv, one, [&](std::size_t b) { return kv.view(b); }, set);
        for (std::uint32_t h = 0; h < shape.q_heads; ++h)
          REQUIRE(same_bits(together, decoded, prefill.row(i, h), one.row(0, h)));
      }
    }
  }
}

TEST_CASE("keys and values that a query does not see may be anything") {
  std::mt19937 random(4);
  const attention_shape shape{
      .q_heads = 4, .kv_heads = 2, .dim = 64, .scale = 0, .keep = {.window = 30, .sinks = 2}};
  context_of_tokens kv(shape, blocks_of(96), 160);
  kv.fill(random);
  const query_tile tile = tile_of(shape, random_queries(random, shape, 40), 100);
  for (const isa set : sets_here()) {
    const partial_state clean = attend_all(kv, tile, set);
    for (const float poison : {not_a_number, infinity, -infinity}) {
      context_of_tokens poisoned = kv;
      // Query 20 sees 91 to 120 and the sinks.
      for (std::uint32_t t = 2; t < 160; ++t) {
        if (t >= 91 && t <= 120) continue;
        for (std::uint32_t d = 0; d < 64; ++d) {
          poisoned.set_key(t, 1, d, poison);
          poisoned.set_value(t, 1, d, poison);
        }
      }
      const partial_state state = attend_all(poisoned, tile, set);
      for (std::uint32_t h = 0; h < 4; ++h)
        REQUIRE(same_bits(clean, state, tile.row(20, h), tile.row(20, h)));
      for (std::uint32_t h = 0; h < 2; ++h)
        REQUIRE(same_bits(clean, state, tile.row(33, h), tile.row(33, h)));
    }
  }
}

#if defined(__linux__)
TEST_CASE("nothing is read behind the valid tokens of a block") {
  // Keys and values of 256 bytes; the pages that begin behind the 13th of each cannot be read.
  constexpr std::uint32_t valid = 13;
  const attention_shape shape{.q_heads = 4, .kv_heads = 1, .dim = 64, .scale = 0, .keep = {}};
  layer_group group = blocks_of(64, element::fp32);
  group.k.heads = group.v.heads = 1;
  group.k.dim = group.v.dim = 64;
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  const std::size_t bytes = 4 * page + group.block_bytes();
  void* const mapped = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  REQUIRE(mapped != MAP_FAILED);
  auto* const block = static_cast<std::byte*>(mapped) + 2 * page - valid * group.token_stride(group.k);
  REQUIRE(group.plane_bytes(group.k) % page == 0);
  for (const std::size_t plane_start : {group.k_offset(), group.v_offset()})
    REQUIRE(mprotect(block + plane_start + valid * group.token_stride(group.k), page, PROT_NONE) == 0);

  std::mt19937 random(13);
  for (const std::uint32_t queries : {1u, 9u}) {
    const query_tile tile = tile_of(shape, random_queries(random, shape, queries), 20);
    for (const isa set : sets_here()) {
      partial_state state;
      REQUIRE(state.reset(tile.rows(), 64));
      attend(tile, {.group = &group, .data = block, .first_position = 0, .tokens = valid}, state, 0, 0,
             queries, set);
      CHECK(std::fabs(row_lse(state, 0) - std::log(13.0f)) < 1e-6f);  // of keys that are all zero
    }
  }
  munmap(mapped, bytes);
}
#endif

TEST_CASE("knowing the next block changes no bits") {
  std::mt19937 random(23);
  const attention_shape shape{.q_heads = 8, .kv_heads = 2, .dim = 64, .scale = 0, .keep = {}};
  for (const std::uint32_t tokens : {16u, 64u, 128u})
    for (const page_order order : {page_order::hnd, page_order::nhd}) {
      context_of_tokens kv(shape, blocks_of(tokens, element::fp16, order), 3 * tokens - 5);
      kv.fill(random);
      const query_tile tile = tile_of(shape, random_queries(random, shape, 1), 3 * tokens - 6);
      for (const isa set : sets_here()) {
        const partial_state alone = attend_all(kv, tile, set);
        partial_state told;
        REQUIRE(told.reset(tile.rows(), 64));
        for (std::uint32_t head = 0; head < 2; ++head)
          for (std::size_t i = 0; i < kv.blocks(); ++i) {
            const block_view next = kv.view(std::min(i + 1, kv.blocks() - 1));
            attend(tile, kv.view(i), told, head, 0, 1, set, &next);
          }
        for (std::size_t row = 0; row < tile.rows(); ++row) REQUIRE(same_bits(told, alone, row, row));
      }
    }
}

TEST_CASE("an item touches the rows of its head and its queries alone") {
  std::mt19937 random(5);
  const attention_shape shape{.q_heads = 6, .kv_heads = 3, .dim = 32, .scale = 0, .keep = {}};
  context_of_tokens kv(shape, blocks_of(64), 64);
  kv.fill(random);
  const query_tile tile = tile_of(shape, random_queries(random, shape, 10), 54);
  for (const isa set : sets_here()) {
    partial_state state, untouched;
    REQUIRE(state.reset(tile.rows(), 32));
    REQUIRE(untouched.reset(tile.rows(), 32));
    attend(tile, kv.view(0), state, 1, 3, 4, set);
    for (std::uint32_t i = 0; i < 10; ++i)
      for (std::uint32_t h = 0; h < 6; ++h) {
        const bool mine = i >= 3 && i < 7 && h / 2 == 1;
        REQUIRE(same_bits(state, untouched, tile.row(i, h), tile.row(i, h)) == !mine);
      }
    attend(tile, kv.view(0), state, 0, 10, 0, set);  // no queries: nothing
    REQUIRE(state.scalars(tile.row(9, 0)).empty());
  }
}

TEST_CASE("a block that lies wholly in a query's future leaves its row as it was") {
  std::mt19937 random(6);
  const attention_shape shape{.q_heads = 2, .kv_heads = 1, .dim = 64, .scale = 0, .keep = {}};
  context_of_tokens kv(shape, blocks_of(64), 128);
  kv.fill(random);
  const query_tile tile = tile_of(shape, random_queries(random, shape, 1), 63);
  for (const isa set : sets_here()) {
    partial_state state, before;
    REQUIRE(state.reset(2, 64));
    REQUIRE(before.reset(2, 64));
    attend(tile, kv.view(1), state, 0, 0, 1, set);
    for (std::size_t row = 0; row < 2; ++row) REQUIRE(same_bits(state, before, row, row));
  }
}

TEST_CASE("windows that are folded apart merge to the whole, and their shares add up") {
  std::mt19937 random(11);
  const attention_shape shape{.q_heads = 4, .kv_heads = 1, .dim = 64, .scale = 0, .keep = {}};
  context_of_tokens kv(shape, blocks_of(64), 320);
  kv.fill(random, 4);
  const query_tile tile = tile_of(shape, random_queries(random, shape, 3), 317);
  partial_state merged;
  REQUIRE(merged.reset(tile.rows(), 64));
  std::vector<partial_state> parts(kv.blocks());
  for (std::size_t i = 0; i < kv.blocks(); ++i) {
    REQUIRE(parts[i].reset(tile.rows(), 64));
    attend(tile, kv.view(i), parts[i], 0, 0, 3);
    merged.merge(parts[i]);
  }
  CHECK(error_against_reference(kv, tile, merged) < 3e-6);
  for (std::size_t row = 0; row < tile.rows(); ++row) {
    double mass = 0;
    for (const partial_state& part : parts) mass += std::exp(row_lse(part, row) - row_lse(merged, row));
    CHECK(std::fabs(mass - 1.0) < 1e-5);
  }
}

TEST_CASE("queries are taken from any element type") {
  std::mt19937 random(12);
  const attention_shape shape{.q_heads = 2, .kv_heads = 1, .dim = 32, .scale = 0.5f, .keep = {}};
  const std::vector<float> q = random_queries(random, shape, 3);
  std::vector<fp16> half(q.size());
  std::vector<bf16> brain(q.size());
  convert(std::span(q), std::span(half));
  convert(std::span(q), std::span(brain));
  query_tile tile;
  REQUIRE(tile.load(shape, std::span<const fp16>(half), 7));
  CHECK(tile.size() == 3);
  CHECK(tile.first_position() == 7);
  CHECK(tile.rows() == 6);
  CHECK(tile.values(tile.row(2, 1))[31] == 0.5f * to_float(half.back()));
  REQUIRE(tile.load(shape, std::span<const bf16>(brain), 0));
  CHECK(tile.values(0)[0] == 0.5f * to_float(brain[0]));
  CHECK(tile.load(shape, std::span<const float>(q).first(65), 0).error().code == errc::invalid_argument);
  REQUIRE(tile.load(shape, std::span<const float>(), 0));
  CHECK(tile.size() == 0);
}

TEST_CASE("shapes and groups that cannot be attended are refused with a reason") {
  attention_shape shape{.q_heads = 4, .kv_heads = 2, .dim = 64, .scale = 0, .keep = {}};
  layer_group group = blocks_of(64);
  group.k.heads = group.v.heads = 2;
  group.k.dim = group.v.dim = 64;
  CHECK(validate(shape, group));
  const auto refused = [&](attention_shape s, layer_group g, block_encoding e = block_encoding::raw) {
    return validate(s, g, e).error().code == errc::invalid_argument;
  };
  auto other = shape;
  other.q_heads = 3;
  CHECK(refused(other, group));
  other = shape;
  other.kv_heads = 0;
  CHECK(refused(other, group));
  other = shape;
  other.dim = 72;
  CHECK(refused(other, group));
  other = shape;
  other.scale = not_a_number;
  CHECK(refused(other, group));
  auto bad = group;
  bad.v = {};
  CHECK(validate(shape, bad));  // one latent plane, all of it values
  bad.latent_v_dim = 72;
  CHECK(refused(shape, bad));
  bad.latent_v_dim = 80;
  CHECK(refused(shape, bad));
  bad.latent_v_dim = 16;
  CHECK(refused(shape, bad, block_encoding::q8_0));
  bad = group;
  bad.v.heads = 1;
  CHECK(refused(shape, bad));
  bad = group;
  bad.k.heads = 4;
  CHECK(refused(shape, bad));
  bad = group;
  bad.k.dim = 128;
  CHECK(refused(shape, bad));
  bad = group;
  bad.v.dim = 40;
  CHECK(refused(shape, bad));
  bad = group;
  bad.k.type = element::fp8_e4m3;
  CHECK(validate(shape, bad));
  CHECK(refused(shape, bad, block_encoding::q8_0));
  bad = group;
  bad.v.type = element::fp32;
  CHECK(refused(shape, bad, block_encoding::q8_0));
  CHECK(refused(shape, bad, block_encoding::q4_0));
  bad = group;
  bad.v.dim = 48;
  CHECK(refused(shape, bad, block_encoding::q4_0));
  CHECK(validate(shape, group, block_encoding::q4_0));
  CHECK(refused(shape, group, static_cast<block_encoding>(3)));
}
