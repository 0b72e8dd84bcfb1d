#pragma once
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "terrace/core/config.hpp"
#include "terrace/core/cpu.hpp"

namespace runner {

/// What stands between a model's matrix products, one row at a time. Rows are padded with zeros to whole panels of 64
/// floats, so that there is no remainder: every element goes through the same instructions wherever it stands. The
/// loops are plain, of fixed length inside, and write to a local array first, so that a compiler vectorises them
/// without having to ask whether input and output overlap (they may be the same row). They are compiled once for each
/// instruction set.
namespace detail {

inline constexpr std::size_t lanes = 16;

TERRACE_ALWAYS_INLINE void rms_norm_row(const float* x, const float* weight, std::size_t padded, float size,
                                        float eps, float* y) noexcept {
  std::array<float, lanes> sum{};
  for (std::size_t i = 0; i < padded; i += lanes)
    for (std::size_t j = 0; j < lanes; ++j) sum[j] += x[i + j] * x[i + j];
  for (std::size_t width = lanes / 2; width != 0; width /= 2)
    for (std::size_t j = 0; j < width; ++j) sum[j] += sum[j + width];
  const float scale = 1.0f / std::sqrt(sum[0] / size + eps);
  for (std::size_t i = 0; i < padded; i += lanes) {
    std::array<float, lanes> out;
    for (std::size_t j = 0; j < lanes; ++j) out[j] = x[i + j] * scale * weight[i + j];
    std::memcpy(y + i, out.data(), sizeof(out));
  }
}

/// exp(x) for |x| <= 87, and exp of the nearest such x otherwise; within 2 units in the last place. It is 2^n exp(r)
/// with |r| <= ln(2) / 2; the polynomial and the two parts of ln(2) are those of Cephes' expf.
TERRACE_ALWAYS_INLINE float exp_bounded(float x) noexcept {
  // The bound is applied to the bits, whose order is that of the magnitudes: compilers vectorise a minimum of
  // integers, but not one of floats, whose comparison may trap.
  constexpr auto bound = std::bit_cast<std::uint32_t>(87.0f);
  const auto bits = std::bit_cast<std::uint32_t>(x);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  x = std::bit_cast<float>((magnitude < bound ? magnitude : bound) | (bits & 0x80000000u));
  // 1.5 * 2^23: adding it rounds to a whole number, which then stands in the low bits.
  constexpr float rounder = 12582912.0f;
  const float shifted = x * 1.44269504f + rounder;
  const float n = shifted - rounder;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const std::uint32_t exponent = std::bit_cast<std::uint32_t>(shifted) << 23;
  return std::bit_cast<float>(std::bit_cast<std::uint32_t>(p) + exponent);
}

TERRACE_ALWAYS_INLINE void swiglu_row(const float* gate, const float* up, std::size_t padded,
                                      float* y) noexcept {
  for (std::size_t i = 0; i < padded; i += lanes) {
    std::array<float, lanes> out;
    for (std::size_t j = 0; j < lanes; ++j)
      out[j] = gate[i + j] / (1.0f + exp_bounded(-gate[i + j])) * up[i + j];
    std::memcpy(y + i, out.data(), sizeof(out));
  }
}

TERRACE_TARGET_AVX512 inline void rms_norm_avx512(const float* x, const float* weight, std::size_t padded,
                                                  float size, float eps, float* y) noexcept {
  rms_norm_row(x, weight, padded, size, eps, y);
}
TERRACE_TARGET_AVX2 inline void rms_norm_avx2(const float* x, const float* weight, std::size_t padded,
                                              float size, float eps, float* y) noexcept {
  rms_norm_row(x, weight, padded, size, eps, y);
}
TERRACE_TARGET_AVX512 inline void swiglu_avx512(const float* gate, const float* up, std::size_t padded,
                                                float* y) noexcept {
  swiglu_row(gate, up, padded, y);
}
TERRACE_TARGET_AVX2 inline void swiglu_avx2(const float* gate, const float* up, std::size_t padded,
                                            float* y) noexcept {
  swiglu_row(gate, up, padded, y);
}

}  // namespace detail

/// y = x / sqrt(mean(x^2) + eps) * weight, over `size` elements in rows of `padded` (a multiple of 16)
/// floats.
inline void rms_norm(const float* x, const float* weight, std::size_t padded, std::size_t size, double eps,
                     float* y, terrace::isa isa = terrace::best_isa()) noexcept {
  const auto n = static_cast<float>(size);
  const auto e = static_cast<float>(eps);
  if (isa == terrace::isa::avx512)
    detail::rms_norm_avx512(x, weight, padded, n, e, y);
  else if (isa == terrace::isa::avx2)
    detail::rms_norm_avx2(x, weight, padded, n, e, y);
  else
    detail::rms_norm_row(x, weight, padded, n, e, y);
}

/// y = silu(gate) * up with silu(g) = g / (1 + exp(-g)), over `padded` (a multiple of 16) floats; 0 where
/// both are.
inline void swiglu(const float* gate, const float* up, std::size_t padded, float* y,
                   terrace::isa isa = terrace::best_isa()) noexcept {
  if (isa == terrace::isa::avx512)
    detail::swiglu_avx512(gate, up, padded, y);
  else if (isa == terrace::isa::avx2)
    detail::swiglu_avx2(gate, up, padded, y);
  else
    detail::swiglu_row(gate, up, padded, y);
}

}  // namespace runner
