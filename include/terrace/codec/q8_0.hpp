#pragma once
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "terrace/codec/block_quantizer.hpp"
#include "terrace/codec/codec.hpp"
#include "terrace/core/cpu.hpp"
#include "terrace/core/element.hpp"

namespace terrace::kernels {
/// The largest magnitude that q8_0 takes from a plane of this type, and the largest scale that it writes there, so
/// that what is decoded is finite: a scale is an fp16, and 127 times the scale must be a finite element.
struct q8_0_limits {
  float value, scale;
  static constexpr q8_0_limits of(element type) noexcept {
    return type == element::fp16 ? q8_0_limits{65504.0f, 515.5f} : q8_0_limits{127.0f * 65504.0f, 65504.0f};
  }
};
}  // namespace terrace::kernels

namespace terrace {

/// ggml's block_q8_0: groups of 32 consecutive values along the head dimension, each an fp16 scale d and 32
/// signed bytes q, value = q * d; 34 bytes. Groups are in the order of their values in the block.
///
/// Encoding is quantize_row_q8_0_ref, bit for bit: d = largest magnitude / 127, q = round(x / d) with the
/// unrounded d, ties away from zero. It differs where ggml's result is undefined or would not survive a
/// second encoding:
/// - NaN counts as 0, and infinities and magnitudes beyond 127 * 65504 as the largest that can be stored.
///   ggml's codes are undefined there.
/// - In an fp16 plane, a group that holds 65504 gets the scale 515.5. ggml's 516 decodes to infinity.
/// - A scale that rounds to zero (largest magnitude at most 127 * 2^-25) gets codes of zero. ggml writes
///   other codes, which decode to zeros as well.
/// - In a bf16 plane, if codes at most one away from ggml's reproduce a group exactly, it gets those codes. Only
///   values that have been through q8_0 are like that. bf16 rounds them so far that ggml's rule alone would move
///   some codes again with each encoding.
///
/// Decoding rounds q * d to the plane's element type. Attention reads encoded blocks as exactly these values.
struct q8_0 : block_quantizer<q8_0> {
  static constexpr std::uint32_t format_id = 8;  // GGML_TYPE_Q8_0
  static constexpr std::string_view name = "q8_0";
  static constexpr bool lossless = false;
  static constexpr std::uint8_t loss = 16;
  static constexpr bool fixed_rate = true;
  static constexpr bool attendable = true;

  static constexpr std::size_t group_values = 32;
  static constexpr std::size_t group_bytes = 34;

 private:
  friend block_quantizer<q8_0>;
  static constexpr const char* bad_dimension = "q8_0 needs head dimensions that are multiples of 32";
  static constexpr const char* bad_type = "q8_0 encodes fp16, bf16 and fp32";
  static constexpr const char* bad_size = "a stored q8_0 block has not the size of its group's blocks";
  static constexpr const char* bad_code = "a stored q8_0 block has a scale that is no number";

  template <element_value Type>
  static void encode_groups(Type type, const std::byte* in, std::byte* out, std::size_t groups,
                            isa set) noexcept;
  // Returns false if a scale is infinite or NaN, which no encoder writes.
  template <element_value Type>
  static bool decode_groups(Type type, const std::byte* in, std::byte* out, std::size_t groups,
                            isa set) noexcept;
};

static_assert(codec<q8_0>);

}  // namespace terrace

#if !defined(TERRACE_PREBUILT)
#include "terrace/codec/q8_0_groups.hpp"  // IWYU pragma: export
#endif
