#pragma once
#include <algorithm>
#include <cstddef>
#include <span>

#include "aligned_vector.hpp"
#include "gemm_kernel.hpp"
#include "parallel_for.hpp"
#include "terrace/core/bytes.hpp"
#include "terrace/core/config.hpp"
#include "terrace/core/cpu.hpp"

namespace runner {

/// The weights of a linear layer, y = W x with W as [columns][depth], packed once for the kernels: panels of 64
/// columns, [panel][k][64]. Columns of the last panel beyond those of W are 0, and so are their outputs.
class packed_matrix {
 public:
  packed_matrix() = default;
  packed_matrix(std::size_t columns, std::size_t depth)
      : depth_(depth), columns_(terrace::align_up(columns, panel_columns)), panels_(columns_ * depth) {}

  std::size_t depth() const noexcept { return depth_; }
  /// Rounded up to whole panels: the floats that a row of outputs needs.
  std::size_t columns() const noexcept { return columns_; }
  const float* panel(std::size_t index) const noexcept {
    return panels_.data() + index * panel_columns * depth_;
  }

  /// Sets the weights of output column `column`, W[column][0 .. depth).
  void set_column(std::size_t column, std::span<const float> weights) noexcept {
    TERRACE_ASSERT(column < columns_ && weights.size() == depth_,
                   "a column of weights does not fit its matrix");
    float* out = panels_.data() + first_of(column);
    for (std::size_t k = 0; k < depth_; ++k) out[k * panel_columns] = weights[k];
  }
  /// The inverse: an embedding is a column of the tied output layer.
  void get_column(std::size_t column, std::span<float> weights) const noexcept {
    TERRACE_ASSERT(column < columns_ && weights.size() >= depth_,
                   "a column of weights does not fit its place");
    const float* in = panels_.data() + first_of(column);
    for (std::size_t k = 0; k < depth_; ++k) weights[k] = in[k * panel_columns];
  }

 private:
  std::size_t first_of(std::size_t column) const noexcept {
    return column / panel_columns * panel_columns * depth_ + column % panel_columns;
  }

  std::size_t depth_ = 0;
  std::size_t columns_ = 0;
  aligned_vector<float> panels_;
};

/// Rows of floats, `stride` apart.
template <class T>
struct rows_of {
  T* data = nullptr;
  std::size_t stride = 0;
  T* operator[](std::size_t row) const noexcept { return data + row * stride; }
};

/// y[r][c] (+)= sum over k of x[r][k] * w[c][k], for `rows` rows, each of w.depth() floats of x and
/// w.columns() of y. Each sum takes k in ascending order, starting from 0, in one accumulator: the bits of a
/// row of y depend neither on the other rows of the call nor on how the work is split. 2 * rows * depth *
/// columns operations.
inline void gemm(rows_of<const float> x, std::size_t rows, const packed_matrix& w, rows_of<float> y,
                 store how, const parallel_for& parallel, terrace::isa isa = terrace::best_isa()) {
  // A piece of work is 48 rows by 4 panels: its weights stay in the second-level cache while its rows pass,
  // and there are enough pieces to share. What takes less than some 10 us is not worth waking another thread
  // for.
  constexpr std::size_t piece_rows = 8 * tile_rows;
  constexpr std::size_t piece_panels = 4;
  constexpr std::size_t smallest_shared = 1 << 20;

  const std::size_t panels = w.columns() / panel_columns;
  const std::size_t across = (panels + piece_panels - 1) / piece_panels;
  const std::size_t down = (rows + piece_rows - 1) / piece_rows;
  const auto piece = [&](std::size_t index) {
    const std::size_t first_row = index / across * piece_rows, first_panel = index % across * piece_panels;
    const std::size_t last_row = std::min(rows, first_row + piece_rows);
    const std::size_t last_panel = std::min(panels, first_panel + piece_panels);
    for (std::size_t p = first_panel; p < last_panel; ++p) {
      for (std::size_t r = first_row; r < last_row; r += tile_rows) {
        const gemm_tile tile = tile_for(isa, std::min(tile_rows, last_row - r));
        tile(x[r], x.stride, w.panel(p), w.depth(), y[r] + p * panel_columns, y.stride, how);
      }
    }
  };
  const bool share = rows * w.depth() * w.columns() >= smallest_shared;
  if (share)
    parallel(across * down, std::cref(piece));
  else
    serial_for(across * down, std::cref(piece));
}

}  // namespace runner
