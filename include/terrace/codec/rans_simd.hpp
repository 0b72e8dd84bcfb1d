#pragma once
// Writing to and reading from a range coder (codec/rans.hpp), for each instruction set:
//
//   put(writer, numbers, distributions)  sixteen numbers, each by the distribution that its lane says. Precondition:
//                           each takes its number
//   i32x16                  sixteen whole numbers
//   rans_lanes              the states of sixteen lanes, in registers where there are such
//   load_lanes(reader), store_lanes(reader, lanes)
//   next(lanes, reader, bases)   sixteen numbers; bases[lane] is 2048 times the lane's distribution. Where the stream
//                           is too short, zeros stand for what is missing, and reader.at is beyond reader.size
//   add(i, j), store(p, i), load_i32(p), to_f32(i)

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "terrace/codec/rans.hpp"
#include "terrace/core/config.hpp"
#include "terrace/core/simd.hpp"

namespace terrace::simd {

namespace portable {

inline void put(rans_writer& to, const std::int16_t* numbers, const std::uint8_t* distributions) noexcept {
  const auto& intervals = rans::table().of;
  // Copies: as far as the compiler knows, the stores could overwrite the writer itself.
  std::byte* at = to.at;
  std::array<std::uint32_t, rans::lanes> states = to.states;
  for (std::size_t lane = rans::lanes; lane-- != 0;) {
    const rans::interval i =
        intervals[distributions[lane]][static_cast<std::size_t>(numbers[lane] + rans::most)];
    std::uint32_t x = states[lane];
    // Without a branch, which would be unpredictable.
    const auto low = static_cast<std::uint16_t>(x);
    const bool full = (x >> (32 - rans::precision)) >= i.frequency;
    std::memcpy(at - 2, &low, 2);
    at -= full ? 2 : 0;
    x = full ? x >> 16 : x;
    states[lane] = (x / i.frequency << rans::precision) + x % i.frequency + i.start;
  }
  to.at = at;
  to.states = states;
}

struct i32x16 {
  std::int32_t lane[16];
};
struct rans_lanes {
  std::uint32_t x[16];
};
inline rans_lanes load_lanes(const rans_reader& r) noexcept {
  rans_lanes l;
  std::memcpy(l.x, r.states.data(), sizeof l.x);
  return l;
}
inline void store_lanes(rans_reader& r, const rans_lanes& l) noexcept {
  std::memcpy(r.states.data(), l.x, sizeof l.x);
}
inline i32x16 next(rans_lanes& l, rans_reader& r, const std::uint32_t* table,
                   const std::int32_t* bases) noexcept {
  i32x16 numbers;
  for (int i = 0; i < 16; ++i) {
    std::uint32_t x = l.x[i];
    const std::uint32_t entry = table[static_cast<std::uint32_t>(bases[i]) + (x & (rans::slots - 1))];
    numbers.lane[i] = static_cast<std::int32_t>(entry >> 22) - 256;
    x = ((entry >> 11 & 0x7ff) + 1) * (x >> rans::precision) + (entry & 0x7ff);
    if (x < rans::lowest_state) {
      std::uint16_t low = 0;
      if (r.at + 2 <= r.size) std::memcpy(&low, r.stream + r.at, 2);
      x = x << 16 | low;
      r.at += 2;
    }
    l.x[i] = x;
  }
  return numbers;
}
inline i32x16 add(const i32x16& a, const i32x16& b) noexcept {
  i32x16 sum;
  for (int i = 0; i < 16; ++i) sum.lane[i] = a.lane[i] + b.lane[i];
  return sum;
}
inline i32x16 load_i32(const std::int32_t* p) noexcept {
  i32x16 v;
  std::memcpy(v.lane, p, sizeof v.lane);
  return v;
}
inline void store(std::int32_t* p, const i32x16& v) noexcept { std::memcpy(p, v.lane, sizeof v.lane); }
inline f32x16 to_f32(const i32x16& v) noexcept {
  f32x16 f;
  for (int i = 0; i < 16; ++i) f.lane[i] = static_cast<float>(v.lane[i]);
  return f;
}

}  // namespace portable

#if TERRACE_X86

namespace avx2 {

struct i32x16 : portable::i32x16 {};
struct rans_lanes : portable::rans_lanes {};
inline rans_lanes load_lanes(const rans_reader& r) noexcept { return {portable::load_lanes(r)}; }
using portable::put;
using portable::store;
using portable::store_lanes;
inline i32x16 next(rans_lanes& l, rans_reader& r, const std::uint32_t* table,
                   const std::int32_t* bases) noexcept {
  return {portable::next(l, r, table, bases)};
}
inline i32x16 add(const i32x16& a, const i32x16& b) noexcept { return {portable::add(a, b)}; }
inline i32x16 load_i32(const std::int32_t* p) noexcept { return {portable::load_i32(p)}; }
TERRACE_TARGET_AVX2 TERRACE_ALWAYS_INLINE f32x16 to_f32(const i32x16& v) noexcept {
  float f[16];
  for (int i = 0; i < 16; ++i) f[i] = static_cast<float>(v.lane[i]);
  return load(f);
}

}  // namespace avx2

TERRACE_AVX512_BEGIN
#define TERRACE_INLINE TERRACE_TARGET_AVX512 TERRACE_ALWAYS_INLINE
namespace avx512 {

namespace detail {
// x / f, rounded down: with 32 and 11 bits the quotient of doubles is on the right side of every whole number.
TERRACE_INLINE __m256i quotient(__m256i x, __m256i f) noexcept {
  return _mm512_cvttpd_epu32(_mm512_div_pd(_mm512_cvtepu32_pd(x), _mm512_cvtepu32_pd(f)));
}
}  // namespace detail

TERRACE_INLINE void put(rans_writer& to, const std::int16_t* numbers,
                        const std::uint8_t* distributions) noexcept {
  constexpr int width = 2 * rans::most + 1;
  static_assert(sizeof(rans::interval) == 4 && sizeof(rans::table().of[0]) == 4 * width);
  const __m512i number = _mm512_cvtepi16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(numbers)));
  const __m512i which =
      _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(distributions)));
  const __m512i where = _mm512_add_epi32(_mm512_mullo_epi32(which, _mm512_set1_epi32(width)),
                                         _mm512_add_epi32(number, _mm512_set1_epi32(rans::most)));
  const __m512i interval = _mm512_i32gather_epi32(where, rans::table().of.data(), 4);
  const __m512i frequency = _mm512_srli_epi32(interval, 16);
  const __m512i start = _mm512_and_si512(interval, _mm512_set1_epi32(0xffff));
  __m512i x = _mm512_loadu_si512(to.states.data());
  // As if the last lane's bits were written first: in memory all bits are in the order of their lanes.
  const __mmask16 full = _mm512_cmpge_epu32_mask(_mm512_srli_epi32(x, 32 - rans::precision), frequency);
  const auto count = static_cast<unsigned>(std::popcount(static_cast<unsigned>(full)));
  const __m256i low = _mm512_cvtepi32_epi16(_mm512_maskz_compress_epi32(full, x));
  to.at -= 2 * count;
  _mm256_mask_storeu_epi16(to.at, static_cast<__mmask16>((1u << count) - 1), low);
  x = _mm512_mask_srli_epi32(x, full, x, 16);
  const __m256i q0 = detail::quotient(_mm512_castsi512_si256(x), _mm512_castsi512_si256(frequency));
  const __m256i q1 =
      detail::quotient(_mm512_extracti64x4_epi64(x, 1), _mm512_extracti64x4_epi64(frequency, 1));
  const __m512i q = _mm512_inserti64x4(_mm512_castsi256_si512(q0), q1, 1);
  const __m512i rest = _mm512_sub_epi32(x, _mm512_mullo_epi32(q, frequency));
  x = _mm512_add_epi32(_mm512_slli_epi32(q, rans::precision), _mm512_add_epi32(rest, start));
  _mm512_storeu_si512(to.states.data(), x);
}

