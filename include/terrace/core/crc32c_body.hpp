#pragma once
// The functions of core/crc32c.hpp.
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "terrace/core/bytes.hpp"
#include "terrace/core/config.hpp"
#include "terrace/core/cpu.hpp"
#include "terrace/core/crc32c.hpp"

#if TERRACE_X86
#include <immintrin.h>
#endif

namespace terrace {

namespace detail {

// The Castagnoli polynomial, reflected (lowest power in the highest bit) like the checksums.
inline constexpr std::uint32_t crc32c_polynomial = 0x82f63b78u;

// A linear map on checksums, looked up byte by byte: [i][b] is the image of byte b at place i.
using crc32c_map = std::array<std::array<std::uint32_t, 256>, 4>;

constexpr std::uint32_t crc32c_apply(const crc32c_map& map, std::uint32_t crc) noexcept {
  return map[0][crc & 0xff] ^ map[1][(crc >> 8) & 0xff] ^ map[2][(crc >> 16) & 0xff] ^ map[3][crc >> 24];
}

// The map from a checksum to that after `bytes` more zero bytes. Built from the images of the 32 basis vectors:
// squared each time the length doubles.
constexpr crc32c_map crc32c_zeros(std::size_t bytes) noexcept {
  std::array<std::uint32_t, 32> basis{};
  for (unsigned bit = 0; bit < 32; ++bit) {
    std::uint32_t crc = std::uint32_t{1} << bit;
    for (int step = 0; step < 8; ++step) crc = (crc >> 1) ^ ((crc & 1) != 0 ? crc32c_polynomial : 0);
    basis[bit] = crc;
  }
  for (; bytes > 1; bytes /= 2) {  // a power of two
    std::array<std::uint32_t, 32> twice{};
    for (unsigned bit = 0; bit < 32; ++bit)
      for (std::uint32_t rest = basis[bit]; rest != 0; rest &= rest - 1)
        twice[bit] ^= basis[static_cast<unsigned>(std::countr_zero(rest))];
    basis = twice;
  }
  crc32c_map map{};
  for (unsigned place = 0; place < 4; ++place)
    for (unsigned b = 1; b < 256; ++b)
      map[place][b] = map[place][b & (b - 1)] ^ basis[8 * place + static_cast<unsigned>(std::countr_zero(b))];
  return map;
}

// [k][b]: what byte b becomes when k further bytes follow it.
inline constexpr std::array<std::array<std::uint32_t, 256>, 8> crc32c_tables = [] {
  std::array<std::array<std::uint32_t, 256>, 8> tables{};
  const crc32c_map one = crc32c_zeros(1);
  for (unsigned b = 0; b < 256; ++b) {
    tables[0][b] = one[0][b];
    for (unsigned k = 1; k < 8; ++k) tables[k][b] = crc32c_apply(one, tables[k - 1][b]);
  }
  return tables;
}();

#if TERRACE_X86
template <std::size_t Lane>
inline constexpr crc32c_map crc32c_lane_shift = crc32c_zeros(Lane);

// The instruction has a latency of three cycles and one can start each cycle, so three lanes of `Lane` bytes run side
// by side and are joined at their ends. Consumes all whole triples.
template <std::size_t Lane>
__attribute__((target("sse4.2"))) inline std::uint32_t crc32c_triples(std::uint32_t crc, const std::byte*& at,
                                                                      std::size_t& left) noexcept {
  for (; left >= 3 * Lane; left -= 3 * Lane, at += 3 * Lane) {
    std::uint64_t a = crc, b = 0, c = 0;
    for (std::size_t i = 0; i < Lane; i += 8) {
      std::uint64_t x, y, z;
      std::memcpy(&x, at + i, 8);
      std::memcpy(&y, at + Lane + i, 8);
      std::memcpy(&z, at + 2 * Lane + i, 8);
      a = _mm_crc32_u64(a, x);
      b = _mm_crc32_u64(b, y);
      c = _mm_crc32_u64(c, z);
    }
    crc =
        crc32c_apply(crc32c_lane_shift<Lane>, static_cast<std::uint32_t>(a)) ^ static_cast<std::uint32_t>(b);
    crc = crc32c_apply(crc32c_lane_shift<Lane>, crc) ^ static_cast<std::uint32_t>(c);
  }
  return crc;
}

__attribute__((target("sse4.2"))) inline std::uint32_t crc32c_sse42(const_bytes data,
                                                                    std::uint32_t before) noexcept {
  const std::byte* at = data.data();
  std::size_t left = data.size();
  std::uint32_t crc = crc32c_triples<1024>(~before, at, left);
  crc = crc32c_triples<64>(crc, at, left);
  std::uint64_t wide = crc;
  for (; left >= 8; left -= 8, at += 8) {
    std::uint64_t word;
    std::memcpy(&word, at, 8);
    wide = _mm_crc32_u64(wide, word);
  }
  crc = static_cast<std::uint32_t>(wide);
  for (; left != 0; --left, ++at) crc = _mm_crc32_u8(crc, std::to_integer<unsigned char>(*at));
  return ~crc;
}

// x^n modulo the polynomial, in the form that carry-less multiplication of reflected numbers needs.
constexpr long long crc32c_power(unsigned n) noexcept {
  std::uint32_t power = 0x80000000u;
  for (; n != 0; --n) power = (power >> 1) ^ ((power & 1) != 0 ? crc32c_polynomial : 0);
  return static_cast<long long>(std::uint64_t{power} << 1);
}

#define TERRACE_TARGET_VPCLMUL __attribute__((target("avx512f,avx512vl,avx512dq,vpclmulqdq,pclmul,sse4.2")))

// Moves each of the four 16-byte lanes of `sum` on by the distance of `powers`, to 16 bytes with the same remainder,
// and adds `next`: Gopal et al., "Fast CRC computation for generic polynomials using PCLMULQDQ", 2009.
TERRACE_TARGET_VPCLMUL inline __m512i crc32c_fold(__m512i sum, __m512i powers, __m512i next) noexcept {
  return _mm512_ternarylogic_epi64(_mm512_clmulepi64_epi128(sum, powers, 0x00),
                                   _mm512_clmulepi64_epi128(sum, powers, 0x11), next, 0x96);
}
// The powers that move four 16-byte lanes on by `Bytes`.
template <unsigned Bytes>
inline constexpr std::array<long long, 8> crc32c_powers = [] {
  std::array<long long, 8> powers{};
  for (unsigned i = 0; i < 8; ++i) powers[i] = crc32c_power(i % 2 == 0 ? 8 * Bytes + 32 : 8 * Bytes - 32);
  return powers;
}();

// Prefetches one page ahead: the hardware prefetcher does not cross the end of a page. A prefetch of an unmapped
// address does nothing.
inline void crc32c_read_ahead(const std::byte* at) noexcept {
  const std::uintptr_t later = reinterpret_cast<std::uintptr_t>(at) + 4096;
  for (std::uintptr_t line = later; line != later + 256; line += 64)
    _mm_prefetch(reinterpret_cast<const char*>(line), _MM_HINT_T0);
}

// Precondition: at least 256 bytes. Four registers are folded side by side, then into one, whose checksum is that of
// all the bytes folded.
TERRACE_TARGET_VPCLMUL inline std::uint32_t crc32c_vpclmul(const_bytes data, std::uint32_t before) noexcept {
  const std::byte* at = data.data();
  const std::byte* const last = at + data.size() / 256 * 256;
  const __m512i far = _mm512_loadu_si512(crc32c_powers<256>.data());
  const __m512i near = _mm512_loadu_si512(crc32c_powers<64>.data());
  const std::array<std::uint32_t, 16> start{~before};
  __m512i a = _mm512_xor_si512(_mm512_loadu_si512(at), _mm512_loadu_si512(start.data()));
  __m512i b = _mm512_loadu_si512(at + 64);
  __m512i c = _mm512_loadu_si512(at + 128);
  __m512i d = _mm512_loadu_si512(at + 192);
  for (at += 256; at != last; at += 256) {
    crc32c_read_ahead(at);
    a = crc32c_fold(a, far, _mm512_loadu_si512(at));
    b = crc32c_fold(b, far, _mm512_loadu_si512(at + 64));
    c = crc32c_fold(c, far, _mm512_loadu_si512(at + 128));
    d = crc32c_fold(d, far, _mm512_loadu_si512(at + 192));
  }
  std::array<std::uint64_t, 8> rest;
  _mm512_storeu_si512(rest.data(), crc32c_fold(crc32c_fold(crc32c_fold(a, near, b), near, c), near, d));
  std::uint64_t crc = 0;
  for (const std::uint64_t word : rest) crc = _mm_crc32_u64(crc, word);
  return crc32c_sse42({last, data.data() + data.size()}, ~static_cast<std::uint32_t>(crc));
}
#endif

}  // namespace detail

TERRACE_BODY std::uint32_t crc32c_portable(const_bytes data, std::uint32_t before) noexcept {
  const auto& tables = detail::crc32c_tables;
  const auto byte = [&](std::size_t i) { return std::to_integer<std::uint32_t>(data[i]); };
  std::uint32_t crc = ~before;
  std::size_t i = 0;
  for (; i + 8 <= data.size(); i += 8) {
    std::uint32_t next = 0;
    for (unsigned k = 0; k < 4; ++k) next ^= tables[7 - k][((crc >> (8 * k)) & 0xff) ^ byte(i + k)];
    for (unsigned k = 4; k < 8; ++k) next ^= tables[7 - k][byte(i + k)];
    crc = next;
  }
  for (; i < data.size(); ++i) crc = (crc >> 8) ^ tables[0][(crc & 0xff) ^ byte(i)];
  return ~crc;
}

TERRACE_BODY std::uint32_t crc32c(const_bytes data, std::uint32_t before) noexcept {
#if TERRACE_X86
  static const bool has_instruction = __builtin_cpu_supports("sse4.2") != 0;
  static const bool folds = best_isa() == isa::avx512 && __builtin_cpu_supports("vpclmulqdq") != 0;
  if (folds && data.size() >= 512) return detail::crc32c_vpclmul(data, before);
  if (has_instruction) return detail::crc32c_sse42(data, before);
#endif
  return crc32c_portable(data, before);
}

}  // namespace terrace
