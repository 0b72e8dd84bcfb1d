#pragma once
// A context of one layer, as blocks of any shape, and what attention makes of it: what the tests of attention share.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <span>
#include <vector>

#include "catch.hpp"
#include "terrace/attention/attend.hpp"
#include "terrace/codec/codec.hpp"
#include "terrace/core/convert.hpp"

namespace attention_test {

using namespace terrace;

inline constexpr float infinity = std::numeric_limits<float>::infinity();
inline constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();

// The KV of one layer in blocks, and the queries that look at it. Bytes behind the last token are all ones, a
// NaN in every element type.
class context_of_tokens {
 public:
  context_of_tokens(attention_shape shape, layer_group group, std::uint32_t tokens)
      : shape_(shape), group_(group), tokens_(tokens) {
    group_.k.heads = shape.kv_heads;
    group_.k.dim = shape.dim;
    if (group.latent_v_dim == 0) {
      group_.v.heads = shape.kv_heads;
      if (group_.v.dim == 0) group_.v.dim = shape.dim;
    } else {
      group_.v = {};
    }
    blocks_.resize((tokens + group.tokens - 1) / group.tokens);
    for (auto& block : blocks_) block.assign(group_.block_bytes(), std::byte{0xff});
  }

  void fill(std::mt19937& random, float key_spread = 1) {
    std::normal_distribution<float> normal;
    for (std::uint32_t t = 0; t < tokens_; ++t) {
      for (std::uint32_t h = 0; h < shape_.kv_heads; ++h) {
        for (std::uint32_t d = 0; d < shape_.dim; ++d) set_key(t, h, d, key_spread * normal(random));
        for (std::uint32_t d = 0; d < group_.v.dim; ++d) set_value(t, h, d, normal(random));
      }
    }
  }
  void set_key(std::uint32_t t, std::uint32_t h, std::uint32_t d, float x) {
    put(group_.k, address(group_.k, t, h, d), x);
  }
  void set_value(std::uint32_t t, std::uint32_t h, std::uint32_t d, float x) {
    put(group_.v, address(group_.v, t, h, d), x);
  }
  double key(std::uint32_t t, std::uint32_t h, std::uint32_t d) {
    return get(group_.k, address(group_.k, t, h, d));
  }
  double value(std::uint32_t t, std::uint32_t h, std::uint32_t d) {
    return group_.v.present() ? get(group_.v, address(group_.v, t, h, d)) : key(t, h, d);
  }

  const attention_shape& shape() const { return shape_; }
  const layer_group& group() const { return group_; }
  std::uint32_t tokens() const { return tokens_; }
  std::vector<std::byte>& block(std::size_t i) { return blocks_[i]; }
  std::size_t blocks() const { return blocks_.size(); }
  block_view view(std::size_t i) const {
    const auto first = static_cast<std::uint32_t>(i) * group_.tokens;
    return {.group = &group_,
            .data = blocks_[i].data(),
            .first_position = first,
            .tokens = std::min(group_.tokens, tokens_ - first)};
  }

 private:
  std::byte* address(const plane& p, std::uint32_t t, std::uint32_t h, std::uint32_t d) {
    const std::size_t start = &p == &group_.k ? group_.k_offset() : group_.v_offset();
    return blocks_[t / group_.tokens].data() + start + h * group_.head_stride(p) +
           t % group_.tokens * group_.token_stride(p) + d * size_of(p.type);
  }
  static void put(const plane& p, std::byte* at, float x) {
    if (p.type == element::fp32) {
      std::memcpy(at, &x, 4);
    } else if (p.type == element::fp8_e4m3) {
      *at = static_cast<std::byte>(to_fp8_e4m3(x).bits);
    } else {
      const std::uint16_t bits = p.type == element::fp16 ? to_fp16(x).bits : to_bf16(x).bits;
      std::memcpy(at, &bits, 2);
    }
  }
  static double get(const plane& p, const std::byte* at) {
    if (p.type == element::fp32) {
      float x;
      std::memcpy(&x, at, 4);
      return x;
    }
    if (p.type == element::fp8_e4m3) return to_float(fp8_e4m3{std::to_integer<std::uint8_t>(*at)});
    std::uint16_t bits;
    std::memcpy(&bits, at, 2);
    return p.type == element::fp16 ? to_float(fp16{bits}) : to_float(bf16{bits});
  }

