#pragma once
#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "terrace/core/config.hpp"
#include "terrace/core/element.hpp"

TERRACE_AVX512_BEGIN

#define TERRACE_INLINE TERRACE_TARGET_AVX512 TERRACE_ALWAYS_INLINE

// The vocabulary of core/simd.hpp in AVX-512: one register for sixteen lanes.
namespace terrace::simd::avx512 {

using mask16 = std::uint16_t;

struct f32x16 {
  __m512 v;
};

TERRACE_INLINE f32x16 splat(float x) noexcept { return {_mm512_set1_ps(x)}; }
TERRACE_INLINE f32x16 splat(fp16 x) noexcept {
  return {_mm512_cvtph_ps(_mm256_set1_epi16(static_cast<short>(x.bits)))};
}
TERRACE_INLINE f32x16 load(const float* p) noexcept { return {_mm512_loadu_ps(p)}; }
TERRACE_INLINE void store(float* p, f32x16 v) noexcept { _mm512_storeu_ps(p, v.v); }

namespace detail {
TERRACE_INLINE __m256i to_half(__m512 v) noexcept {
  return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
// Upper half of each float, rounded; a NaN keeps its upper bits and becomes quiet.
TERRACE_INLINE __m512i to_bfloat(__m512 v) noexcept {
  const __m512i bits = _mm512_castps_si512(v);
  const __m512i upper = _mm512_srli_epi32(bits, 16);
  const __m512i odd = _mm512_and_si512(upper, _mm512_set1_epi32(1));
  const __m512i rounded =
      _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
  const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  return _mm512_mask_or_epi32(rounded, nan, upper, _mm512_set1_epi32(0x40));
}
// With its exponent moved to where fp16 has it, an E4M3 reads as an fp16 of 1/256 of its value, subnormals included.
// The NaN would read as 480.
TERRACE_INLINE __m512 from_fp8(__m128i in) noexcept {
  const __m256i moved = _mm256_slli_epi16(_mm256_cvtepi8_epi16(in), 7);  // the sign twice
  const __m256i magnitude = _mm256_and_si256(moved, _mm256_set1_epi16(0x3f80));
  const __mmask16 nan = _mm256_cmpeq_epi16_mask(magnitude, _mm256_set1_epi16(0x3f80));
  const __m256i half = _mm256_and_si256(moved, _mm256_set1_epi16(static_cast<short>(0xbf80)));
  const __m256i marked = _mm256_mask_add_epi16(half, nan, half, _mm256_set1_epi16(0x4000));
  return _mm512_mul_ps(_mm512_cvtph_ps(marked), _mm512_set1_ps(256));
}
// Subnormals are multiples of 2^-9, the unit in the last place of 2^14: adding 2^14 rounds them.
TERRACE_INLINE __m128i to_fp8(__m512 v) noexcept {
  const __m512i bits = _mm512_castps_si512(v);
  const __m512i magnitude = _mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff));
  const __m512i bounded = _mm512_min_epi32(magnitude, _mm512_set1_epi32(0x43e00000));  // 448
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bounded, 20), _mm512_set1_epi32(1));
  const __m512i rounding = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7ffff - (120 << 23)));
  const __m512i normal = _mm512_srli_epi32(_mm512_add_epi32(bounded, rounding), 20);
  const __m512 sum = _mm512_add_ps(_mm512_castsi512_ps(bounded), _mm512_set1_ps(0x1p14f));
  const __m512i small = _mm512_sub_epi32(_mm512_castps_si512(sum), _mm512_set1_epi32(0x46800000));
  const __mmask16 is_small = _mm512_cmplt_epi32_mask(bounded, _mm512_set1_epi32(0x3c800000));  // 2^-6
  const __mmask16 nan = _mm512_cmpgt_epi32_mask(magnitude, _mm512_set1_epi32(0x7f800000));
  const __m512i code = _mm512_mask_blend_epi32(is_small, normal, small);
  const __m512i all = _mm512_mask_blend_epi32(nan, code, _mm512_set1_epi32(0x7f));
  const __m512i sign = _mm512_and_si512(_mm512_srli_epi32(bits, 24), _mm512_set1_epi32(0x80));
  return _mm512_cvtepi32_epi8(_mm512_or_si512(all, sign));
}
TERRACE_INLINE __m512i magnitude(__m512 v) noexcept {
  return _mm512_and_si512(_mm512_castps_si512(v), _mm512_set1_epi32(0x7fffffff));
}
struct sum_of {
  static TERRACE_INLINE __m512 two(__m512 a, __m512 b) noexcept { return _mm512_add_ps(a, b); }
};
// Compares magnitudes as integers: a NaN is larger than any number.
struct largest_of {
  static TERRACE_INLINE __m512 two(__m512 a, __m512 b) noexcept {
    return _mm512_castsi512_ps(_mm512_max_epi32(_mm512_castps_si512(a), _mm512_castps_si512(b)));
  }
};
// Folds four vectors: in each quarter, lanes 0 to 3 are the folds of that quarter's lanes of a, b, c and d.
template <class op>
TERRACE_INLINE __m512 fold_quarters(__m512 a, __m512 b, __m512 c, __m512 d) noexcept {
  const __m512 ab = op::two(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  const __m512 cd = op::two(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  return op::two(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
}
// A 16 x 16 transpose that folds as it goes: lane i is the fold of the lanes of v[i].
template <class op, class Vectors>
TERRACE_INLINE __m512 fold_each(const Vectors& v) noexcept {
  const __m512 a = fold_quarters<op>(v[0].v, v[1].v, v[2].v, v[3].v);
  const __m512 b = fold_quarters<op>(v[4].v, v[5].v, v[6].v, v[7].v);
  const __m512 c = fold_quarters<op>(v[8].v, v[9].v, v[10].v, v[11].v);
  const __m512 d = fold_quarters<op>(v[12].v, v[13].v, v[14].v, v[15].v);
  const __m512 ab = op::two(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
  const __m512 cd = op::two(_mm512_shuffle_f32x4(c, d, 0x44), _mm512_shuffle_f32x4(c, d, 0xee));
  return op::two(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
}
}  // namespace detail

template <element_type T>
TERRACE_INLINE f32x16 load_as(const std::byte* p) noexcept {
  if constexpr (std::is_same_v<T, float>) {
    return {_mm512_loadu_ps(p)};
  } else if constexpr (std::is_same_v<T, fp8_e4m3>) {
    return {detail::from_fp8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
  } else {
    const __m256i in = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    if constexpr (std::is_same_v<T, fp16>)
      return {_mm512_cvtph_ps(in)};
    else
      return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(in), 16))};
  }
}
template <element_type T>
TERRACE_INLINE void store_as(std::byte* p, f32x16 v) noexcept {
  auto* const out = reinterpret_cast<__m256i*>(p);
  if constexpr (std::is_same_v<T, float>)
    _mm512_storeu_ps(p, v.v);
  else if constexpr (std::is_same_v<T, fp16>)
    _mm256_storeu_si256(out, detail::to_half(v.v));
  else if constexpr (std::is_same_v<T, fp8_e4m3>)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), detail::to_fp8(v.v));
  else
    _mm256_storeu_si256(out, _mm512_cvtepi32_epi16(detail::to_bfloat(v.v)));
}
template <element_type T>
TERRACE_INLINE f32x16 round_as(f32x16 v) noexcept {
  if constexpr (std::is_same_v<T, float>)
    return v;
  else if constexpr (std::is_same_v<T, fp16>)
    return {_mm512_cvtph_ps(detail::to_half(v.v))};
  else if constexpr (std::is_same_v<T, fp8_e4m3>)
    return {detail::from_fp8(detail::to_fp8(v.v))};
  else
    return {_mm512_castsi512_ps(_mm512_slli_epi32(detail::to_bfloat(v.v), 16))};
}
TERRACE_INLINE f32x16 load_i8(const std::byte* p) noexcept {
  const __m128i in = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(in))};
}
// Doubled in the exponent and rounded as integers: a compiler may fuse a float addition with the caller's product,
// which would round differently.
TERRACE_INLINE void store_i8(std::byte* p, f32x16 v) noexcept {
  const __m512i doubled = _mm512_add_epi32(_mm512_castps_si512(v.v), _mm512_set1_epi32(1 << 23));
  const __m512i twice = _mm512_cvttps_epi32(_mm512_castsi512_ps(doubled));
  const __m512i bias = _mm512_add_epi32(_mm512_srai_epi32(twice, 31), _mm512_set1_epi32(1));
  const __m512i code = _mm512_srai_epi32(_mm512_add_epi32(twice, bias), 1);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(code));
}
TERRACE_INLINE fp16 narrow(float x) noexcept { return {static_cast<std::uint16_t>(_cvtss_sh(x, 0))}; }

