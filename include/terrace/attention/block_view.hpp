#pragma once
#include <cstddef>
#include <cstdint>

#include "terrace/codec/identity.hpp"
#include "terrace/codec/q4_0.hpp"
#include "terrace/codec/q8_0.hpp"
#include "terrace/core/element.hpp"
#include "terrace/core/layout.hpp"

namespace terrace {

/// How a block that attention reads is stored: as the engine wrote it, or as an `attendable` codec left it.
/// The values are the codecs' format ids.
enum class block_encoding : std::uint32_t {
  raw = identity::format_id,
  q8_0 = terrace::q8_0::format_id,
  q4_0 = terrace::q4_0::format_id,
};

/// Whether attention reads encoded blocks of this group in place, and not only decoded ones. fp32 is rarely
/// cached: it would cost every user the compilation of more kernels.
constexpr bool reads_in_place(const layer_group& group) noexcept {
  return group.k.type != element::fp32 && (!group.v.present() || group.v.type != element::fp32);
}

/// One layer of a block that is in host memory. Unowned: a lease or a reservation keeps the memory.
struct block_view {
  const layer_group* group = nullptr;
  const std::byte* data = nullptr;   ///< the whole block, in the group's page order
  std::uint32_t layer_in_block = 0;  ///< which of the block's layers
  std::uint64_t first_position = 0;  ///< of the block's first token, in the sequence
  std::uint32_t tokens = 0;  ///< valid ones, from the block's start; what lies behind them is not read
  block_encoding encoding = block_encoding::raw;
};

/// The rows of one head in one plane of a block: `dim` elements for each token, `stride` bytes apart.
struct token_rows {
  const std::byte* first = nullptr;
  std::size_t stride = 0;
  std::uint32_t dim = 0;
  element type = element::fp16;
  block_encoding encoding = block_encoding::raw;

  const std::byte* operator[](std::size_t token) const noexcept { return first + token * stride; }
  /// Bytes of one row.
  constexpr std::size_t row_bytes() const noexcept {
    return encoded_bytes(dim * size_of(type), type, encoding);
  }
  /// Bytes that `raw` bytes of a plane take when encoded. Offsets and strides within a block scale in the
  /// same way.
  static constexpr std::size_t encoded_bytes(std::size_t raw, element type,
                                             block_encoding encoding) noexcept {
    if (encoding == block_encoding::q8_0) return q8_0::encoded_size(raw / size_of(type));
    if (encoding == block_encoding::q4_0) return q4_0::encoded_size(raw / size_of(type));
    return raw;
  }
};

namespace detail {
inline token_rows rows_of(const block_view& block, const plane& p, std::size_t plane_start,
                          std::uint32_t head) noexcept {
  const layer_group& group = *block.group;
  const auto scaled = [&](std::size_t raw) { return token_rows::encoded_bytes(raw, p.type, block.encoding); };
  return {block.data + plane_start + scaled(head * group.head_stride(p)), scaled(group.token_stride(p)),
          p.dim, p.type, block.encoding};
}
}  // namespace detail

/// The keys of one KV head. Precondition: head < group->k.heads.
inline token_rows key_rows(const block_view& block, std::uint32_t head) noexcept {
  const layer_group& g = *block.group;
  const std::size_t k = token_rows::encoded_bytes(g.plane_bytes(g.k), g.k.type, block.encoding);
  const std::size_t v = token_rows::encoded_bytes(g.plane_bytes(g.v), g.v.type, block.encoding);
  return detail::rows_of(block, g.k, block.layer_in_block * (k + v), head);
}
/// The values of one KV head. Precondition: head < group->v.heads.
inline token_rows value_rows(const block_view& block, std::uint32_t head) noexcept {
  const layer_group& g = *block.group;
  const std::size_t k = token_rows::encoded_bytes(g.plane_bytes(g.k), g.k.type, block.encoding);
  const std::size_t v = token_rows::encoded_bytes(g.plane_bytes(g.v), g.v.type, block.encoding);
  return detail::rows_of(block, g.v, block.layer_in_block * (k + v) + k, head);
}

}  // namespace terrace
