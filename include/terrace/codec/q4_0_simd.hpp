#pragma once
// The operations that q4_0 needs beyond the vocabulary of core/simd.hpp, for each instruction set:
//
//   q4_values                32 values: those of the low nibbles, and of the high ones
//   load_q4<T>(bytes, scale) from 16 bytes: (code - 8) * scale, rounded to T
//   store_q4(bytes, a, b)    rounds a / 2^26 + 8.5 down to codes 0 to 15, to 16 bytes: a to the low nibbles.
//                            Precondition: |a / 2^26| and |b / 2^26| are less than 8.4
//
// ggml adds 8.5 to a float and cuts off the fraction. That sum rounds: a value that lies at most half a unit in the
// last place below a whole number counts as that number. A compiler may fuse the sum with the caller's product, which
// would round differently. So, except in AVX-512, the sum is done in integers. Values come as multiples of 2^-26,
// exact wherever a code begins; half a unit in the last place is 32 of them for sums of 8 and more, and 16 for sums
// of 4 to 8. Smaller sums are exact in floats, and 16 changes none of them.

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "terrace/core/config.hpp"
#include "terrace/core/element.hpp"
#include "terrace/core/simd.hpp"

namespace terrace::simd {

inline constexpr int q4_bias = 0x22000000 + 16;  // 8.5 * 2^26, and the half unit of sums below 8

namespace portable {
struct q4_values {
  f32x16 low, high;
};
template <element_type T>
TERRACE_ALWAYS_INLINE q4_values load_q4(const std::byte* p, fp16 scale) noexcept {
  q4_values r;
  for (int i = 0; i < 16; ++i) {
    r.low.lane[i] = static_cast<float>(static_cast<int>(p[i] & std::byte{15}) - 8);
    r.high.lane[i] = static_cast<float>(static_cast<int>(p[i] >> 4) - 8);
  }
  const f32x16 factor = splat(scale);
  return {round_as<T>(mul(factor, r.low)), round_as<T>(mul(factor, r.high))};
}
namespace detail {
TERRACE_ALWAYS_INLINE int q4_code(float x) noexcept {
  const int sum = static_cast<int>(x) + q4_bias;
  return std::min((sum + ((sum >> 25) & 16)) >> 26, 15);
}
}  // namespace detail
TERRACE_ALWAYS_INLINE void store_q4(std::byte* p, const f32x16& a, const f32x16& b) noexcept {
  for (int i = 0; i < 16; ++i)
    p[i] = static_cast<std::byte>(detail::q4_code(a.lane[i]) | detail::q4_code(b.lane[i]) << 4);
}
}  // namespace portable

#if TERRACE_X86
#define TERRACE_INLINE TERRACE_TARGET_AVX2 TERRACE_ALWAYS_INLINE
namespace avx2 {
struct q4_values {
  f32x16 low, high;
};
namespace detail {
TERRACE_INLINE f32x16 widen_i8(__m128i v) noexcept {
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(v)),
          _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(v, 8)))};
}
TERRACE_INLINE __m256i q4_code(__m256 x) noexcept {
  const __m256i sum = _mm256_add_epi32(_mm256_cvttps_epi32(x), _mm256_set1_epi32(q4_bias));
  const __m256i more = _mm256_and_si256(_mm256_srli_epi32(sum, 25), _mm256_set1_epi32(16));
  const __m256i code = _mm256_srli_epi32(_mm256_add_epi32(sum, more), 26);
  return _mm256_min_epi32(code, _mm256_set1_epi32(15));
}
TERRACE_INLINE __m256i q4_pair(__m256 a, __m256 b) noexcept {
  return _mm256_or_si256(q4_code(a), _mm256_slli_epi32(q4_code(b), 4));
}
}  // namespace detail
template <element_type T>
TERRACE_INLINE q4_values load_q4(const std::byte* p, fp16 scale) noexcept {
  const __m128i in = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  const __m128i nibble = _mm_set1_epi8(15), eight = _mm_set1_epi8(8);
  const __m128i low = _mm_and_si128(in, nibble), high = _mm_and_si128(_mm_srli_epi16(in, 4), nibble);
  const f32x16 factor = splat(scale);
  return {round_as<T>(mul(factor, detail::widen_i8(_mm_sub_epi8(low, eight)))),
          round_as<T>(mul(factor, detail::widen_i8(_mm_sub_epi8(high, eight))))};
}
TERRACE_INLINE void store_q4(std::byte* p, f32x16 a, f32x16 b) noexcept {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   detail::pack8(detail::q4_pair(a.lo, b.lo), detail::q4_pair(a.hi, b.hi)));
}
}  // namespace avx2
#undef TERRACE_INLINE

TERRACE_AVX512_BEGIN
#define TERRACE_INLINE TERRACE_TARGET_AVX512 TERRACE_ALWAYS_INLINE
namespace avx512 {
struct q4_values {
  f32x16 low, high;
};
namespace detail {
// An addition that states its rounding in the instruction is never fused.
TERRACE_INLINE __m512i q4_code(__m512 x) noexcept {
  const __m512 sum =
      _mm512_add_round_ps(x, _mm512_set1_ps(8.5f * 0x1p26f), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  return _mm512_min_epi32(_mm512_srli_epi32(_mm512_cvttps_epi32(sum), 26), _mm512_set1_epi32(15));
}
}  // namespace detail
// There are only 16 values: they are computed once and looked up. A permutation looks only at the low four bits of
// each lane, so a code needs no masking.
template <element_type T>
TERRACE_INLINE q4_values load_q4(const std::byte* p, fp16 scale) noexcept {
  const f32x16 codes{_mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7)};
  const f32x16 values = round_as<T>(mul(splat(scale), codes));
  const __m512i in = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return {{_mm512_permutexvar_ps(in, values.v)}, {_mm512_permutexvar_ps(_mm512_srli_epi32(in, 4), values.v)}};
}
TERRACE_INLINE void store_q4(std::byte* p, f32x16 a, f32x16 b) noexcept {
  const __m512i pairs = _mm512_or_si512(detail::q4_code(a.v), _mm512_slli_epi32(detail::q4_code(b.v), 4));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(pairs));
}
}  // namespace avx512
#undef TERRACE_INLINE
TERRACE_AVX512_END
#endif

}  // namespace terrace::simd
