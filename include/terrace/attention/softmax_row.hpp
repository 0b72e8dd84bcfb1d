#pragma once
#include <cmath>
#include <limits>

#include "terrace/core/config.hpp"

namespace terrace {

/// The logit of a key that is not there, and the log-sum-exp of no keys.
inline constexpr float no_logit = -std::numeric_limits<float>::infinity();

/// The scalars of one row of online softmax over the keys seen so far: the largest logit, and the sum of
/// exp(logit - largest). Source: FlashAttention-2, section 3.1; FlashInfer's `state_t`.
struct softmax_row {
  float m = no_logit;
  float l = 0;

  /// No key was seen. Merging such a row into another changes nothing.
  TERRACE_HD constexpr bool empty() const noexcept { return l == 0; }
};

/// The merge of two rows, and the weights of their unnormalised outputs: o = o_a * weight_a + o_b * weight_b.
struct merged_row {
  softmax_row row;
  float weight_a = 1;
  float weight_b = 0;
};

/// m = max(m_a, m_b), weight = exp(own m - m), l = l_a * weight_a + l_b * weight_b. An empty row has weight
/// 0, and leaves the other's bits as they are. Commutative; associative up to rounding.
TERRACE_HD inline merged_row merge(softmax_row a, softmax_row b) noexcept {
  if (b.empty()) return {a, 1, 0};
  if (a.empty()) return {b, 0, 1};
  const float m = a.m < b.m ? b.m : a.m;
  const float weight_a = std::exp(a.m - m);
  const float weight_b = std::exp(b.m - m);
  return {{m, a.l * weight_a + b.l * weight_b}, weight_a, weight_b};
}

/// One element of the merged output. An empty row's output is not read: it may be anything.
TERRACE_HD constexpr float merge_output(const merged_row& w, float o_a, float o_b) noexcept {
  if (w.weight_b == 0) return w.weight_a == 1 ? o_a : o_a * w.weight_a;
  if (w.weight_a == 0) return w.weight_b == 1 ? o_b : o_b * w.weight_b;
  return o_a * w.weight_a + o_b * w.weight_b;
}

/// log(sum of exp(logit)) of a row; -infinity where it is empty. exp(lse_part - lse_whole) is the part's
/// share of the softmax mass.
TERRACE_HD inline float lse(softmax_row row) noexcept {
  return row.empty() ? no_logit : row.m + std::log(row.l);
}

/// One element of the attention's result; 0 where no key was seen.
TERRACE_HD constexpr float finish(softmax_row row, float o) noexcept {
  return row.empty() ? 0.0f : o / row.l;
}

}  // namespace terrace
