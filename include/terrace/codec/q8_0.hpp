#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <string_view>
#include <type_traits>

#include "terrace/codec/codec.hpp"
#include "terrace/core/bytes.hpp"
#include "terrace/core/config.hpp"
#include "terrace/core/cpu.hpp"
#include "terrace/core/element.hpp"
#include "terrace/core/error.hpp"
#include "terrace/core/layout.hpp"

namespace terrace::kernels {
/// The largest magnitude that q8_0 takes from a plane of T, and the largest scale that it writes there, so
/// that what is decoded is finite: a scale is an fp16, and 127 times the scale must be a T.
template <element_type T>
struct q8_0_limits {
  static constexpr float value = 127.0f * 65504.0f;
  static constexpr float scale = 65504.0f;
};
template <>
struct q8_0_limits<fp16> {
  static constexpr float value = 65504.0f;
  static constexpr float scale = 515.5f;
};
}  // namespace terrace::kernels

#define TERRACE_KERNEL "terrace/codec/q8_0_kernel.hpp"
#include "terrace/core/for_each_isa.hpp"

namespace terrace {

/// ggml's block_q8_0: groups of 32 consecutive values along the head dimension, each an fp16 scale d and 32
/// signed bytes q, value = q * d; 34 bytes. Groups follow one another as their values do in the block.
///
/// Encoding is quantize_row_q8_0_ref, bit for bit: d = largest magnitude / 127, q = round(x / d) with the
/// unrounded d, ties away from zero. It differs where ggml's result is undefined or would not survive a
/// second encoding:
/// - NaN counts as 0, and infinities and magnitudes beyond 127 * 65504 as the largest that can be stored.
///   ggml's codes are undefined there.
/// - In an fp16 plane, a group that holds 65504 gets the scale 515.5. ggml's 516 decodes to infinity.
/// - A scale that rounds to zero (largest magnitude at most 127 * 2^-25) gets codes of zero. ggml writes
///   other codes, which decode to zeros as well.
/// - In a bf16 plane, a group that codes within one of ggml's reproduce exactly gets those codes. Only values
///   that have been through q8_0 are like that. bf16 rounds them so far that ggml's rule alone would move
///   some codes again with each encoding.
///
/// Decoding rounds q * d to the plane's element type. Attention reads encoded blocks as exactly these values.
struct q8_0 {
  static constexpr std::uint32_t format_id = 8;  // GGML_TYPE_Q8_0
  static constexpr std::string_view name = "q8_0";
  static constexpr bool lossless = false;
  static constexpr std::uint8_t loss = 16;
  static constexpr bool fixed_rate = true;
  static constexpr bool attendable = true;

  static constexpr std::size_t group_values = 32;
  static constexpr std::size_t group_bytes = 34;

  /// Bytes of so many encoded values, a multiple of 32.
  static constexpr std::size_t encoded_size(std::size_t values) noexcept {
    return values / group_values * group_bytes;
  }

  static result<void> supports(const layer_group& group) noexcept {
    if (group.k.dim % group_values != 0 || (group.v.present() && group.v.dim % group_values != 0))
      return fail(errc::invalid_argument, "q8_0 needs head dimensions that are multiples of 32");
    if (group.k.type == element::fp8_e4m3 || (group.v.present() && group.v.type == element::fp8_e4m3))
      return fail(errc::invalid_argument, "q8_0 encodes fp16, bf16 and fp32");
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
      for (const plane& p : {group.k, group.v}) {
        encode_plane(p.type, from, to, values(group, p) / group_values, set);
        from += group.plane_bytes(p);
        to += encoded_size(values(group, p));
      }
    }
    return bytes;
  }

  /// Refuses scales that are infinite or NaN: no encoder writes them.
  static result<void> decode(const layer_group& group, const_bytes in, mutable_bytes raw,
                             isa set = best_isa()) noexcept {
    if (raw.size() != group.block_bytes())
      return fail(errc::invalid_argument, "a block must have the size that its group says");
    if (in.size() != max_encoded_size(group))
      return fail(errc::corrupt, "a stored q8_0 block has not the size of its group's blocks");
    const std::byte* from = in.data();
    std::byte* to = raw.data();
    bool good = true;
    for (std::uint32_t layer = 0; layer < group.layers_per_block; ++layer) {
      for (const plane& p : {group.k, group.v}) {
        good &= decode_plane(p.type, from, to, values(group, p) / group_values, set);
        from += encoded_size(values(group, p));
        to += group.plane_bytes(p);
      }
    }
    if (!good) return fail(errc::corrupt, "a stored q8_0 block has a scale that is no number");
    return {};
  }

 private:
  static constexpr std::size_t values(const layer_group& group, const plane& p) noexcept {
    return std::size_t{p.heads} * p.dim * group.tokens;
  }

  static void encode_plane(element type, const std::byte* in, std::byte* out, std::size_t groups,
                           isa set) noexcept {
    switch (type) {
      case element::fp16:
        return encode_groups<fp16>(in, out, groups, set);
      case element::bf16:
        return encode_groups<bf16>(in, out, groups, set);
      default:
        return encode_groups<float>(in, out, groups, set);
    }
  }
  static bool decode_plane(element type, const std::byte* in, std::byte* out, std::size_t groups,
                           isa set) noexcept {
    switch (type) {
      case element::fp16:
        return decode_groups<fp16>(in, out, groups, set);
      case element::bf16:
        return decode_groups<bf16>(in, out, groups, set);
      default:
        return decode_groups<float>(in, out, groups, set);
    }
  }
  template <element_type T>
  static void encode_groups(const std::byte* in, std::byte* out, std::size_t groups, isa set) noexcept {
#if TERRACE_X86
    if (set == isa::avx512) return kernels::avx512::encode_q8_0<T>(in, out, groups);
    if (set == isa::avx2) return kernels::avx2::encode_q8_0<T>(in, out, groups);
#endif
    static_cast<void>(set);
    kernels::portable::encode_q8_0<T>(in, out, groups);
  }
  template <element_type T>
  static bool decode_groups(const std::byte* in, std::byte* out, std::size_t groups, isa set) noexcept {
#if TERRACE_X86
    if (set == isa::avx512) return kernels::avx512::decode_q8_0<T>(in, out, groups);
    if (set == isa::avx2) return kernels::avx2::decode_q8_0<T>(in, out, groups);
#endif
    static_cast<void>(set);
    return kernels::portable::decode_q8_0<T>(in, out, groups);
  }
};

static_assert(codec<q8_0>);

}  // namespace terrace
