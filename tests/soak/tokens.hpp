#pragma once
#include <array>
#include <cstdint>
#include <cstring>
#include <vector>

#include "terrace/core/layout.hpp"
#include "terrace/sequence.hpp"

/// KV that says what it is: every element follows from the tag of its token.
namespace soak {

using namespace terrace;

/// Blocks of 16 KiB.
inline constexpr std::uint32_t layers = 2, tokens_a_block = 16, heads = 4, dim = 64;
inline const kv_layout layout{
    {{.layers = layers, .tokens = tokens_a_block, .k = {heads, dim}, .v = {heads, dim}}}};
/// The elements of one head of one token: four at a time follow from its tag.
using head_row = std::array<std::uint64_t, dim / 4>;
inline head_row row_of(std::uint32_t tag, std::uint32_t layer, bool values, std::uint32_t head) {
  head_row row;
  std::uint64_t x =
      (std::uint64_t{tag} << 16 | layer << 8 | head << 1 | (values ? 1u : 0u)) * 0x9e3779b97f4a7c15u;
  for (std::uint64_t& part : row) {
    x = (x ^ (x >> 29)) * 0xbf58476d1ce4e5b9u;
    part = x;
  }
  return row;
}
/// Writes what is reserved; tags[i] is of the token at position i.
inline void fill(const reservation& r, const std::vector<std::uint32_t>& tags) {
  for (std::uint32_t layer = 0; layer < layers; ++layer)
    for (const bool values : {false, true}) {
      const plane_rows rows = values ? r.v(layer) : r.k(layer);
      for (std::uint32_t t = 0; t < rows.tokens(); ++t)
        for (std::uint32_t h = 0; h < heads; ++h) {
          const head_row row = row_of(tags[r.first_position() + t], layer, values, h);
          std::memcpy(static_cast<void*>(rows.row<fp16>(t, h).data()), row.data(), sizeof row);
        }
    }
}
/// Whether a block of `layer` holds the tokens of so many tags.
inline bool holds(const std::byte* data, std::uint32_t layer, const std::uint32_t* tags) {
  const layer_group& g = layout.groups[0];
  for (const bool values : {false, true}) {
    const plane& p = values ? g.v : g.k;
    for (std::uint32_t h = 0; h < heads; ++h)
      for (std::uint32_t t = 0; t < tokens_a_block; ++t) {
        const head_row row = row_of(tags[t], layer, values, h);
        const std::byte* const at =
            data + (values ? g.v_offset() : g.k_offset()) + h * g.head_stride(p) + t * g.token_stride(p);
        if (std::memcmp(at, row.data(), sizeof row) != 0) return false;
      }
  }
  return true;
}

}  // namespace soak
