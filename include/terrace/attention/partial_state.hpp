#pragma once
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "terrace/attention/float_buffer.hpp"
#include "terrace/attention/softmax_row.hpp"
#include "terrace/core/bytes.hpp"
#include "terrace/core/config.hpp"
#include "terrace/core/convert.hpp"
#include "terrace/core/element.hpp"
#include "terrace/core/error.hpp"

namespace terrace {

/// Unfinished attention: for each row (one query of one query head) the softmax_row and the unnormalised sum of
/// exp(logit - m) * value, `dim` floats. Storage is kept from one use to the next.
///
/// Distinct rows may be written by different threads at the same time.
class partial_state {
 public:
  /// Makes `rows` empty rows of `dim` values. O(rows * dim). Allocates only beyond the largest size so far.
  /// Errors: out_of_memory, and then the state is as it was.
  result<void> reset(std::size_t rows, std::uint32_t dim) noexcept {
    const auto values = checked_product(rows, std::size_t{dim} + 2);
    if (!values) return fail(errc::out_of_memory, "an attention state of that size cannot be addressed");
    if (auto room = buffer_.require(*values); !room) return room;
    rows_ = rows;
    dim_ = dim;
    clear();
    return {};
  }
  /// Makes every row empty again.
  void clear() noexcept {
    std::fill_n(o_base(), rows_ * dim_, 0.0f);
    std::fill_n(m_base(), rows_, softmax_row{}.m);
    std::fill_n(l_base(), rows_, softmax_row{}.l);
  }

  std::size_t rows() const noexcept { return rows_; }
  std::uint32_t dim() const noexcept { return dim_; }

  float& m(std::size_t row) noexcept { return m_base()[row]; }
  float m(std::size_t row) const noexcept { return m_base()[row]; }
  float& l(std::size_t row) noexcept { return l_base()[row]; }
  float l(std::size_t row) const noexcept { return l_base()[row]; }
  softmax_row scalars(std::size_t row) const noexcept { return {m(row), l(row)}; }
  /// The unnormalised output of a row, `dim` floats; rows follow one another without a gap.
  std::span<float> o(std::size_t row) noexcept { return {o_base() + row * dim_, dim_}; }
  std::span<const float> o(std::size_t row) const noexcept { return {o_base() + row * dim_, dim_}; }

  /// Merges each row with the same row of `later`, which covers other keys. Precondition: equal rows and dim.
  void merge(const partial_state& later) noexcept {
    TERRACE_ASSERT(rows_ == later.rows_ && dim_ == later.dim_,
                   "only attention states of one shape can be merged");
    for (std::size_t row = 0; row < rows_; ++row) merge_row(row, later.scalars(row), later.o(row));
  }
  /// Merges one row with one that came from elsewhere, such as a device. Precondition: `later_o` has dim()
  /// values.
  void merge_row(std::size_t row, softmax_row later, std::span<const float> later_o) noexcept {
    const merged_row w = terrace::merge(scalars(row), later);
    const std::span<float> out = o(row);
    for (std::size_t i = 0; i < out.size(); ++i) out[i] = merge_output(w, out[i], later_o[i]);
    m(row) = w.row.m;
    l(row) = w.row.l;
  }

  /// Writes o / l of every row, [row][dim]; zeros for an empty row. Precondition: `out` holds rows() * dim()
  /// values.
  template <element_type T>
  void finish(std::span<T> out) const noexcept {
    TERRACE_ASSERT(out.size() == rows_ * dim_, "the result of attention needs rows * dim values");
    for (std::size_t row = 0; row < rows_; ++row) finish_row(row, out.subspan(row * dim_, dim_));
  }
  /// Writes o / l of one row. Precondition: `out` holds dim() values.
  template <element_type T>
  void finish_row(std::size_t row, std::span<T> out) const noexcept {
    const softmax_row scalar = scalars(row);
    const std::span<const float> in = o(row);
    std::array<float, 64> piece;
    for (std::size_t at = 0; at < in.size(); at += piece.size()) {
      const std::size_t count = std::min(piece.size(), in.size() - at);
      for (std::size_t i = 0; i < count; ++i) piece[i] = terrace::finish(scalar, in[at + i]);
      convert(std::span<const float>(piece).first(count), out.subspan(at, count));
    }
  }

 private:
  float* o_base() noexcept { return buffer_.data(); }
  const float* o_base() const noexcept { return buffer_.data(); }
  float* m_base() noexcept { return o_base() + rows_ * dim_; }
  const float* m_base() const noexcept { return o_base() + rows_ * dim_; }
  float* l_base() noexcept { return m_base() + rows_; }
  const float* l_base() const noexcept { return m_base() + rows_; }

  float_buffer buffer_;
  std::size_t rows_ = 0;
  std::uint32_t dim_ = 0;
};

/// log-sum-exp of one row; -infinity where no key was seen.
inline float row_lse(const partial_state& state, std::size_t row) noexcept { return lse(state.scalars(row)); }

}  // namespace terrace
