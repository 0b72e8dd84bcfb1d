#pragma once
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>

#include "terrace/core/config.hpp"
#include "terrace/core/element.hpp"

// The vocabulary of core/simd.hpp in plain C++, for every processor.
namespace terrace::simd::portable {

using mask16 = std::uint16_t;

struct f32x16 {
  float lane[16];
};

namespace detail {
template <class F>
TERRACE_ALWAYS_INLINE f32x16 each(F f) noexcept {
  f32x16 r;
  for (int i = 0; i < 16; ++i) r.lane[i] = f(i);
  return r;
}
template <class F>
TERRACE_ALWAYS_INLINE mask16 mask(F f) noexcept {
  unsigned r = 0;
  for (unsigned i = 0; i < 16; ++i) r |= (f(i) ? 1u : 0u) << i;
  return static_cast<mask16>(r);
}
}  // namespace detail

TERRACE_ALWAYS_INLINE f32x16 splat(float x) noexcept {
  return detail::each([=](int) { return x; });
}
TERRACE_ALWAYS_INLINE f32x16 splat(fp16 x) noexcept { return splat(to_float(x)); }
TERRACE_ALWAYS_INLINE f32x16 load(const float* p) noexcept {
  f32x16 r;
  std::memcpy(&r, p, sizeof r);
  return r;
}
TERRACE_ALWAYS_INLINE void store(float* p, const f32x16& v) noexcept { std::memcpy(p, &v, sizeof v); }

template <element_type T>
TERRACE_ALWAYS_INLINE f32x16 load_as(const std::byte* p) noexcept {
  T in[16];
  std::memcpy(in, p, sizeof in);
  return detail::each([&](int i) { return to_float(in[i]); });
}
template <element_type T>
TERRACE_ALWAYS_INLINE void store_as(std::byte* p, const f32x16& v) noexcept {
  T out[16];
  for (int i = 0; i < 16; ++i) out[i] = from_float<T>(v.lane[i]);
  std::memcpy(p, out, sizeof out);
}
template <element_type T>
TERRACE_ALWAYS_INLINE f32x16 round_as(const f32x16& v) noexcept {
  return detail::each([&](int i) { return to_float(from_float<T>(v.lane[i])); });
}
TERRACE_ALWAYS_INLINE f32x16 load_i8(const std::byte* p) noexcept {
  return detail::each([=](int i) { return static_cast<float>(static_cast<std::int8_t>(p[i])); });
}
// Doubled in the exponent and rounded as integers: a compiler may fuse a float addition with the caller's product,
// which would round differently.
TERRACE_ALWAYS_INLINE void store_i8(std::byte* p, const f32x16& v) noexcept {
  for (int i = 0; i < 16; ++i) {
    const auto doubled = std::bit_cast<float>(std::bit_cast<std::uint32_t>(v.lane[i]) + (1u << 23));
    const int twice = static_cast<int>(doubled);
    p[i] = static_cast<std::byte>((twice + (twice < 0 ? 0 : 1)) >> 1);
  }
}
TERRACE_ALWAYS_INLINE fp16 narrow(float x) noexcept { return to_fp16(x); }

TERRACE_ALWAYS_INLINE f32x16 add(const f32x16& a, const f32x16& b) noexcept {
  return detail::each([&](int i) { return a.lane[i] + b.lane[i]; });
}
TERRACE_ALWAYS_INLINE f32x16 sub(const f32x16& a, const f32x16& b) noexcept {
  return detail::each([&](int i) { return a.lane[i] - b.lane[i]; });
}
TERRACE_ALWAYS_INLINE f32x16 mul(const f32x16& a, const f32x16& b) noexcept {
  return detail::each([&](int i) { return a.lane[i] * b.lane[i]; });
}
TERRACE_ALWAYS_INLINE f32x16 div(const f32x16& a, const f32x16& b) noexcept {
  return detail::each([&](int i) { return a.lane[i] / b.lane[i]; });
}
TERRACE_ALWAYS_INLINE float fma(float a, float b, float c) noexcept {
// Without the instruction std::fma is a library call; two roundings are as good a definition for this set.
#if defined(__FMA__) || defined(__FP_FAST_FMAF) || defined(__aarch64__)
  return std::fma(a, b, c);
#else
  return a * b + c;
#endif
}
TERRACE_ALWAYS_INLINE f32x16 fma(const f32x16& a, const f32x16& b, const f32x16& c) noexcept {
  return detail::each([&](int i) { return fma(a.lane[i], b.lane[i], c.lane[i]); });
}
TERRACE_ALWAYS_INLINE f32x16 min(const f32x16& a, const f32x16& b) noexcept {
  return detail::each([&](int i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
}
TERRACE_ALWAYS_INLINE f32x16 max(const f32x16& a, const f32x16& b) noexcept {
  return detail::each([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
}
TERRACE_ALWAYS_INLINE f32x16 abs(const f32x16& v) noexcept {
  return detail::each([&](int i) { return std::fabs(v.lane[i]); });
}
TERRACE_ALWAYS_INLINE f32x16 select(mask16 mask, const f32x16& a, const f32x16& b) noexcept {
  return detail::each([&](int i) { return ((mask >> i) & 1) != 0 ? a.lane[i] : b.lane[i]; });
}
TERRACE_ALWAYS_INLINE mask16 is_number(const f32x16& v) noexcept {
  return detail::mask([&](unsigned i) { return !std::isnan(v.lane[i]); });
}
TERRACE_ALWAYS_INLINE mask16 less(const f32x16& a, const f32x16& b) noexcept {
  return detail::mask([&](unsigned i) { return a.lane[i] < b.lane[i]; });
}
TERRACE_ALWAYS_INLINE mask16 equal(const f32x16& a, const f32x16& b) noexcept {
  return detail::mask([&](unsigned i) { return !(a.lane[i] < b.lane[i]) && a.lane[i] <= b.lane[i]; });
}
TERRACE_ALWAYS_INLINE f32x16 power_of_two(const f32x16& shifted) noexcept {
  return detail::each([&](int i) {
    return std::bit_cast<float>((std::bit_cast<std::uint32_t>(shifted.lane[i]) + 127u) << 23);
  });
}
TERRACE_ALWAYS_INLINE float sum(const f32x16& v) noexcept {
  float part[8];
  for (int i = 0; i < 8; ++i) part[i] = v.lane[i] + v.lane[i + 8];
  for (int i = 0; i < 4; ++i) part[i] += part[i + 4];
  return (part[0] + part[2]) + (part[1] + part[3]);
}
TERRACE_ALWAYS_INLINE float largest(const f32x16& v) noexcept {
  float most = v.lane[0];
  for (int i = 1; i < 16; ++i) most = most > v.lane[i] ? most : v.lane[i];
  return most;
}

TERRACE_ALWAYS_INLINE f32x16 larger_magnitude(const f32x16& a, const f32x16& b) noexcept {
  return detail::each([&](int i) {
    const std::uint32_t x = std::bit_cast<std::uint32_t>(a.lane[i]) & 0x7fffffffu;
    const std::uint32_t y = std::bit_cast<std::uint32_t>(b.lane[i]) & 0x7fffffffu;
    return std::bit_cast<float>(x > y ? x : y);
  });
}
TERRACE_ALWAYS_INLINE float largest_magnitude(const f32x16& a, const f32x16& b) noexcept {
  std::uint32_t most = 0;
  for (const float x : larger_magnitude(a, b).lane) {
    const auto bits = std::bit_cast<std::uint32_t>(x);
    most = bits > most ? bits : most;
  }
  return std::bit_cast<float>(most);
}
TERRACE_ALWAYS_INLINE f32x16 largest_of_each(const f32x16 (&v)[16]) noexcept {
  return detail::each([&](int i) { return largest_magnitude(v[i], v[i]); });
}

inline constexpr int sums_per_block = 4;
inline constexpr int most_sum_rows = 1;

TERRACE_ALWAYS_INLINE void store_sums(const f32x16 (&v)[sums_per_block], float* out) noexcept {
  for (int i = 0; i < sums_per_block; ++i) out[i] = sum(v[i]);
}

template <int rows>
TERRACE_ALWAYS_INLINE void split_rows(const float* in, float* out, std::size_t) noexcept {
  static_assert(rows == 1);
  store(out, load(in));
}

}  // namespace terrace::simd::portable
