#pragma once
#include <cstddef>
#include <cstdint>

#include "terrace/codec/block_encoding.hpp"
#include "terrace/codec/fp8.hpp"
#include "terrace/codec/identity.hpp"
#include "terrace/codec/q4_0.hpp"
#include "terrace/codec/q8_0.hpp"
#include "terrace/core/element.hpp"
#include "terrace/core/layout.hpp"

namespace terrace {

static_assert(block_encoding::raw == block_encoding{identity::format_id} &&
              block_encoding::q8_0 == block_encoding{terrace::q8_0::format_id} &&
              block_encoding::q4_0 == block_encoding{terrace::q4_0::format_id} &&
              block_encoding::fp8 == block_encoding{terrace::fp8::format_id});
static_assert(encoded_bytes(64, element::fp16, block_encoding::q8_0) == q8_0::encoded_size(32) &&
              encoded_bytes(64, element::fp16, block_encoding::q4_0) == q4_0::encoded_size(32) &&
              encoded_bytes(64, element::fp16, block_encoding::fp8) == fp8::encoded_size(32));

/// Whether attention can read encoded blocks of this group in place, not just decoded ones. Not for fp32: it is
/// rarely cached, and would make every user compile more kernels. Nor for values that end within one of the groups of
/// 32 elements in which q8_0 and q4_0 encode the latent vectors.
constexpr bool reads_in_place(const layer_group& group) noexcept {
  const auto is_half = [](element type) { return type == element::fp16 || type == element::bf16; };
  return is_half(group.k.type) && (group.v.present() ? is_half(group.v.type) : group.v_dim() % 32 == 0);
}

/// One layer of a block in host memory. Non-owning: a lease or a reservation keeps the memory alive.
struct block_view {
  const layer_group* group = nullptr;
  const std::byte* data = nullptr;   ///< the whole block, in the group's page order
  std::uint32_t layer_in_block = 0;  ///< which of the block's layers
  std::uint64_t first_position = 0;  ///< of the block's first token, in the sequence
  std::uint32_t tokens = 0;  ///< valid ones, from the block's start; what comes after them is not read
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
};

namespace detail {
// The rows of `dim` elements that start where the plane's rows start.
inline token_rows rows_of(const block_view& block, bool values, std::uint32_t head,
                          std::uint32_t dim) noexcept {
  const layer_group& group = *block.group;
  const auto scaled = [&](std::size_t raw, const plane& p) {
    return encoded_bytes(raw, p.type, block.encoding);
  };
  const std::size_t k = scaled(group.plane_bytes(group.k), group.k);
  const std::size_t v = scaled(group.plane_bytes(group.v), group.v);
  const plane& p = values ? group.v : group.k;
  token_rows rows{.first = block.data + block.layer_in_block * (k + v) + (values ? k : 0) +
                           scaled(head * group.head_stride(p), p),
                  .stride = scaled(group.token_stride(p), p),
                  .dim = dim,
                  .type = p.type,
                  .encoding = block.encoding};
  // A plane that the codec fp8 encoded is a plane of fp8 elements.
  if (block.encoding == block_encoding::fp8) {
    rows.type = element::fp8_e4m3;
    rows.encoding = block_encoding::raw;
  }
  return rows;
}
}  // namespace detail

/// The keys of one KV head. Precondition: head < group->k.heads.
inline token_rows key_rows(const block_view& block, std::uint32_t head) noexcept {
  return detail::rows_of(block, false, head, block.group->k.dim);
}
/// The values of one KV head: from their own plane, or the first elements of its latent vectors. Precondition:
/// head < group->k.heads.
inline token_rows value_rows(const block_view& block, std::uint32_t head) noexcept {
  return detail::rows_of(block, block.group->v.present(), head, block.group->v_dim());
}

}  // namespace terrace
