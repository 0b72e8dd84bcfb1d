#pragma once
#include <cstddef>
#include <cstdint>

#include "terrace/core/config.hpp"
#include "terrace/cuda/block_context.hpp"
#include "terrace/cuda/launch.hpp"
#include "terrace/cuda/merge.hpp"

namespace terrace::cuda {

/// The kernel of `merge`: a block of threads merges one row, a thread every 128th element of its output. Each thread
/// works out the weights itself: there are few splits, and no barrier is needed.
template <element_type T>
struct merge_kernel {
  static constexpr std::uint32_t threads = 128;

  split_states splits;
  std::uint32_t dim;
  row_states state;
  finished_rows<T> out;
  bool fresh;

  template <class Block>
  TERRACE_DEVICE void operator()(Block& block) const {
    const std::size_t row = block.index().x;
    const softmax_row before = state.rows != nullptr && !fresh ? state.rows[row] : softmax_row{};
    softmax_row whole = before;
    for (std::uint32_t d = block.thread(); d < dim; d += threads) {
      whole = before;
      float o = before.empty() ? 0.0f : state.o[row * dim + d];
      for (std::uint32_t s = 0; s < splits.splits; ++s) {
        const std::size_t at = row * splits.splits + s;
        const softmax_row next = splits.rows[at];
        if (next.empty()) continue;  // its output may be anything
        const merged_row both = terrace::merge(whole, next);
        o = merge_output(both, o, splits.o[at * dim + d]);
        whole = both.row;
      }
      if (state.o != nullptr) state.o[row * dim + d] = o;
      if (out.o != nullptr) out.o[row * dim + d] = from_float<T>(finish(whole, o));
    }
    if (state.rows != nullptr) block.sync();  // every thread has read the old row
    if (block.thread() != 0) return;
    if (state.rows != nullptr) state.rows[row] = whole;
    if (out.lse != nullptr) out.lse[row] = lse(whole);
  }
};

template <element_type T>
result<void> merge(const split_states& splits, std::uint32_t rows, std::uint32_t dim, const row_states& state,
                   const finished_rows<T>& out, stream_handle stream, bool fresh) noexcept {
  if (dim == 0) return fail(errc::invalid_argument, "states that are merged have at least one element");
  return launch(merge_kernel<T>{splits, dim, state, out, fresh}, {.x = rows}, stream);
}

}  // namespace terrace::cuda
