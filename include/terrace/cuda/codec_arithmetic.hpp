#pragma once
#include <bit>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "terrace/codec/block_encoding.hpp"
#include "terrace/core/config.hpp"
#include "terrace/core/element.hpp"

// The arithmetic of the host's codecs (codec/q8_0.hpp, codec/q4_0.hpp) for one group of 32 values, in pieces that
// the threads of a device share: the same bits come out. Each step is exact or rounds once, and ensures that itself:
//
// - a product and a quotient are rounded to nearest whatever the flags are, by the instructions that name their
//   rounding: nvcc fuses a plain product with a sum that follows it, and --use_fast_math divides approximately;
// - what is rounded to an integer is rounded by integer operations;
// - comparisons and absolute values look at bits, so that flushing subnormals (-ftz=true) changes nothing: a group
//   whose values are subnormal floats has a scale that rounds to zero in either way.

namespace terrace::cuda {

/// a * b, rounded to nearest once.
TERRACE_HD inline float rounded_product(float a, float b) noexcept {
#if defined(__CUDA_ARCH__)
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}
/// a / b, rounded to nearest once.
TERRACE_HD inline float rounded_quotient(float a, float b) noexcept {
#if defined(__CUDA_ARCH__)
  return __fdiv_rn(a, b);
#else
  return a / b;
#endif
}

/// The magnitude of a float as bits, which order as magnitudes do; a NaN's are above all others.
TERRACE_HD constexpr std::uint32_t magnitude_bits(float x) noexcept {
  return std::bit_cast<std::uint32_t>(x) & 0x7fffffffu;
}

/// The largest magnitude that q8_0 and q4_0 take from a plane of T: what is larger counts as this, and a NaN as 0.
/// Sources: kernels::q8_0_limits and kernels::q4_0_largest.
template <element_type T>
TERRACE_HD constexpr float largest_of(block_encoding encoding) noexcept {
  if (std::is_same_v<T, fp16>) return 65504.0f;
  return encoding == block_encoding::q8_0 ? 127.0f * 65504.0f : 524159.96875f;
}
template <element_type T>
TERRACE_HD constexpr float tame(float x, block_encoding encoding) noexcept {
  const std::uint32_t most = std::bit_cast<std::uint32_t>(largest_of<T>(encoding));
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(x), magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return 0;
  return magnitude <= most ? x : std::bit_cast<float>((bits & 0x80000000u) | most);
}

/// What a group of values is divided by, as stored, and the factor that they are multiplied by instead.
struct group_scale {
  fp16 stored;
  float inverse = 0;
};

/// q8_0: `most` is the group's largest magnitude.
template <element_type T>
TERRACE_HD inline group_scale q8_0_scale(float most) noexcept {
  const float limit = std::is_same_v<T, fp16> ? 515.5f : 65504.0f;
  const float d = rounded_quotient(most, 127.0f);
  const fp16 stored = to_fp16(d < limit ? d : limit);
  return {stored, stored.bits != 0 ? rounded_quotient(1.0f, d) : 0.0f};
}
/// The code of a value times the inverse: rounded to nearest, ties away from zero. Twice the value is exact.
TERRACE_HD inline int q8_0_code(float x, float inverse) noexcept {
  const int twice = static_cast<int>(rounded_product(rounded_product(x, inverse), 2.0f));
  return (twice + (twice < 0 ? 0 : 1)) >> 1;
}

/// In a bf16 plane: the code, `code` or one next to it, that gives x exactly; found is false if none of the three
/// does.
struct exact_code {
  int code = 0;
  bool found = false;
};
TERRACE_HD inline exact_code q8_0_exact_code(float x, fp16 scale, int code) noexcept {
  const float d = to_float(scale);
  const std::uint32_t wanted = std::bit_cast<std::uint32_t>(x);
  const auto gives = [&](int c) {
    const float y = to_float(to_bf16(rounded_product(static_cast<float>(c), d)));
    const std::uint32_t got = std::bit_cast<std::uint32_t>(y);
    return wanted == got || ((wanted | got) & 0x7fffffffu) == 0;  // zeros of either sign are one value
  };
  const int up = code < 127 ? code + 1 : 127, down = code > -127 ? code - 1 : -127;
  if (gives(code)) return {code, true};
  if (gives(up)) return {up, true};
  return {down, gives(down)};
}

/// q4_0: `extreme` is the value of largest magnitude, the first of several. The inverse includes a factor of 2^26,
/// for q4_0_code.
TERRACE_HD inline group_scale q4_0_scale(float extreme) noexcept {
  const float d = -rounded_product(extreme, 0.125f);
  const fp16 stored = to_fp16(d);
  if ((stored.bits & 0x7fffu) == 0) return {fp16{0x8000u}, 0.0f};
  return {stored, rounded_quotient(0x1p26f, d)};
}
/// The code of a value: ggml's x * inverse + 8.5 in floats, truncated, at most 15. The sum is done in integers, in
/// units of 2^-26, and rounded as the sum of floats rounds (codec/q4_0_simd.hpp).
TERRACE_HD inline int q4_0_code(float x, float inverse) noexcept {
  const int sum = static_cast<int>(rounded_product(x, inverse)) + 0x22000000 + 16;
  const int code = (sum + ((sum >> 25) & 16)) >> 26;
  return code < 15 ? code : 15;
}

}  // namespace terrace::cuda