  attention_shape shape_;
  layer_group group_;
  std::uint32_t tokens_;
  std::vector<std::vector<std::byte>> blocks_;
};

inline layer_group blocks_of(std::uint32_t tokens, element type = element::fp16,
                             page_order order = page_order::hnd) {
  layer_group group;
  group.tokens = tokens;
  group.k.type = group.v.type = type;
  group.order = order;
  return group;
}

inline std::vector<float> random_queries(std::mt19937& random, const attention_shape& shape,
                                         std::uint32_t count, float spread = 1) {
  std::normal_distribution<float> normal;
  std::vector<float> q(std::size_t{count} * shape.q_heads * shape.dim);
  for (float& x : q) x = spread * normal(random);
  return q;
}

inline query_tile tile_of(const attention_shape& shape, std::span<const float> queries,
                          std::uint64_t first_position) {
  query_tile tile;
  REQUIRE(tile.load(shape, queries, first_position));
  return tile;
}

// Folds all blocks, `chunk` queries an item.
inline partial_state attend_all(const context_of_tokens& kv, const query_tile& tile, isa set,
                                std::uint32_t chunk = ~0u) {
  partial_state state;
  REQUIRE(state.reset(tile.rows(), kv.group().v_dim()));
  for (std::size_t i = 0; i < kv.blocks(); ++i)
    for (std::uint32_t head = 0; head < kv.shape().kv_heads; ++head)
      for (std::uint32_t first = 0; first < tile.size(); first += std::min(chunk, tile.size() - first))
        attend(tile, kv.view(i), state, head, first, std::min(chunk, tile.size() - first), set);
  return state;
}

// Decode: folds the blocks view_of(0), view_of(1) ... of `kv` into a tile of one query, with only the tokens up to it
// there.
template <class View>
partial_state attend_up_to(const context_of_tokens& kv, const query_tile& one, View view_of, isa set) {
  partial_state state;
  REQUIRE(state.reset(one.rows(), kv.group().v_dim()));
  const auto position = static_cast<std::uint32_t>(one.first_position());
  for (std::size_t b = 0; b < kv.blocks() && b * kv.group().tokens <= position; ++b) {
    block_view view = view_of(b);
    view.tokens = std::min(view.tokens, position + 1 - static_cast<std::uint32_t>(view.first_position));
    for (std::uint32_t head = 0; head < kv.shape().kv_heads; ++head)
      attend(one, view, state, head, 0, 1, set);
  }
  return state;
}

inline bool sees(retention keep, std::uint64_t position, std::uint64_t token) {
  return token <= position && (keep.window == 0 || token + keep.window > position || token < keep.sinks);
}

inline bool same_bits(const partial_state& a, const partial_state& b, std::size_t row_a, std::size_t row_b) {
  const auto same = [](float x, float y) { return std::memcmp(&x, &y, sizeof x) == 0; };
  return same(a.m(row_a), b.m(row_b)) && same(a.l(row_a), b.l(row_b)) &&
         std::memcmp(a.o(row_a).data(), b.o(row_b).data(), a.dim() * sizeof(float)) == 0;
}

// The blocks of `kv`, encoded. What is left in `kv` is what decoding gives.
template <codec C>
std::vector<std::vector<std::byte>> encode_all(context_of_tokens& kv) {
  std::vector<std::vector<std::byte>> encoded(kv.blocks());
  for (std::size_t i = 0; i < kv.blocks(); ++i) {
    encoded[i].resize(C::max_encoded_size(kv.group()));
    REQUIRE(C::encode(kv.group(), kv.block(i), encoded[i]));
    REQUIRE(C::decode(kv.group(), encoded[i], kv.block(i)));
  }
  return encoded;
}

inline partial_state attend_in_place(const context_of_tokens& kv,
                                     const std::vector<std::vector<std::byte>>& encoded,
                                     block_encoding encoding, const query_tile& tile, isa set) {
  partial_state state;
  REQUIRE(state.reset(tile.rows(), kv.group().v_dim()));
  for (std::size_t i = 0; i < kv.blocks(); ++i)
    for (std::uint32_t head = 0; head < kv.shape().kv_heads; ++head) {
      block_view view = kv.view(i);
      view.data = encoded[i].data();
      view.encoding = encoding;
      attend(tile, view, state, head, 0, tile.size(), set);
    }
  return state;
}

}  // namespace attention_test
