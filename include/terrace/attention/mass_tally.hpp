#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "terrace/attention/partial_state.hpp"

namespace terrace {

/// Works out what share of the softmax mass each block of a row of blocks drew. While blocks are folded into one
/// state in order, it notes the state's scalars after each; when all are folded, a block's share is what it added to
/// the sum of exponentials, divided by the whole sum. Exact up to the rounding of one float sum.
class mass_tally {
 public:
  /// Starts over. O(1) in steady state: allocates only beyond the largest size so far.
  void reset(std::size_t blocks, std::size_t rows) {
    rows_ = rows;
    after_.resize(blocks * rows);
  }
  bool empty() const noexcept { return after_.empty(); }

  /// Block `block` has been folded into this row of `state`. Rows may be noted by different threads at once.
  void note(std::size_t block, const partial_state& state, std::size_t row) noexcept {
    after_[block * rows_ + row] = state.scalars(row);
  }

  /// exp(lse of the block - lse of everything), the mean over the rows. `state` has all keys folded in.
  /// O(rows).
  float share(std::size_t block, const partial_state& state) const noexcept {
    float sum = 0;
    for (std::size_t row = 0; row < rows_; ++row) {
      const softmax_row whole = state.scalars(row);
      if (whole.empty()) continue;
      const float after = part(after_[block * rows_ + row], whole);
      sum += block == 0 ? after : after - part(after_[(block - 1) * rows_ + row], whole);
    }
    return sum > 0 ? sum / static_cast<float>(rows_) : 0;
  }

 private:
  static float part(softmax_row some, softmax_row whole) noexcept {
    return some.empty() ? 0 : some.l / whole.l * std::exp(some.m - whole.m);
  }

  std::vector<softmax_row> after_;  // [block][row]
  std::size_t rows_ = 0;
};

}  // namespace terrace
