#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <span>
#include <string>
#include <vector>

#include "synthetic_kv.hpp"
#include "terrace/core/bytes.hpp"
#include "terrace/core/layout.hpp"

namespace equal_memory {

using namespace terrace;

/// Ends the program: a bench that cannot go on has no figure.
[[noreturn]] inline void give_up(const std::string& why) {
  std::fprintf(stderr, "equal_memory: %s\n", why.c_str());
  std::exit(1);
}

/// What all contestants do: attention of one token, in all layers, over a context whose KV is ten times larger than
/// the memory in which they may keep KV.
struct problem {
  static constexpr runner::model_shape shape{"8 layers", 8, 32, 8, 128};  // GQA 4, as llama-3-8b has it
  static constexpr std::uint32_t layers = shape.layers, block_tokens = 32, blocks_a_layer = 1024;
  static constexpr std::uint32_t context = block_tokens * blocks_a_layer;
  static constexpr std::size_t width =
      std::size_t{shape.q_heads} * shape.head_dim;  // of a query, and of a result
  static constexpr std::uint32_t piece =
      8;  // blocks that every contestant folds at once, as terrace::stream does

  layer_group group{.layers = layers,
                    .tokens = block_tokens,
                    .k = {shape.kv_heads, shape.head_dim},
                    .v = {shape.kv_heads, shape.head_dim}};
  kv_layout layout{{group}};
  std::size_t block_bytes = group.block_bytes();  // 128 KiB
  std::size_t layer_bytes = blocks_a_layer * block_bytes, kv_bytes = layers * layer_bytes;
  std::size_t budget = kv_bytes / 10;
  runner::synthetic_kv kv{shape};
  std::vector<float> queries = make_queries();  // [layer][q_head][dim]

  std::span<const float> queries_of(std::uint32_t layer) const {
    return std::span(queries).subspan(layer * width, width);
  }

  /// Writes `tokens` tokens of block `index` of `layer` as a tier keeps them.
  void write_block(std::uint32_t layer, std::uint32_t index, std::uint32_t tokens, std::byte* to) const {
    using plane = runner::synthetic_kv::plane;
    for (const plane which : {plane::k, plane::v}) {
      const bool keys = which == plane::k;
      std::byte* const base = to + (keys ? group.k_offset() : group.v_offset());
      const terrace::plane& p = keys ? group.k : group.v;
      for (std::uint32_t h = 0; h < p.heads; ++h)
        for (std::uint32_t t = 0; t < tokens; ++t) {
          const auto row = std::as_bytes(kv.row(which, layer, h, std::uint64_t{index} * block_tokens + t));
          std::copy(row.begin(), row.end(), base + h * group.head_stride(p) + t * group.token_stride(p));
        }
    }
  }

 private:
  std::vector<float> make_queries() const {
    std::vector<float> out(layers * width);
    for (std::uint32_t layer = 0; layer < layers; ++layer)
      kv.queries(layer, context, context, 0, std::span(out).subspan(layer * width, width));
    return out;
  }
};

/// One way to do it.
class contestant {
 public:
  virtual ~contestant() = default;
  /// A decode step: writes the result, [layer][q_head][dim].
  virtual void step(std::span<float> out) = 0;
  /// Peak bytes of KV in memory, buffers included, by its own account.
  virtual std::size_t peak_bytes() const = 0;
  /// Bytes of KV that have come from disk so far.
  virtual std::uint64_t bytes_read() const = 0;
};

}  // namespace equal_memory
