#pragma once
#include <cstddef>
#include <cstdint>

#include "terrace/attention/softmax_row.hpp"
#include "terrace/core/element.hpp"
#include "terrace/core/error.hpp"
#include "terrace/cuda/attention.hpp"
#include "terrace/cuda/launch.hpp"

namespace terrace::cuda {

/// Rows of unfinished attention, one state each, as attention/partial_state.hpp defines them: scalars, and `dim`
/// floats of unnormalised output, rows next to one another.
struct row_states {
  softmax_row* rows = nullptr;
  float* o = nullptr;
};

/// What the merge makes of the finished rows. Each member may be null.
template <element_type T>
struct finished_rows {
  T* o = nullptr;        ///< [row][dim], o / l; zeros where no key was seen
  float* lse = nullptr;  ///< [row], log of the sum of exp(logit); -infinity where no key was seen
};

/// Merges the splits of each row, in their order, after what `state` already holds, and writes `state` or `out` or
/// both:
///
///     merge(splits, rows, dim, state, {}, stream)              // a window more
///     merge(splits, rows, dim, state, {.o = o}, stream)        // the last window
///     merge(splits, rows, dim, {}, {.o = o, .lse = lse}, stream)
///
/// `state` holds what comes before; with `fresh` it is only written. Windows, tiers and devices are merged by calls
/// in the order of the sequence. The order of the sums is that of the splits: the same inputs give the same bits.
/// Empty splits change nothing, and their output is not read. Formulas: `merge`, `merge_output`, `finish` and `lse`
/// of attention/softmax_row.hpp.
///
/// Enqueues and returns. Errors: those of `launch`. O(rows * splits * dim). Defined in cuda/merge.cuh; some .cu of
/// the program instantiates it.
template <element_type T>
result<void> merge(const split_states& splits, std::uint32_t rows, std::uint32_t dim, const row_states& state,
                   const finished_rows<T>& out, stream_handle stream, bool fresh = false) noexcept;

}  // namespace terrace::cuda