struct i32x16 {
  __m512i v;
};
struct rans_lanes {
  __m512i x;
};
TERRACE_INLINE rans_lanes load_lanes(const rans_reader& r) noexcept {
  return {_mm512_loadu_si512(r.states.data())};
}
TERRACE_INLINE void store_lanes(rans_reader& r, rans_lanes l) noexcept {
  _mm512_storeu_si512(r.states.data(), l.x);
}
TERRACE_INLINE i32x16 next(rans_lanes& l, rans_reader& r, const std::uint32_t* table,
                           const std::int32_t* bases) noexcept {
  const __m512i eleven = _mm512_set1_epi32(0x7ff);
  const __m512i where = _mm512_add_epi32(_mm512_loadu_si512(bases), _mm512_and_si512(l.x, eleven));
  const __m512i entry = _mm512_i32gather_epi32(where, table, 4);
  const __m512i number = _mm512_sub_epi32(_mm512_srli_epi32(entry, 22), _mm512_set1_epi32(256));
  const __m512i frequency =
      _mm512_add_epi32(_mm512_and_si512(_mm512_srli_epi32(entry, 11), eleven), _mm512_set1_epi32(1));
  const __m512i x = _mm512_add_epi32(_mm512_mullo_epi32(frequency, _mm512_srli_epi32(l.x, rans::precision)),
                                     _mm512_and_si512(entry, eleven));
  const __mmask16 low = _mm512_cmplt_epu32_mask(x, _mm512_set1_epi32(rans::lowest_state));
  __m256i stream;
  if (r.at + 32 <= r.size) [[likely]] {
    stream = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(r.stream + r.at));
  } else {  // the last of it
    alignas(32) std::byte rest[32]{};
    if (r.at < r.size) std::memcpy(rest, r.stream + r.at, r.size - r.at);
    stream = _mm256_load_si256(reinterpret_cast<const __m256i*>(rest));
  }
  const __m512i more = _mm512_maskz_expand_epi32(low, _mm512_cvtepu16_epi32(stream));
  l.x = _mm512_mask_or_epi32(x, low, _mm512_slli_epi32(x, 16), more);
  r.at += 2 * static_cast<std::size_t>(std::popcount(static_cast<unsigned>(low)));
  return {number};
}
TERRACE_INLINE i32x16 add(i32x16 a, i32x16 b) noexcept { return {_mm512_add_epi32(a.v, b.v)}; }
TERRACE_INLINE i32x16 load_i32(const std::int32_t* p) noexcept { return {_mm512_loadu_si512(p)}; }
TERRACE_INLINE void store(std::int32_t* p, i32x16 v) noexcept { _mm512_storeu_si512(p, v.v); }
TERRACE_INLINE f32x16 to_f32(i32x16 v) noexcept { return {_mm512_cvtepi32_ps(v.v)}; }

}  // namespace avx512
#undef TERRACE_INLINE
TERRACE_AVX512_END

#endif

}  // namespace terrace::simd
