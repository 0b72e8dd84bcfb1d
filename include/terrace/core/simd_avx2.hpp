#pragma once
#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "terrace/core/config.hpp"
#include "terrace/core/element.hpp"

#define TERRACE_INLINE TERRACE_TARGET_AVX2 TERRACE_ALWAYS_INLINE

// The vocabulary of core/simd.hpp in AVX2, FMA and F16C: two registers for sixteen lanes.
namespace terrace::simd::avx2 {

using mask16 = std::uint16_t;

struct f32x16 {
  __m256 lo, hi;
};

TERRACE_INLINE f32x16 splat(float x) noexcept { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
TERRACE_INLINE f32x16 splat(fp16 x) noexcept {
  const __m256 v = _mm256_cvtph_ps(_mm_set1_epi16(static_cast<short>(x.bits)));
  return {v, v};
}
TERRACE_INLINE f32x16 load(const float* p) noexcept { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
TERRACE_INLINE void store(float* p, f32x16 v) noexcept {
  _mm256_storeu_ps(p, v.lo);
  _mm256_storeu_ps(p + 8, v.hi);
}

namespace detail {
TERRACE_INLINE __m128i to_half(__m256 v) noexcept {
  return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
// Upper half of each float, rounded; a NaN keeps its upper bits and becomes quiet.
TERRACE_INLINE __m256i to_bfloat(__m256 v) noexcept {
  const __m256i bits = _mm256_castps_si256(v);
  const __m256i upper = _mm256_srli_epi32(bits, 16);
  const __m256i odd = _mm256_and_si256(upper, _mm256_set1_epi32(1));
  const __m256i rounded =
      _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
  const __m256i quiet = _mm256_or_si256(upper, _mm256_set1_epi32(0x40));
  return _mm256_blendv_epi8(rounded, quiet, _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q)));
}
TERRACE_INLINE __m256 from_bfloat(__m128i in) noexcept {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(in), 16));
}
// With its exponent moved to where fp16 has it, an E4M3 reads as an fp16 of 1/256 of its value, subnormals included.
// The NaN would read as 480.
TERRACE_INLINE f32x16 from_fp8(__m128i in) noexcept {
  const __m256i moved = _mm256_slli_epi16(_mm256_cvtepi8_epi16(in), 7);  // the sign twice
  const __m256i most = _mm256_set1_epi16(0x3f80);
  const __m256i nan = _mm256_cmpeq_epi16(_mm256_and_si256(moved, most), most);
  const __m256i half = _mm256_and_si256(moved, _mm256_set1_epi16(static_cast<short>(0xbf80)));
  const __m256i marked = _mm256_or_si256(half, _mm256_and_si256(nan, _mm256_set1_epi16(0x7e00)));
  const __m256 factor = _mm256_set1_ps(256);
  return {_mm256_mul_ps(_mm256_cvtph_ps(_mm256_castsi256_si128(marked)), factor),
          _mm256_mul_ps(_mm256_cvtph_ps(_mm256_extracti128_si256(marked, 1)), factor)};
}
// Subnormals are multiples of 2^-9, the unit in the last place of 2^14: adding 2^14 rounds them.
TERRACE_INLINE __m256i to_fp8(__m256 v) noexcept {
  const __m256i bits = _mm256_castps_si256(v);
  const __m256i magnitude = _mm256_and_si256(bits, _mm256_set1_epi32(0x7fffffff));
  const __m256i bounded = _mm256_min_epi32(magnitude, _mm256_set1_epi32(0x43e00000));  // 448
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bounded, 20), _mm256_set1_epi32(1));
  const __m256i rounding = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7ffff - (120 << 23)));
  const __m256i normal = _mm256_srli_epi32(_mm256_add_epi32(bounded, rounding), 20);
  const __m256 sum = _mm256_add_ps(_mm256_castsi256_ps(bounded), _mm256_set1_ps(0x1p14f));
  const __m256i small = _mm256_sub_epi32(_mm256_castps_si256(sum), _mm256_set1_epi32(0x46800000));
  const __m256i is_small = _mm256_cmpgt_epi32(_mm256_set1_epi32(0x3c800000), bounded);  // 2^-6
  const __m256i nan = _mm256_cmpgt_epi32(magnitude, _mm256_set1_epi32(0x7f800000));
  const __m256i code = _mm256_blendv_epi8(normal, small, is_small);
  const __m256i all = _mm256_blendv_epi8(code, _mm256_set1_epi32(0x7f), nan);
  return _mm256_or_si256(all, _mm256_and_si256(_mm256_srli_epi32(bits, 24), _mm256_set1_epi32(0x80)));
}
// Packs sixteen 32-bit integers that fit in 16 bits, in order.
TERRACE_INLINE __m256i pack16(__m256i lo, __m256i hi) noexcept {
  return _mm256_permute4x64_epi64(_mm256_packus_epi32(lo, hi), 0xd8);
}
// Packs sixteen 32-bit integers that fit in 8 bits into bytes, in order.
TERRACE_INLINE __m128i pack8(__m256i lo, __m256i hi) noexcept {
  const __m256i words = pack16(lo, hi);
  return _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
}
// Doubled in the exponent and rounded as integers: a compiler may fuse a float addition with the caller's product,
// which would round differently.
TERRACE_INLINE __m256i round_half_away(__m256 v) noexcept {
  const __m256i doubled = _mm256_add_epi32(_mm256_castps_si256(v), _mm256_set1_epi32(1 << 23));
  const __m256i twice = _mm256_cvttps_epi32(_mm256_castsi256_ps(doubled));
  const __m256i bias = _mm256_add_epi32(_mm256_srai_epi32(twice, 31), _mm256_set1_epi32(1));
  return _mm256_srai_epi32(_mm256_add_epi32(twice, bias), 1);
}
TERRACE_INLINE __m256i magnitude(__m256 v) noexcept {
  return _mm256_and_si256(_mm256_castps_si256(v), _mm256_set1_epi32(0x7fffffff));
}
TERRACE_INLINE __m256 lanes_of(unsigned bits) noexcept {
  const __m256i one_bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i set = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits)), one_bit);
  return _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, one_bit));
}
TERRACE_INLINE mask16 bits_of(__m256 lo, __m256 hi) noexcept {
  return static_cast<mask16>(_mm256_movemask_ps(lo) | (_mm256_movemask_ps(hi) << 8));
}
TERRACE_INLINE __m256 power_of_two(__m256 shifted) noexcept {
  const __m256i biased = _mm256_add_epi32(_mm256_castps_si256(shifted), _mm256_set1_epi32(127));
  return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
}
}  // namespace detail

