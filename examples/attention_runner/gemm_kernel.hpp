#pragma once
#include <array>
#include <cstddef>

#include "terrace/core/config.hpp"
#include "terrace/core/cpu.hpp"
#if TERRACE_X86
#include <immintrin.h>
#endif

namespace runner {

/// Columns of a panel: packed weights lie as [panel][k][panel_columns], so that the lanes of a vector are
/// output columns. Four AVX-512 registers wide: one row alone keeps four chains of additions in flight.
inline constexpr std::size_t panel_columns = 64;
/// Rows that a kernel computes at once: with four registers each they fill 24 of AVX-512's 32.
inline constexpr std::size_t tile_rows = 6;

/// What a kernel does with its sums: write them, or add them to what is there (the residual stream).
enum class store : bool { replace, add };

/// y[r][c] (+)= sum over k of x[r][k] * panel[k][c], for a tile of rows and one panel of columns. Strides
/// count floats. Each sum begins at 0 and takes k in ascending order, so the bits of a row are the same in
/// any tile.
using gemm_tile = void (*)(const float* x, std::size_t x_stride, const float* panel, std::size_t depth,
                           float* y, std::size_t y_stride, store how);

namespace detail {

/// Without hand-written vector code: what the compiler makes of plain loops. One expression for all row counts, fused
/// only where the machine always fuses, so that no row count can round differently.
template <std::size_t Rows>
void tile_portable(const float* x, std::size_t x_stride, const float* panel, std::size_t depth, float* y,
                   std::size_t y_stride, store how) {
  for (std::size_t r = 0; r < Rows; ++r) {
    std::array<float, panel_columns> sum{};
    for (std::size_t k = 0; k < depth; ++k) {
      const float a = x[r * x_stride + k];
      const float* w = panel + k * panel_columns;
#ifdef __FP_FAST_FMAF
      for (std::size_t c = 0; c < panel_columns; ++c) sum[c] = __builtin_fmaf(a, w[c], sum[c]);
#else
      for (std::size_t c = 0; c < panel_columns; ++c) sum[c] += a * w[c];
#endif
    }
    float* out = y + r * y_stride;
    for (std::size_t c = 0; c < panel_columns; ++c) out[c] = how == store::add ? out[c] + sum[c] : sum[c];
  }
}

#if TERRACE_X86
/// Two registers of each row at a time, as AVX2 has 16: the panel is processed in four strips of 16 columns.
template <std::size_t Rows>
TERRACE_TARGET_AVX2 void tile_avx2(const float* x, std::size_t x_stride, const float* panel,
                                   std::size_t depth, float* y, std::size_t y_stride, store how) {
  for (std::size_t strip = 0; strip < panel_columns; strip += 16) {
    __m256 sum[Rows][2];
#pragma GCC unroll 6
    for (std::size_t r = 0; r < Rows; ++r) sum[r][0] = sum[r][1] = _mm256_setzero_ps();
    for (std::size_t k = 0; k < depth; ++k) {
      const float* w = panel + k * panel_columns + strip;
      const __m256 w0 = _mm256_loadu_ps(w), w1 = _mm256_loadu_ps(w + 8);
#pragma GCC unroll 6
      for (std::size_t r = 0; r < Rows; ++r) {
        const __m256 a = _mm256_set1_ps(x[r * x_stride + k]);
        sum[r][0] = _mm256_fmadd_ps(a, w0, sum[r][0]);
        sum[r][1] = _mm256_fmadd_ps(a, w1, sum[r][1]);
      }
    }
#pragma GCC unroll 6
    for (std::size_t r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
      for (std::size_t c = 0; c < 2; ++c) {
        float* out = y + r * y_stride + strip + c * 8;
        _mm256_storeu_ps(out, how == store::add ? _mm256_add_ps(_mm256_loadu_ps(out), sum[r][c]) : sum[r][c]);
      }
    }
  }
}

template <std::size_t Rows>
TERRACE_TARGET_AVX512 void tile_avx512(const float* x, std::size_t x_stride, const float* panel,
                                       std::size_t depth, float* y, std::size_t y_stride, store how) {
  __m512 sum[Rows][4];
#pragma GCC unroll 6
  for (std::size_t r = 0; r < Rows; ++r) sum[r][0] = sum[r][1] = sum[r][2] = sum[r][3] = _mm512_setzero_ps();
  for (std::size_t k = 0; k < depth; ++k) {
    const float* w = panel + k * panel_columns;
    const __m512 w0 = _mm512_loadu_ps(w), w1 = _mm512_loadu_ps(w + 16);
    const __m512 w2 = _mm512_loadu_ps(w + 32), w3 = _mm512_loadu_ps(w + 48);
#pragma GCC unroll 6
    for (std::size_t r = 0; r < Rows; ++r) {
      const __m512 a = _mm512_set1_ps(x[r * x_stride + k]);
      sum[r][0] = _mm512_fmadd_ps(a, w0, sum[r][0]);
      sum[r][1] = _mm512_fmadd_ps(a, w1, sum[r][1]);
      sum[r][2] = _mm512_fmadd_ps(a, w2, sum[r][2]);
      sum[r][3] = _mm512_fmadd_ps(a, w3, sum[r][3]);
    }
  }
#pragma GCC unroll 6
  for (std::size_t r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
    for (std::size_t c = 0; c < 4; ++c) {
      float* out = y + r * y_stride + c * 16;
      _mm512_storeu_ps(out, how == store::add ? _mm512_add_ps(_mm512_loadu_ps(out), sum[r][c]) : sum[r][c]);
    }
  }
}
#endif

}  // namespace detail

/// The kernel for `rows` rows (1 to tile_rows) on a processor that has `isa`.
inline gemm_tile tile_for(terrace::isa isa, std::size_t rows) noexcept {
  using namespace detail;
  static constexpr gemm_tile portable[] = {tile_portable<1>, tile_portable<2>, tile_portable<3>,
                                           tile_portable<4>, tile_portable<5>, tile_portable<6>};
#if TERRACE_X86
  static constexpr gemm_tile avx2[] = {tile_avx2<1>, tile_avx2<2>, tile_avx2<3>,
                                       tile_avx2<4>, tile_avx2<5>, tile_avx2<6>};
  static constexpr gemm_tile avx512[] = {tile_avx512<1>, tile_avx512<2>, tile_avx512<3>,
                                         tile_avx512<4>, tile_avx512<5>, tile_avx512<6>};
  if (isa == terrace::isa::avx512) return avx512[rows - 1];
  if (isa == terrace::isa::avx2) return avx2[rows - 1];
#endif
  static_cast<void>(isa);
  return portable[rows - 1];
}

}  // namespace runner
