#pragma once
// The vocabulary for integer dot products over q8_0 and q4_0 groups, beyond that of core/simd.hpp, for each
// instruction set. A lane of int_lanes is a 32-bit integer, four bytes, or a pair of 16-bit integers.
//
//   splat_i32(x)                  an integer in every lane
//   splat_pair(p)                 the two int16 at p in every lane
//   add(a, b), to_float(v)        the latter rounded
//   dot(sum, a, b)                sum + a * b of the lower halves + a * b of the upper halves
//   load_columns(p, stride, out)  of sixteen rows, `stride` bytes apart: lane t of out[c] is what row t has at 4 * c;
//                                 four or eight columns
//   even_bytes(v), odd_bytes(v)   bytes 0 and 2, or 1 and 3, as signed pairs
//   even_nibbles<s>(v), odd_nibbles<s>(v)  the lower (s = 0) or upper (s = 4) halves of these bytes, 0 to 15
//   load_byte_pairs(a, b, out)    pairs (a[d], b[d]) of two rows of 32 signed bytes, in the order that in_order undoes
//   in_order(low, high)           what came of the two vectors of load_byte_pairs, by ascending d
//   load_nibble_pairs(a, b, out)  pairs of two rows of 16 bytes: the lower halves less 8, then the upper ones
//   swap_middle(v)                swaps lanes 1 and 2 of each four: the order of even_bytes and odd_bytes
//   store_i16(p, v)               rounded to nearest, ties to even; a NaN and what is beyond 16 bits become some number

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "terrace/core/config.hpp"
#include "terrace/core/simd.hpp"