template <element_type T>
TERRACE_INLINE f32x16 load_as(const std::byte* p) noexcept {
  if constexpr (std::is_same_v<T, float>) {
    const auto* const in = reinterpret_cast<const float*>(p);
    return {_mm256_loadu_ps(in), _mm256_loadu_ps(in + 8)};
  } else if constexpr (std::is_same_v<T, fp8_e4m3>) {
    return detail::from_fp8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  } else {
    const auto* const in = reinterpret_cast<const __m128i*>(p);
    const __m128i lo = _mm_loadu_si128(in), hi = _mm_loadu_si128(in + 1);
    if constexpr (std::is_same_v<T, fp16>)
      return {_mm256_cvtph_ps(lo), _mm256_cvtph_ps(hi)};
    else
      return {detail::from_bfloat(lo), detail::from_bfloat(hi)};
  }
}
template <element_type T>
TERRACE_INLINE void store_as(std::byte* p, f32x16 v) noexcept {
  if constexpr (std::is_same_v<T, float>) {
    store(reinterpret_cast<float*>(p), v);
  } else if constexpr (std::is_same_v<T, fp16>) {
    auto* const out = reinterpret_cast<__m128i*>(p);
    _mm_storeu_si128(out, detail::to_half(v.lo));
    _mm_storeu_si128(out + 1, detail::to_half(v.hi));
  } else if constexpr (std::is_same_v<T, fp8_e4m3>) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     detail::pack8(detail::to_fp8(v.lo), detail::to_fp8(v.hi)));
  } else {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        detail::pack16(detail::to_bfloat(v.lo), detail::to_bfloat(v.hi)));
  }
}
template <element_type T>
TERRACE_INLINE f32x16 round_as(f32x16 v) noexcept {
  if constexpr (std::is_same_v<T, float>) {
    return v;
  } else if constexpr (std::is_same_v<T, fp16>) {
    return {_mm256_cvtph_ps(detail::to_half(v.lo)), _mm256_cvtph_ps(detail::to_half(v.hi))};
  } else if constexpr (std::is_same_v<T, fp8_e4m3>) {
    return detail::from_fp8(detail::pack8(detail::to_fp8(v.lo), detail::to_fp8(v.hi)));
  } else {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(detail::to_bfloat(v.lo), 16)),
            _mm256_castsi256_ps(_mm256_slli_epi32(detail::to_bfloat(v.hi), 16))};
  }
}
TERRACE_INLINE f32x16 load_i8(const std::byte* p) noexcept {
  const __m128i in = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(in)),
          _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(in, 8)))};
}
TERRACE_INLINE void store_i8(std::byte* p, f32x16 v) noexcept {
  const __m256i pairs = _mm256_packs_epi32(detail::round_half_away(v.lo), detail::round_half_away(v.hi));
  const __m256i words = _mm256_permute4x64_epi64(pairs, 0xd8);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}
TERRACE_INLINE fp16 narrow(float x) noexcept { return {static_cast<std::uint16_t>(_cvtss_sh(x, 0))}; }