TERRACE_INLINE f32x16 add(f32x16 a, f32x16 b) noexcept { return {_mm512_add_ps(a.v, b.v)}; }
TERRACE_INLINE f32x16 sub(f32x16 a, f32x16 b) noexcept { return {_mm512_sub_ps(a.v, b.v)}; }
TERRACE_INLINE f32x16 mul(f32x16 a, f32x16 b) noexcept { return {_mm512_mul_ps(a.v, b.v)}; }
TERRACE_INLINE f32x16 div(f32x16 a, f32x16 b) noexcept { return {_mm512_div_ps(a.v, b.v)}; }
TERRACE_INLINE f32x16 fma(f32x16 a, f32x16 b, f32x16 c) noexcept { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
TERRACE_INLINE float fma(float a, float b, float c) noexcept { return __builtin_fmaf(a, b, c); }
TERRACE_INLINE f32x16 min(f32x16 a, f32x16 b) noexcept { return {_mm512_min_ps(a.v, b.v)}; }
TERRACE_INLINE f32x16 max(f32x16 a, f32x16 b) noexcept { return {_mm512_max_ps(a.v, b.v)}; }
TERRACE_INLINE f32x16 abs(f32x16 v) noexcept { return {_mm512_abs_ps(v.v)}; }
TERRACE_INLINE f32x16 select(mask16 mask, f32x16 a, f32x16 b) noexcept {
  return {_mm512_mask_blend_ps(mask, b.v, a.v)};
}
TERRACE_INLINE mask16 is_number(f32x16 v) noexcept { return _mm512_cmp_ps_mask(v.v, v.v, _CMP_ORD_Q); }
TERRACE_INLINE mask16 less(f32x16 a, f32x16 b) noexcept { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ); }
TERRACE_INLINE mask16 equal(f32x16 a, f32x16 b) noexcept { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ); }
TERRACE_INLINE f32x16 power_of_two(f32x16 shifted) noexcept {
  const __m512i biased = _mm512_add_epi32(_mm512_castps_si512(shifted.v), _mm512_set1_epi32(127));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(biased, 23))};
}
TERRACE_INLINE float sum(f32x16 v) noexcept {
  __m512 r = _mm512_add_ps(v.v, _mm512_shuffle_f32x4(v.v, v.v, 0x4e));
  r = _mm512_add_ps(r, _mm512_shuffle_f32x4(r, r, 0xb1));
  r = _mm512_add_ps(r, _mm512_permute_ps(r, 0x4e));
  return _mm512_cvtss_f32(_mm512_add_ps(r, _mm512_permute_ps(r, 0xb1)));
}
TERRACE_INLINE float largest(f32x16 v) noexcept {
  __m512 r = _mm512_max_ps(v.v, _mm512_shuffle_f32x4(v.v, v.v, 0x4e));
  r = _mm512_max_ps(r, _mm512_shuffle_f32x4(r, r, 0xb1));
  r = _mm512_max_ps(r, _mm512_permute_ps(r, 0x4e));
  return _mm512_cvtss_f32(_mm512_max_ps(r, _mm512_permute_ps(r, 0xb1)));
}

