#pragma once
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <utility>
#include <vector>

#include "terrace/cache/lease.hpp"
#include "terrace/codec/any_codec.hpp"
#include "terrace/codec/identity.hpp"
#include "terrace/core/layout.hpp"
#include "terrace/core/mix64.hpp"
#include "terrace/sequence.hpp"
#include "terrace/testing/seeded_random.hpp"

namespace terrace {

/// What a block of a simulated cache holds: its row of layers, and one number for each of its tokens. Every byte
/// follows from these, so a model can know all bytes of all blocks and keep none.
struct simulated_content {
  static constexpr std::size_t most_tokens = 8;
  std::uint32_t row = 0;
  std::array<std::uint64_t, most_tokens> stamps{};
};

inline namespace TERRACE_EX {

/// Writes and recognises such contents: finite fp16 numbers of about 1, so that lossy codecs take them as well.
/// Preconditions: planes are fp16 with dimensions that are multiples of 4, and blocks have at most
/// simulated_content::most_tokens tokens.
class simulated_contents {
 public:
  /// `codecs` are those of the tiers.
  simulated_contents(kv_layout layout, std::vector<any_codec> codecs)
      : layout_(std::move(layout)), codecs_(std::move(codecs)) {}

  /// Fills reserved tokens, one stamp each.
  void write(const reservation& r, std::span<const std::uint64_t> stamps) const {
    for (std::uint32_t layer = 0; layer < layout_.layers(); ++layer)
      for (const bool values : {false, true}) {
        const plane_rows rows = values ? r.v(layer) : r.k(layer);
        for (std::uint32_t t = 0; t < rows.tokens(); ++t)
          for (std::uint32_t h = 0; h < rows.heads(); ++h) {
            const std::span<fp16> to = rows.row<fp16>(t, h);
            fill(reinterpret_cast<std::byte*>(to.data()), to.size_bytes(), stamps[t], layer, values, h);
          }
      }
  }

  /// The numbers of one token's head.
  static std::vector<float> row(std::uint64_t stamp, std::uint32_t layer, bool values, std::uint32_t head,
                                std::size_t dim) {
    std::vector<fp16> half(dim);
    fill(reinterpret_cast<std::byte*>(half.data()), dim * sizeof(fp16), stamp, layer, values, head);
    std::vector<float> all;
    for (const fp16 x : half) all.push_back(to_float(x));
    return all;
  }
  /// Fills a whole block. Precondition: `block` is as large as a block of that row.
  void write(mutable_bytes block, const simulated_content& c) const {
    image whole(block.size());
    expect(group_of(c.row), c, whole);
    std::memcpy(block.data(), whole.data(), whole.size());
  }
  /// Whether these bytes are a block as it was written.
  bool holds(const_bytes block, const simulated_content& c) const {
    image whole(block.size());
    expect(group_of(c.row), c, whole);
    return same(block.data(), whole);
  }

  /// Whether the first `tokens` tokens of a page, which is in the encoding of that codec, are those of `c` after some
  /// path through the tiers' codecs.
  bool page_matches(const std::byte* data, std::uint32_t format_id, const simulated_content& c,
                    std::uint32_t tokens) const {
    const layer_group& g = group_of(c.row);
    image expected(g.block_bytes()), found(g.block_bytes());
    expect(g, c, expected);
    if (!decoded(g, data, format_id, found)) return false;
    if (tokens == g.tokens && found == expected) return true;
    std::vector<image> possible{std::move(expected)};
    add_lossy(g, possible, 0, 10);
    return made_of(g, found, possible, tokens);
  }

  /// Whether a leased block holds `c`: exactly if its fidelity says so, otherwise each token after some path through
  /// the tiers' codecs. A block that was cut and then continued has tokens of either kind.
  bool matches(const leased_block& block, const simulated_content& c) {
    const layer_group& g = group_of(c.row);
    image expected(g.block_bytes());
    expect(g, c, expected);
    if (block.format_id == identity::format_id && same(block.data, expected)) return true;
    if (block.quality.exact()) return false;
    image found(g.block_bytes());
    if (!decoded(g, block.data, block.format_id, found)) return false;
    std::vector<image> possible{std::move(expected)};
    add_lossy(g, possible, 0, 10);  // between two lossy codecs a block may go to and fro more than once
    return made_of(g, found, possible, g.tokens);
  }

 private:
  using image = std::vector<std::byte>;
  static bool same(const std::byte* data, const image& expected) noexcept {
    return std::memcmp(data, expected.data(), expected.size()) == 0;
  }
  bool decoded(const layer_group& g, const std::byte* data, std::uint32_t format_id, image& out) const {
    if (format_id == identity::format_id) {
      std::memcpy(out.data(), data, out.size());
      return true;
    }
    const any_codec* const codec = find_codec(format_id);
    return codec != nullptr && codec->decode(g, {data, codec->max_encoded_size(g)}, out).has_value();
  }
  const any_codec* find_codec(std::uint32_t format_id) const noexcept {
    for (const any_codec& c : codecs_)
      if (c.format_id == format_id) return &c;
    return nullptr;
  }
  // Adds what the image becomes when it passes through at most `steps` lossy codecs.
  void add_lossy(const layer_group& g, std::vector<image>& all, std::size_t from, int steps) const {
    for (const any_codec& c : codecs_) {
      if (c.loss == 0 || steps == 0) continue;
      image encoded(c.max_encoded_size(g)), after(g.block_bytes());
      const auto size = c.encode(g, all[from], encoded);
      if (!size || !c.decode(g, const_bytes(encoded).first(*size), after)) continue;
      if (std::find(all.begin(), all.end(), after) != all.end()) continue;
      all.push_back(std::move(after));
      add_lossy(g, all, all.size() - 1, steps - 1);
    }
  }
  // Whether each token's row of `found` is that of one of the images.
  static bool made_of(const layer_group& g, const image& found, const std::vector<image>& possible,
                      std::uint32_t tokens) {
    for (std::uint32_t l = 0; l < g.layers_per_block; ++l)
      for (const bool values : {false, true}) {
        const plane& p = values ? g.v : g.k;
        for (std::uint32_t h = 0; h < p.heads; ++h)
          for (std::uint32_t t = 0; t < tokens; ++t) {
            const std::size_t at =
                (values ? g.v_offset(l) : g.k_offset(l)) + h * g.head_stride(p) + t * g.token_stride(p);
            const auto is_row_of = [&](const image& i) {
              return std::memcmp(found.data() + at, i.data() + at, p.dim * sizeof(fp16)) == 0;
            };
            if (std::none_of(possible.begin(), possible.end(), is_row_of)) return false;
          }
      }
    return true;
  }

  const layer_group& group_of(std::uint32_t row) const noexcept {
    std::size_t g = 0;
    for (; row >= layout_.groups[g].block_rows(); ++g) row -= layout_.groups[g].block_rows();
    return layout_.groups[g];
  }
  void expect(const layer_group& g, const simulated_content& c, image& out) const {
    std::uint32_t first_row = 0;
    for (const layer_group& before : layout_.groups) {
      if (&before == &g) break;
      first_row += before.block_rows();
    }
    for (std::uint32_t l = 0; l < g.layers_per_block; ++l) {
      const std::uint32_t layer = g.first_layer + (c.row - first_row) * g.layers_per_block + l;
      for (const bool values : {false, true}) {
        const plane& p = values ? g.v : g.k;
        std::byte* at = out.data() + (values ? g.v_offset(l) : g.k_offset(l));
        for (std::uint32_t h = 0; h < p.heads; ++h)
          for (std::uint32_t t = 0; t < g.tokens; ++t)
            fill(at + h * g.head_stride(p) + t * g.token_stride(p), p.dim * sizeof(fp16), c.stamps[t], layer,
                 values, h);
      }
    }
  }
  static void fill(std::byte* to, std::size_t bytes, std::uint64_t stamp, std::uint32_t layer, bool values,
                   std::uint32_t head) noexcept {
    const std::uint64_t row =
        mix64(stamp ^ (std::uint64_t{layer} << 40 | std::uint64_t{head} << 8 | (values ? 1u : 0u)));
    for (std::size_t i = 0; i < bytes; i += 8) {
      // Each fp16 has a random sign and mantissa, and the exponent of [0.5, 1).
      const std::uint64_t word =
          ((row + i) * 0x9e3779b97f4a7c15u & 0x83ff83ff83ff83ffu) | 0x3800380038003800u;
      std::memcpy(to + i, &word, 8);
    }
  }

  kv_layout layout_;
  std::vector<any_codec> codecs_;
};

}  // namespace TERRACE_EX
}  // namespace terrace