TERRACE_INLINE f32x16 add(f32x16 a, f32x16 b) noexcept {
  return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)};
}
TERRACE_INLINE f32x16 sub(f32x16 a, f32x16 b) noexcept {
  return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)};
}
TERRACE_INLINE f32x16 mul(f32x16 a, f32x16 b) noexcept {
  return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)};
}
TERRACE_INLINE f32x16 div(f32x16 a, f32x16 b) noexcept {
  return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)};
}
TERRACE_INLINE f32x16 fma(f32x16 a, f32x16 b, f32x16 c) noexcept {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
TERRACE_INLINE float fma(float a, float b, float c) noexcept { return __builtin_fmaf(a, b, c); }
TERRACE_INLINE f32x16 min(f32x16 a, f32x16 b) noexcept {
  return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)};
}
TERRACE_INLINE f32x16 max(f32x16 a, f32x16 b) noexcept {
  return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)};
}
TERRACE_INLINE f32x16 abs(f32x16 v) noexcept {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, v.lo), _mm256_andnot_ps(sign, v.hi)};
}
TERRACE_INLINE f32x16 select(mask16 mask, f32x16 a, f32x16 b) noexcept {
  return {_mm256_blendv_ps(b.lo, a.lo, detail::lanes_of(mask)),
          _mm256_blendv_ps(b.hi, a.hi, detail::lanes_of(unsigned{mask} >> 8))};
}
TERRACE_INLINE mask16 is_number(f32x16 v) noexcept {
  return detail::bits_of(_mm256_cmp_ps(v.lo, v.lo, _CMP_ORD_Q), _mm256_cmp_ps(v.hi, v.hi, _CMP_ORD_Q));
}
TERRACE_INLINE mask16 less(f32x16 a, f32x16 b) noexcept {
  return detail::bits_of(_mm256_cmp_ps(a.lo, b.lo, _CMP_LT_OQ), _mm256_cmp_ps(a.hi, b.hi, _CMP_LT_OQ));
}
TERRACE_INLINE mask16 equal(f32x16 a, f32x16 b) noexcept {
  return detail::bits_of(_mm256_cmp_ps(a.lo, b.lo, _CMP_EQ_OQ), _mm256_cmp_ps(a.hi, b.hi, _CMP_EQ_OQ));
}
TERRACE_INLINE f32x16 power_of_two(f32x16 shifted) noexcept {
  return {detail::power_of_two(shifted.lo), detail::power_of_two(shifted.hi)};
}
TERRACE_INLINE float sum(f32x16 v) noexcept {
  const __m256 eight = _mm256_add_ps(v.lo, v.hi);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
TERRACE_INLINE float largest(f32x16 v) noexcept {
  const __m256 eight = _mm256_max_ps(v.lo, v.hi);
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

TERRACE_INLINE f32x16 larger_magnitude(f32x16 a, f32x16 b) noexcept {
  const __m256i lo = _mm256_max_epi32(detail::magnitude(a.lo), detail::magnitude(b.lo));
  const __m256i hi = _mm256_max_epi32(detail::magnitude(a.hi), detail::magnitude(b.hi));
  return {_mm256_castsi256_ps(lo), _mm256_castsi256_ps(hi)};
}
TERRACE_INLINE float largest_magnitude(f32x16 a, f32x16 b) noexcept {
  const f32x16 most = larger_magnitude(a, b);
  const __m256i eight = _mm256_max_epi32(_mm256_castps_si256(most.lo), _mm256_castps_si256(most.hi));
  const __m128i four = _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  const __m128i two = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  return _mm_cvtss_f32(_mm_castsi128_ps(_mm_max_epi32(two, _mm_shuffle_epi32(two, 0xb1))));
}
TERRACE_INLINE f32x16 largest_of_each(const f32x16 (&v)[16]) noexcept {
  alignas(32) float lanes[16];
  for (int i = 0; i < 16; ++i) lanes[i] = largest_magnitude(v[i], v[i]);
  return load(lanes);
}

inline constexpr int sums_per_block = 4;
inline constexpr int most_sum_rows = 2;

/// A transpose that adds as it goes: out[i] is the sum of v[i].
TERRACE_INLINE void store_sums(const f32x16 (&v)[sums_per_block], float* out) noexcept {
  const __m256 ab = _mm256_hadd_ps(_mm256_add_ps(v[0].lo, v[0].hi), _mm256_add_ps(v[1].lo, v[1].hi));
  const __m256 cd = _mm256_hadd_ps(_mm256_add_ps(v[2].lo, v[2].hi), _mm256_add_ps(v[3].lo, v[3].hi));
  const __m256 halves = _mm256_hadd_ps(ab, cd);
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1)));
}

template <int rows>
TERRACE_INLINE void split_rows(const float* in, float* out, std::size_t stride) noexcept {
  if constexpr (rows == 1) {
    store(out, load(in));
  } else {
    static_assert(rows == 2);
    for (std::size_t i = 0; i < 4; ++i) {
      const __m256d pairs = _mm256_castps_pd(_mm256_loadu_ps(in + 8 * i));
      const __m256 by_row = _mm256_castpd_ps(_mm256_permute4x64_pd(pairs, 0xd8));
      _mm_storeu_ps(out + 4 * i, _mm256_castps256_ps128(by_row));
      _mm_storeu_ps(out + stride + 4 * i, _mm256_extractf128_ps(by_row, 1));
    }
  }
}

}  // namespace terrace::simd::avx2

#undef TERRACE_INLINE