TERRACE_INLINE f32x16 larger_magnitude(f32x16 a, f32x16 b) noexcept {
  return {_mm512_castsi512_ps(_mm512_max_epi32(detail::magnitude(a.v), detail::magnitude(b.v)))};
}
TERRACE_INLINE f32x16 largest_of_each(const f32x16 (&v)[16]) noexcept {
  return {detail::fold_each<detail::largest_of>(v)};
}
TERRACE_INLINE float largest_magnitude(f32x16 a, f32x16 b) noexcept {
  const __m512i x = _mm512_castps_si512(larger_magnitude(a, b).v);
  const __m256i eight = _mm256_max_epi32(_mm512_castsi512_si256(x), _mm512_extracti64x4_epi64(x, 1));
  const __m128i four = _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  const __m128i two = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  return _mm_cvtss_f32(_mm_castsi128_ps(_mm_max_epi32(two, _mm_shuffle_epi32(two, 0xb1))));
}

inline constexpr int sums_per_block = 16;
inline constexpr int most_sum_rows = 4;

TERRACE_INLINE void store_sums(const f32x16 (&v)[sums_per_block], float* out) noexcept {
  _mm512_storeu_ps(out, detail::fold_each<detail::sum_of>(v));
}

/// Moves quarters of vectors: 64-byte stores, which the loads that follow need not wait for.
template <int rows>
TERRACE_INLINE void split_rows(const float* in, float* out, std::size_t stride) noexcept {
  if constexpr (rows == 1) {
    store(out, load(in));
  } else if constexpr (rows == 2) {
    const __m512 a = _mm512_loadu_ps(in), b = _mm512_loadu_ps(in + 16);
    _mm512_storeu_ps(out, _mm512_shuffle_f32x4(a, b, 0x44));
    _mm512_storeu_ps(out + stride, _mm512_shuffle_f32x4(a, b, 0xee));
  } else {
    static_assert(rows == 4);
    const __m512 a = _mm512_loadu_ps(in), b = _mm512_loadu_ps(in + 16);
    const __m512 c = _mm512_loadu_ps(in + 32), d = _mm512_loadu_ps(in + 48);
    const __m512 ab_low = _mm512_shuffle_f32x4(a, b, 0x44), ab_high = _mm512_shuffle_f32x4(a, b, 0xee);
    const __m512 cd_low = _mm512_shuffle_f32x4(c, d, 0x44), cd_high = _mm512_shuffle_f32x4(c, d, 0xee);
    _mm512_storeu_ps(out, _mm512_shuffle_f32x4(ab_low, cd_low, 0x88));
    _mm512_storeu_ps(out + stride, _mm512_shuffle_f32x4(ab_low, cd_low, 0xdd));
    _mm512_storeu_ps(out + 2 * stride, _mm512_shuffle_f32x4(ab_high, cd_high, 0x88));
    _mm512_storeu_ps(out + 3 * stride, _mm512_shuffle_f32x4(ab_high, cd_high, 0xdd));
  }
}

}  // namespace terrace::simd::avx512

#undef TERRACE_INLINE
TERRACE_AVX512_END
