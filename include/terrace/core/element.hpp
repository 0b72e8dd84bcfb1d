#pragma once
#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>

#include "terrace/core/config.hpp"

namespace terrace {

/// Storage of IEEE binary16. Bits equal those of __half and _Float16; arithmetic is done in float.
struct fp16 {
  std::uint16_t bits = 0;
  friend constexpr bool operator==(fp16, fp16) noexcept = default;  // bits, not values: -0 differs from +0
};

/// Storage of bfloat16, the upper half of a float.
struct bf16 {
  std::uint16_t bits = 0;
  friend constexpr bool operator==(bf16, bf16) noexcept = default;
};

/// Storage of OCP's E4M3: a sign, 4 bits of exponent with bias 7, 3 of mantissa. There are no infinities; all ones
/// after the sign is the NaN, and 448 is the largest number. Source: OCP 8-bit Floating Point Specification (OFP8),
/// revision 1.0.
struct fp8_e4m3 {
  std::uint8_t bits = 0;
  friend constexpr bool operator==(fp8_e4m3, fp8_e4m3) noexcept = default;
};
static_assert(sizeof(fp16) == 2 && sizeof(bf16) == 2 && sizeof(fp8_e4m3) == 1);

/// The element types that a plane may have.
enum class element : std::uint8_t { fp16, bf16, fp32, fp8_e4m3 };

constexpr std::size_t size_of(element type) noexcept {
  switch (type) {
    case element::fp16:
    case element::bf16:
      return 2;
    case element::fp32:
      return 4;
    case element::fp8_e4m3:
      return 1;
  }
  return 0;
}

template <class T>
inline constexpr bool is_element = false;
template <>
inline constexpr bool is_element<fp16> = true;
template <>
inline constexpr bool is_element<bf16> = true;
template <>
inline constexpr bool is_element<float> = true;
template <>
inline constexpr bool is_element<fp8_e4m3> = true;
/// A type that KV can be stored in and that the host computes with.
template <class T>
concept element_type = is_element<T>;

template <element_type T>
inline constexpr element element_of = element::fp32;
template <>
inline constexpr element element_of<fp16> = element::fp16;
template <>
inline constexpr element element_of<bf16> = element::bf16;
template <>
inline constexpr element element_of<fp8_e4m3> = element::fp8_e4m3;

/// One value at a time: exact, portable, usable in constant expressions and on a device. Arrays are converted
/// by `convert` (core/convert.hpp), which uses the processor's instructions.
TERRACE_HD constexpr float to_float(fp16 h) noexcept {
  const std::uint32_t sign = (h.bits & 0x8000u) << 16;
  const std::uint32_t exponent = (h.bits >> 10) & 31u;
  std::uint32_t mantissa = h.bits & 1023u;
  std::uint32_t out = sign;
  if (exponent == 31) {
    out |= 0x7f800000u | (mantissa << 13) | (mantissa != 0 ? 0x400000u : 0u);  // a NaN comes back quiet
  } else if (exponent != 0) {
    out |= ((exponent + 112) << 23) | (mantissa << 13);
  } else if (mantissa != 0) {
    std::uint32_t e = 113;
    for (; (mantissa & 1024u) == 0; mantissa <<= 1) --e;
    out |= (e << 23) | ((mantissa & 1023u) << 13);
  }
  return std::bit_cast<float>(out);
}
TERRACE_HD constexpr float to_float(bf16 h) noexcept {
  return std::bit_cast<float>(std::uint32_t{h.bits} << 16);
}
TERRACE_HD constexpr float to_float(float x) noexcept { return x; }
TERRACE_HD constexpr float to_float(fp8_e4m3 h) noexcept {
  const std::uint32_t sign = (h.bits & 0x80u) << 24;
  const std::uint32_t magnitude = h.bits & 0x7fu;
  if (magnitude == 0x7fu) return std::bit_cast<float>(sign | 0x7ff00000u);  // keeps its mantissa
  if (magnitude < 8) {                                                      // subnormal: a multiple of 2^-9
    const float value = static_cast<float>(magnitude) * 0x1p-9f;
    return sign != 0 ? -value : value;
  }
  return std::bit_cast<float>(sign | ((magnitude + (120u << 3)) << 20));
}

/// Rounds to nearest, ties to even; overflow gives infinity, a NaN stays a quiet NaN.
TERRACE_HD constexpr fp16 to_fp16(float x) noexcept {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(x);
  const std::uint32_t sign = (bits >> 16) & 0x8000u;
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u)
    return {static_cast<std::uint16_t>(sign | 0x7e00u | ((magnitude >> 13) & 0x3ffu))};
  if (magnitude >= 0x477ff000u)
    return {static_cast<std::uint16_t>(sign | 0x7c00u)};                   // rounds to 65536 or more
  if (magnitude < 0x33000001u) return {static_cast<std::uint16_t>(sign)};  // rounds to zero
  std::uint32_t half = 0, rest = 0, tie = 0;
  if (magnitude < 0x38800000u) {  // subnormal: shift the significand into place
    const std::uint32_t shift = 126u - (magnitude >> 23);
    const std::uint32_t significand = (magnitude & 0x7fffffu) | 0x800000u;
    half = significand >> shift;
    rest = significand & ((1u << shift) - 1u);
    tie = 1u << (shift - 1u);
  } else {
    half = (magnitude >> 13) - (112u << 10);
    rest = magnitude & 0x1fffu;
    tie = 0x1000u;
  }
  if (rest > tie || (rest == tie && (half & 1u) != 0)) ++half;
  return {static_cast<std::uint16_t>(sign | half)};
}
TERRACE_HD constexpr bf16 to_bf16(float x) noexcept {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<std::uint16_t>((bits >> 16) | 0x40u)};
  return {static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

/// Rounds to nearest, ties to even; anything larger than 448, including infinity, becomes 448, as in the
/// specification's saturating mode. A NaN stays a NaN. The sign is kept.
TERRACE_HD constexpr fp8_e4m3 to_fp8_e4m3(float x) noexcept {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(x);
  const std::uint32_t sign = (bits >> 24) & 0x80u;
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {static_cast<std::uint8_t>(sign | 0x7fu)};
  if (magnitude >= 0x43e00000u) return {static_cast<std::uint8_t>(sign | 0x7eu)};  // 448
  if (magnitude <= 0x3a800000u) return {static_cast<std::uint8_t>(sign)};          // 2^-10 rounds to zero
  std::uint32_t code = 0, rest = 0, tie = 0;
  if (magnitude < 0x3c800000u) {  // below 2^-6, subnormal: shift the significand into place
    const std::uint32_t shift = 141u - (magnitude >> 23);
    const std::uint32_t significand = (magnitude & 0x7fffffu) | 0x800000u;
    code = significand >> shift;
    rest = significand & ((1u << shift) - 1u);
    tie = 1u << (shift - 1u);
  } else {
    code = (magnitude >> 20) - (120u << 3);
    rest = magnitude & 0xfffffu;
    tie = 0x80000u;
  }
  if (rest > tie || (rest == tie && (code & 1u) != 0)) ++code;
  return {static_cast<std::uint8_t>(sign | code)};
}

/// The element nearest to x, by the rules of the type.
template <element_type T>
TERRACE_HD constexpr T from_float(float x) noexcept {
  if constexpr (element_of<T> == element::fp16)
    return to_fp16(x);
  else if constexpr (element_of<T> == element::bf16)
    return to_bf16(x);
  else if constexpr (element_of<T> == element::fp8_e4m3)
    return to_fp8_e4m3(x);
  else
    return x;
}

/// An element type as a value: an `element`, or a constant of that type. Functions that take one are templates, so
/// they are compiled only where they are called: kernels are large, and there are three of each.
template <class T>
concept element_value = std::convertible_to<T, element>;

}  // namespace terrace
