#pragma once
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "terrace/codec/block_quantizer.hpp"
#include "terrace/codec/codec.hpp"
#include "terrace/core/cpu.hpp"
#include "terrace/core/element.hpp"

namespace terrace::kernels {
/// The largest magnitude that q4_0 takes from a plane of this type: in fp16 the largest there is, otherwise the
/// largest float of which an eighth still rounds to a finite fp16 scale.
constexpr float q4_0_largest(element type) noexcept {
  return type == element::fp16 ? 65504.0f : 524159.96875f;
}
}  // namespace terrace::kernels

namespace terrace {

/// ggml's block_q4_0: groups of 32 consecutive values along the head dimension, each an fp16 scale d and 32
/// codes q of four bits, value = (q - 8) * d; 18 bytes. Byte i of the codes holds that of value i in its low nibble
/// and that of value i + 16 in its high one. Groups are in the order of their values in the block.
///
/// Encoding is quantize_row_q4_0_ref, bit for bit, as its C source rounds (no fused multiply-add): d = m / -8,
/// where m is the value of largest magnitude, with its sign, the first if there are several; q = x * (1 / d) + 8.5
/// without its fraction, at most 15, with the unrounded d. It differs where ggml's result is undefined or would not
/// survive a second encoding:
/// - NaN counts as 0, and infinities and magnitudes whose scale would be infinite as the largest that can be
///   stored: 65504 in an fp16 plane, 8 * 65504 elsewhere.
/// - A scale that rounds to zero (largest magnitude at most 8 * 2^-25) becomes what ggml writes for zeros:
///   the scale -0 and codes of 8. ggml writes other codes, which decode to zeros as well.
///
/// Decoding rounds (q - 8) * d to the plane's element type. Attention reads encoded blocks as exactly
/// these values.
struct q4_0 : block_quantizer<q4_0> {
  static constexpr std::uint32_t format_id = 2;  // GGML_TYPE_Q4_0
  static constexpr std::string_view name = "q4_0";
  static constexpr bool lossless = false;
  static constexpr std::uint8_t loss = 64;
  static constexpr bool fixed_rate = true;
  static constexpr bool attendable = true;

  static constexpr std::size_t group_values = 32;
  static constexpr std::size_t group_bytes = 18;

 private:
  friend block_quantizer<q4_0>;
  static constexpr const char* bad_dimension = "q4_0 needs head dimensions that are multiples of 32";
  static constexpr const char* bad_type = "q4_0 encodes fp16, bf16 and fp32";
  static constexpr const char* bad_size = "a stored q4_0 block has not the size of its group's blocks";
  static constexpr const char* bad_code = "a stored q4_0 block has a scale that is no number";

  template <element_value Type>
  static void encode_groups(Type type, const std::byte* in, std::byte* out, std::size_t groups,
                            isa set) noexcept;
  // Returns false if a scale is infinite or NaN, which no encoder writes.
  template <element_value Type>
  static bool decode_groups(Type type, const std::byte* in, std::byte* out, std::size_t groups,
                            isa set) noexcept;
};

static_assert(codec<q4_0>);

}  // namespace terrace

#if !defined(TERRACE_PREBUILT)
#include "terrace/codec/q4_0_groups.hpp"  // IWYU pragma: export
#endif
