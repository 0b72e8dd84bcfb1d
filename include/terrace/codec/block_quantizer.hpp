#pragma once
#include <cstddef>
#include <cstdint>
#include <initializer_list>

#include "terrace/core/bytes.hpp"
#include "terrace/core/cpu.hpp"
#include "terrace/core/element.hpp"
#include "terrace/core/error.hpp"
#include "terrace/core/layout.hpp"

namespace terrace {

/// Turns the format that derives from it into a codec of blocks (codec/codec.hpp): one that encodes each run of
/// `group_values` consecutive values along the head dimension as `group_bytes` bytes, independently of all others.
/// This class walks over layers and planes; the format does the arithmetic.
///
/// Encoded runs are in the order of their values in the block, so offsets within a plane scale by encoded_size. A
/// format has, besides the codec's constants:
/// - `group_values`, `group_bytes`;
/// - `bad_dimension`, `bad_type`, `bad_size`, `bad_code`: sentences for its errors, in which it names itself;
/// - `encode_groups(type, in, out, groups, set)`, and `decode_groups` likewise, which returns false if no
///   encoder writes such bytes. `type` is fp16, bf16 or fp32, `set` an instruction set that the processor has.
template <class Format>
struct block_quantizer {
  /// Bytes that `values` values, a multiple of group_values, take when encoded.
  static constexpr std::size_t encoded_size(std::size_t values) noexcept {
    return values / Format::group_values * Format::group_bytes;
  }

  static result<void> supports(const layer_group& group) noexcept {
    for (const plane* p : {&group.k, &group.v}) {
      if (!p->present()) continue;
      if (p->dim % Format::group_values != 0) return fail(errc::invalid_argument, Format::bad_dimension);
      if (p->type == element::fp8_e4m3) return fail(errc::invalid_argument, Format::bad_type);
    }
    return {};
  }

  static constexpr std::size_t max_encoded_size(const layer_group& group) noexcept {
    return group.layers_per_block *
           (encoded_size(values(group, group.k)) + encoded_size(values(group, group.v)));
  }

  static result<std::size_t> encode(const layer_group& group, const_bytes raw, mutable_bytes out,
                                    isa set = best_isa()) noexcept {
    const std::size_t bytes = max_encoded_size(group);
    if (raw.size() != group.block_bytes() || out.size() < bytes)
      return fail(errc::invalid_argument,
                  "a block and its encoding must have the sizes that their group says");
    const std::byte* from = raw.data();
    std::byte* to = out.data();
    for (std::uint32_t layer = 0; layer < group.layers_per_block; ++layer) {
      for (const plane* p : {&group.k, &group.v}) {
        Format::encode_groups(p->type, from, to, values(group, *p) / Format::group_values, set);
        from += group.plane_bytes(*p);
        to += encoded_size(values(group, *p));
      }
    }
    return bytes;
  }

  static result<void> decode(const layer_group& group, const_bytes in, mutable_bytes raw,
                             isa set = best_isa()) noexcept {
    if (raw.size() != group.block_bytes())
      return fail(errc::invalid_argument, "a block must have the size that its group says");
    if (in.size() != max_encoded_size(group)) return fail(errc::corrupt, Format::bad_size);
    const std::byte* from = in.data();
    std::byte* to = raw.data();
    bool good = true;
    for (std::uint32_t layer = 0; layer < group.layers_per_block; ++layer) {
      for (const plane* p : {&group.k, &group.v}) {
        good &= Format::decode_groups(p->type, from, to, values(group, *p) / Format::group_values, set);
        from += encoded_size(values(group, *p));
        to += group.plane_bytes(*p);
      }
    }
    if (!good) return fail(errc::corrupt, Format::bad_code);
    return {};
  }

 private:
  static constexpr std::size_t values(const layer_group& group, const plane& p) noexcept {
    return std::size_t{p.heads} * p.dim * group.tokens;
  }
};

}  // namespace terrace
