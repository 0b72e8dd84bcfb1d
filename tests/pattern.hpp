#pragma once
#include <cstdint>
#include <cstring>
#include <optional>
#include <vector>

#include "terrace/core/layout.hpp"
#include "terrace/sequence.hpp"

/// KV whose every element says where it belongs, so that a byte in the wrong place is seen.
namespace pattern {

inline terrace::fp16 element_at(std::uint32_t tag, std::uint32_t layer, bool values, std::uint32_t head,
                                std::uint64_t position, std::uint32_t d) {
  std::uint64_t x = tag;
  for (const std::uint64_t part :
       {std::uint64_t{layer}, std::uint64_t{values}, std::uint64_t{head}, position, std::uint64_t{d}})
    x = (x ^ part) * 0x9e3779b97f4a7c15u + (x >> 29);
  // A number in (-1, 1) with few digits, so that it is an fp16 exactly.
  return terrace::to_fp16(static_cast<float>(static_cast<int>((x >> 40) % 2001) - 1000) / 1024.0f);
}

/// Writes K and V of all reserved tokens of all layers.
inline void write(const terrace::reservation& r, std::uint32_t layers, std::uint32_t tag) {
  for (std::uint32_t layer = 0; layer < layers; ++layer)
    for (const bool values : {false, true}) {
      const terrace::plane_rows rows = values ? r.v(layer) : r.k(layer);
      for (std::uint32_t t = 0; t < rows.tokens(); ++t)
        for (std::uint32_t h = 0; h < rows.heads(); ++h) {
          const auto row = rows.row<terrace::fp16>(t, h);
          for (std::uint32_t d = 0; d < rows.dim(); ++d)
            row[d] = element_at(tag, layer, values, h, r.first_position() + t, d);
        }
    }
}

/// Whether a block of one layer holds what `write` wrote, for its first `tokens` tokens.
inline bool holds(const terrace::layer_group& g, const std::byte* data, std::uint32_t layer,
                  std::uint64_t block, std::uint32_t tag, std::uint32_t tokens) {
  for (const bool values : {false, true}) {
    const terrace::plane& p = values ? g.v : g.k;
    const std::byte* plane = data + (values ? g.v_offset() : g.k_offset());
    for (std::uint32_t h = 0; h < p.heads; ++h)
      for (std::uint32_t t = 0; t < tokens; ++t)
        for (std::uint32_t d = 0; d < p.dim; ++d) {
          terrace::fp16 x;
          std::memcpy(&x, plane + h * g.head_stride(p) + t * g.token_stride(p) + d * sizeof x, sizeof x);
          if (x != element_at(tag, layer, values, h, block * g.tokens + t, d)) return false;
        }
  }
  return true;
}

/// A small model: two layers, 16 tokens a block, blocks of 4 KiB.
inline terrace::kv_layout layout(std::uint32_t layers = 2) {
  return {.groups = {{.first_layer = 0, .layers = layers, .tokens = 16, .k = {1, 64}, .v = {1, 64}}}};
}
inline constexpr std::size_t block_bytes = 4096;

/// Appends `tokens` tokens; the error of reserve where there is no room.
inline terrace::result<void> append(terrace::sequence& s, std::uint32_t tokens, std::uint32_t layers,
                                    std::uint32_t tag) {
  auto r = s.reserve(tokens);
  if (!r) return terrace::failure{r.error()};
  write(*r, layers, tag);
  s.commit(std::move(*r), tokens);
  return {};
}

/// The ids of the sealed blocks of a row.
inline std::vector<terrace::block_id> sealed(const terrace::sequence& s, std::uint32_t row) {
  const auto& ids = s.pages().rows[row];
  return {ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(s.pages().sealed(row))};
}

}  // namespace pattern