namespace terrace::simd {

namespace portable {
struct int_lanes {
  std::int32_t lane[16];
};
namespace detail {
template <class F>
TERRACE_ALWAYS_INLINE int_lanes each_int(F f) noexcept {
  int_lanes r;
  for (std::size_t i = 0; i < 16; ++i) r.lane[i] = f(i);
  return r;
}
TERRACE_ALWAYS_INLINE std::int32_t pair(int low, int high) noexcept {
  return static_cast<std::int32_t>((static_cast<std::uint32_t>(low) & 0xffffu) |
                                   static_cast<std::uint32_t>(high) << 16);
}
TERRACE_ALWAYS_INLINE int low(std::int32_t v) noexcept { return static_cast<std::int16_t>(v); }
TERRACE_ALWAYS_INLINE int high(std::int32_t v) noexcept { return v >> 16; }
TERRACE_ALWAYS_INLINE int byte(const std::byte* p) noexcept { return static_cast<std::int8_t>(*p); }
TERRACE_ALWAYS_INLINE int nibble(const std::byte* p, int shift) noexcept {
  return std::to_integer<int>(*p) >> shift & 15;
}
}  // namespace detail

TERRACE_ALWAYS_INLINE int_lanes splat_i32(std::int32_t x) noexcept {
  return detail::each_int([=](std::size_t) { return x; });
}
TERRACE_ALWAYS_INLINE int_lanes splat_pair(const std::int16_t* p) noexcept {
  return splat_i32(detail::pair(p[0], p[1]));
}
TERRACE_ALWAYS_INLINE int_lanes add(const int_lanes& a, const int_lanes& b) noexcept {
  return detail::each_int([&](std::size_t i) { return a.lane[i] + b.lane[i]; });
}
TERRACE_ALWAYS_INLINE f32x16 to_float(const int_lanes& v) noexcept {
  return detail::each([&](int i) { return static_cast<float>(v.lane[i]); });
}
TERRACE_ALWAYS_INLINE int_lanes dot(const int_lanes& sum, const int_lanes& a, const int_lanes& b) noexcept {
  return detail::each_int([&](std::size_t i) {
    return sum.lane[i] + detail::low(a.lane[i]) * detail::low(b.lane[i]) +
           detail::high(a.lane[i]) * detail::high(b.lane[i]);
  });
}
template <std::size_t columns>
TERRACE_ALWAYS_INLINE void load_columns(const std::byte* p, std::size_t stride,
                                        int_lanes (&out)[columns]) noexcept {
  for (std::size_t t = 0; t < 16; ++t, p += stride)
    for (std::size_t c = 0; c < columns; ++c) std::memcpy(&out[c].lane[t], p + 4 * c, 4);
}
TERRACE_ALWAYS_INLINE int_lanes even_bytes(const int_lanes& v) noexcept {
  return detail::each_int([&](std::size_t i) {
    return detail::pair(static_cast<std::int8_t>(v.lane[i]), static_cast<std::int8_t>(v.lane[i] >> 16));
  });
}
TERRACE_ALWAYS_INLINE int_lanes odd_bytes(const int_lanes& v) noexcept {
  return detail::each_int(
      [&](std::size_t i) { return detail::pair(static_cast<std::int8_t>(v.lane[i] >> 8), v.lane[i] >> 24); });
}
template <int shift>
TERRACE_ALWAYS_INLINE int_lanes even_nibbles(const int_lanes& v) noexcept {
  return detail::each_int([&](std::size_t i) { return v.lane[i] >> shift & 0x000f000f; });
}
template <int shift>
TERRACE_ALWAYS_INLINE int_lanes odd_nibbles(const int_lanes& v) noexcept {
  return even_nibbles<8 + shift>(v);
}
TERRACE_ALWAYS_INLINE void load_byte_pairs(const std::byte* a, const std::byte* b,
                                           int_lanes (&out)[2]) noexcept {
  for (std::size_t d = 0; d < 32; ++d)
    out[d / 16].lane[d % 16] = detail::pair(detail::byte(a + d), detail::byte(b + d));
}
TERRACE_ALWAYS_INLINE void in_order(f32x16&, f32x16&) noexcept {}
TERRACE_ALWAYS_INLINE void load_nibble_pairs(const std::byte* a, const std::byte* b,
                                             int_lanes (&out)[2]) noexcept {
  for (std::size_t d = 0; d < 16; ++d) {
    out[0].lane[d] = detail::pair(detail::nibble(a + d, 0) - 8, detail::nibble(b + d, 0) - 8);
    out[1].lane[d] = detail::pair(detail::nibble(a + d, 4) - 8, detail::nibble(b + d, 4) - 8);
  }
}
TERRACE_ALWAYS_INLINE f32x16 swap_middle(const f32x16& v) noexcept {
  return detail::each([&](int i) { return v.lane[i % 4 == 1 ? i + 1 : i % 4 == 2 ? i - 1 : i]; });
}
TERRACE_ALWAYS_INLINE void store_i16(std::int16_t* p, const f32x16& v) noexcept {
  constexpr float shift = 12582912.0f;  // 1.5 * 2^23: what is added to it is rounded to an integer
  for (std::size_t i = 0; i < 16; ++i) {
    const float rounded = (v.lane[i] + shift) - shift;
    p[i] = rounded >= -32768 && rounded <= 32767 ? static_cast<std::int16_t>(rounded) : std::int16_t{0};
  }
}
}  // namespace portable

#if TERRACE_X86
#define TERRACE_INLINE TERRACE_TARGET_AVX2 TERRACE_ALWAYS_INLINE
namespace avx2 {
struct int_lanes {
  __m256i lo, hi;
};
namespace detail {
TERRACE_INLINE __m128i load128(const std::byte* p) noexcept {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
}
TERRACE_INLINE __m256i load_halves(const std::byte* p, const std::byte* q) noexcept {
  return _mm256_inserti128_si256(_mm256_castsi128_si256(load128(p)), load128(q), 1);
}
struct four {
  __m256i a, b, c, d;
};
// Four columns of eight rows: the 4 x 4 transpose within each half, of rows 0 to 3 and of rows 4 to 7.
TERRACE_INLINE four transposed(const std::byte* p, std::size_t stride) noexcept {
  const std::byte* const q = p + 4 * stride;
  const __m256i a = load_halves(p, q), b = load_halves(p + stride, q + stride);
  const __m256i c = load_halves(p + 2 * stride, q + 2 * stride);
  const __m256i d = load_halves(p + 3 * stride, q + 3 * stride);
  const __m256i ab_low = _mm256_unpacklo_epi32(a, b), ab_high = _mm256_unpackhi_epi32(a, b);
  const __m256i cd_low = _mm256_unpacklo_epi32(c, d), cd_high = _mm256_unpackhi_epi32(c, d);
  return {_mm256_unpacklo_epi64(ab_low, cd_low), _mm256_unpackhi_epi64(ab_low, cd_low),
          _mm256_unpacklo_epi64(ab_high, cd_high), _mm256_unpackhi_epi64(ab_high, cd_high)};
}
TERRACE_INLINE __m256i nibbles(__m256i v) noexcept { return _mm256_and_si256(v, _mm256_set1_epi16(15)); }
}  // namespace detail

TERRACE_INLINE int_lanes splat_i32(std::int32_t x) noexcept {
  return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)};
}
TERRACE_INLINE int_lanes splat_pair(const std::int16_t* p) noexcept {
  std::int32_t pair;
  std::memcpy(&pair, p, sizeof pair);
  return splat_i32(pair);
}
TERRACE_INLINE int_lanes add(int_lanes a, int_lanes b) noexcept {
  return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)};
}
TERRACE_INLINE f32x16 to_float(int_lanes v) noexcept {
  return {_mm256_cvtepi32_ps(v.lo), _mm256_cvtepi32_ps(v.hi)};
}
TERRACE_INLINE int_lanes dot(int_lanes sum, int_lanes a, int_lanes b) noexcept {
  return {_mm256_add_epi32(sum.lo, _mm256_madd_epi16(a.lo, b.lo)),
          _mm256_add_epi32(sum.hi, _mm256_madd_epi16(a.hi, b.hi))};
}
template <std::size_t columns>
TERRACE_INLINE void load_columns(const std::byte* p, std::size_t stride, int_lanes (&out)[columns]) noexcept {
  for (std::size_t c = 0; c < columns; c += 4) {
    const detail::four early = detail::transposed(p + 4 * c, stride);
    const detail::four late = detail::transposed(p + 4 * c + 8 * stride, stride);
    out[c] = {early.a, late.a};
    out[c + 1] = {early.b, late.b};
    out[c + 2] = {early.c, late.c};
    out[c + 3] = {early.d, late.d};
  }
}
TERRACE_INLINE int_lanes even_bytes(int_lanes v) noexcept {
  return {_mm256_srai_epi16(_mm256_slli_epi16(v.lo, 8), 8), _mm256_srai_epi16(_mm256_slli_epi16(v.hi, 8), 8)};
}
TERRACE_INLINE int_lanes odd_bytes(int_lanes v) noexcept {
  return {_mm256_srai_epi16(v.lo, 8), _mm256_srai_epi16(v.hi, 8)};
}
template <int shift>
TERRACE_INLINE int_lanes even_nibbles(int_lanes v) noexcept {
  return {detail::nibbles(_mm256_srli_epi16(v.lo, shift)), detail::nibbles(_mm256_srli_epi16(v.hi, shift))};
}
template <int shift>
TERRACE_INLINE int_lanes odd_nibbles(int_lanes v) noexcept {
  return even_nibbles<8 + shift>(v);
}
TERRACE_INLINE void load_byte_pairs(const std::byte* a, const std::byte* b, int_lanes (&out)[2]) noexcept {
  for (std::size_t i = 0; i < 2; ++i) {
    const __m128i x = detail::load128(a + 16 * i), y = detail::load128(b + 16 * i);
    out[i] = {_mm256_cvtepi8_epi16(_mm_unpacklo_epi8(x, y)), _mm256_cvtepi8_epi16(_mm_unpackhi_epi8(x, y))};
  }
}
TERRACE_INLINE void in_order(f32x16&, f32x16&) noexcept {}
TERRACE_INLINE void load_nibble_pairs(const std::byte* a, const std::byte* b, int_lanes (&out)[2]) noexcept {
  const __m128i x = detail::load128(a), y = detail::load128(b);
  const __m256i low = _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(x, y));
  const __m256i high = _mm256_cvtepu8_epi16(_mm_unpackhi_epi8(x, y));
  const __m256i eight = _mm256_set1_epi16(8);
  out[0] = {_mm256_sub_epi16(detail::nibbles(low), eight), _mm256_sub_epi16(detail::nibbles(high), eight)};
  out[1] = {_mm256_sub_epi16(_mm256_srli_epi16(low, 4), eight),
            _mm256_sub_epi16(_mm256_srli_epi16(high, 4), eight)};
}
TERRACE_INLINE f32x16 swap_middle(f32x16 v) noexcept {
  return {_mm256_permute_ps(v.lo, 0xd8), _mm256_permute_ps(v.hi, 0xd8)};
}
TERRACE_INLINE void store_i16(std::int16_t* p, f32x16 v) noexcept {
  const __m256i pairs = _mm256_packs_epi32(_mm256_cvtps_epi32(v.lo), _mm256_cvtps_epi32(v.hi));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(pairs, 0xd8));
}
}  // namespace avx2
#undef TERRACE_INLINE

