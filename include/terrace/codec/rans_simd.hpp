#pragma once
// Reading from a range coder (codec/rans.hpp), for each instruction set:
//
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

// g++ 12 warns of the deliberately undefined operands inside its own intrinsics.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#define TERRACE_INLINE TERRACE_TARGET_AVX512 TERRACE_ALWAYS_INLINE
namespace avx512 {

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
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif

#endif

}  // namespace terrace::simd