TERRACE_AVX512_BEGIN
#define TERRACE_INLINE TERRACE_TARGET_AVX512 TERRACE_ALWAYS_INLINE
namespace avx512 {
// Sixteen integers rather than the intrinsics' __m512i: where the types differ, g++ 12 copies a register back and
// forth for each sum in a loop.
struct int_lanes {
  __v16si v;
};
namespace detail {
TERRACE_INLINE int_lanes lanes(__m512i v) noexcept { return {reinterpret_cast<__v16si>(v)}; }
TERRACE_INLINE __m512i bits(int_lanes v) noexcept { return reinterpret_cast<__m512i>(v.v); }
TERRACE_INLINE __m128i load128(const std::byte* p) noexcept {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
}
TERRACE_INLINE __m256i load256(const std::byte* p) noexcept {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
struct four {
  __m512i a, b, c, d;
};
// Within each quarter the 4 x 4 transpose of its lanes.
TERRACE_INLINE four transposed(__m512i a, __m512i b, __m512i c, __m512i d) noexcept {
  const __m512i ab_low = _mm512_unpacklo_epi32(a, b), ab_high = _mm512_unpackhi_epi32(a, b);
  const __m512i cd_low = _mm512_unpacklo_epi32(c, d), cd_high = _mm512_unpackhi_epi32(c, d);
  return {_mm512_unpacklo_epi64(ab_low, cd_low), _mm512_unpackhi_epi64(ab_low, cd_low),
          _mm512_unpacklo_epi64(ab_high, cd_high), _mm512_unpackhi_epi64(ab_high, cd_high)};
}
// 32 bytes of this row and of the fourth row after it.
TERRACE_INLINE __m512i load_halves(const std::byte* p, std::size_t stride) noexcept {
  return _mm512_inserti64x4(_mm512_castsi256_si512(load256(p)), load256(p + 4 * stride), 1);
}
// 16 bytes of every fourth row.
TERRACE_INLINE __m512i load_quarters(const std::byte* p, std::size_t stride) noexcept {
  const __m512i one = _mm512_castsi128_si512(load128(p));
  const __m512i two = _mm512_inserti32x4(one, load128(p + 4 * stride), 1);
  const __m512i three = _mm512_inserti32x4(two, load128(p + 8 * stride), 2);
  return _mm512_inserti32x4(three, load128(p + 12 * stride), 3);
}
}  // namespace detail

TERRACE_INLINE int_lanes splat_i32(std::int32_t x) noexcept { return detail::lanes(_mm512_set1_epi32(x)); }
TERRACE_INLINE int_lanes splat_pair(const std::int16_t* p) noexcept {
  std::int32_t pair;
  std::memcpy(&pair, p, sizeof pair);
  return splat_i32(pair);
}
TERRACE_INLINE int_lanes add(int_lanes a, int_lanes b) noexcept {
  return detail::lanes(_mm512_add_epi32(detail::bits(a), detail::bits(b)));
}
TERRACE_INLINE f32x16 to_float(int_lanes v) noexcept { return {_mm512_cvtepi32_ps(detail::bits(v))}; }
TERRACE_INLINE int_lanes dot(int_lanes sum, int_lanes a, int_lanes b) noexcept {
  return detail::lanes(_mm512_dpwssd_epi32(detail::bits(sum), detail::bits(a), detail::bits(b)));
}
TERRACE_INLINE void load_columns(const std::byte* p, std::size_t stride, int_lanes (&out)[4]) noexcept {
  const detail::four all = detail::transposed(
      detail::load_quarters(p, stride), detail::load_quarters(p + stride, stride),
      detail::load_quarters(p + 2 * stride, stride), detail::load_quarters(p + 3 * stride, stride));
  out[0] = detail::lanes(all.a);
  out[1] = detail::lanes(all.b);
  out[2] = detail::lanes(all.c);
  out[3] = detail::lanes(all.d);
}
TERRACE_INLINE void load_columns(const std::byte* p, std::size_t stride, int_lanes (&out)[8]) noexcept {
  const detail::four early = detail::transposed(
      detail::load_halves(p, stride), detail::load_halves(p + stride, stride),
      detail::load_halves(p + 2 * stride, stride), detail::load_halves(p + 3 * stride, stride));
  const std::byte* const q = p + 8 * stride;
  const detail::four late = detail::transposed(
      detail::load_halves(q, stride), detail::load_halves(q + stride, stride),
      detail::load_halves(q + 2 * stride, stride), detail::load_halves(q + 3 * stride, stride));
  out[0] = detail::lanes(_mm512_shuffle_i32x4(early.a, late.a, 0x88));
  out[1] = detail::lanes(_mm512_shuffle_i32x4(early.b, late.b, 0x88));
  out[2] = detail::lanes(_mm512_shuffle_i32x4(early.c, late.c, 0x88));
  out[3] = detail::lanes(_mm512_shuffle_i32x4(early.d, late.d, 0x88));
  out[4] = detail::lanes(_mm512_shuffle_i32x4(early.a, late.a, 0xdd));
  out[5] = detail::lanes(_mm512_shuffle_i32x4(early.b, late.b, 0xdd));
  out[6] = detail::lanes(_mm512_shuffle_i32x4(early.c, late.c, 0xdd));
  out[7] = detail::lanes(_mm512_shuffle_i32x4(early.d, late.d, 0xdd));
}
TERRACE_INLINE int_lanes even_bytes(int_lanes v) noexcept {
  return detail::lanes(_mm512_srai_epi16(_mm512_slli_epi16(detail::bits(v), 8), 8));
}
TERRACE_INLINE int_lanes odd_bytes(int_lanes v) noexcept {
  return detail::lanes(_mm512_srai_epi16(detail::bits(v), 8));
}
template <int shift>
TERRACE_INLINE int_lanes even_nibbles(int_lanes v) noexcept {
  const __m512i moved = shift == 0 ? detail::bits(v) : _mm512_srli_epi16(detail::bits(v), shift);
  return detail::lanes(shift == 12 ? moved : _mm512_and_si512(moved, _mm512_set1_epi16(15)));
}
template <int shift>
TERRACE_INLINE int_lanes odd_nibbles(int_lanes v) noexcept {
  return even_nibbles<8 + shift>(v);
}
TERRACE_INLINE void load_byte_pairs(const std::byte* a, const std::byte* b, int_lanes (&out)[2]) noexcept {
  const __m512i x = _mm512_cvtepi8_epi16(detail::load256(a)), y = _mm512_cvtepi8_epi16(detail::load256(b));
  out[0] = detail::lanes(_mm512_unpacklo_epi16(x, y));
  out[1] = detail::lanes(_mm512_unpackhi_epi16(x, y));
}
TERRACE_INLINE void in_order(f32x16& low, f32x16& high) noexcept {
  const __m512i first = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
  const __m512i second = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
  const __m512 a = low.v, b = high.v;
  low.v = _mm512_permutex2var_ps(a, first, b);
  high.v = _mm512_permutex2var_ps(a, second, b);
}
TERRACE_INLINE void load_nibble_pairs(const std::byte* a, const std::byte* b, int_lanes (&out)[2]) noexcept {
  const __m512i x = _mm512_cvtepu8_epi32(detail::load128(a)), y = _mm512_cvtepu8_epi32(detail::load128(b));
  const __m512i both = _mm512_or_si512(x, _mm512_slli_epi32(y, 16)), eight = _mm512_set1_epi16(8);
  out[0] = detail::lanes(_mm512_sub_epi16(_mm512_and_si512(both, _mm512_set1_epi16(15)), eight));
  out[1] = detail::lanes(_mm512_sub_epi16(_mm512_srli_epi16(both, 4), eight));
}
TERRACE_INLINE f32x16 swap_middle(f32x16 v) noexcept { return {_mm512_permute_ps(v.v, 0xd8)}; }
TERRACE_INLINE void store_i16(std::int16_t* p, f32x16 v) noexcept {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(v.v)));
}
}  // namespace avx512
#undef TERRACE_INLINE
TERRACE_AVX512_END
#endif

}  // namespace terrace::simd
