#pragma once
// Attention by its definition, in double: what the tests of attention compare with.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "attention/context_of_tokens.hpp"

namespace attention_test {

// The largest difference from softmax(q k) v in double, relative to the largest value.
inline double error_against_reference(context_of_tokens& kv, const query_tile& tile,
                                      const partial_state& state) {
  const attention_shape& shape = kv.shape();
  const std::uint32_t dim = kv.group().v_dim();
  std::vector<float> out(state.rows() * dim);
  state.finish(std::span(out));
  double worst = 0, largest = 1e-30;
  for (std::uint32_t i = 0; i < tile.size(); ++i) {
    for (std::uint32_t h = 0; h < shape.q_heads; ++h) {
      const std::uint32_t kv_head = h / shape.group();
      const float* const q = tile.values(tile.row(i, h));
      std::vector<double> logits(kv.tokens(), -std::numeric_limits<double>::infinity());
      double most = -std::numeric_limits<double>::infinity();
      for (std::uint32_t t = 0; t < kv.tokens(); ++t) {
        if (!sees(shape.keep, tile.first_position() + i, t)) continue;
        logits[t] = 0;
        for (std::uint32_t d = 0; d < shape.dim; ++d) logits[t] += q[d] * kv.key(t, kv_head, d);
        most = std::max(most, logits[t]);
      }
      double sum = 0;
      std::vector<double> expected(dim, 0.0);
      for (std::uint32_t t = 0; t < kv.tokens(); ++t) {
        const double p =
            logits[t] == -std::numeric_limits<double>::infinity() ? 0 : std::exp(logits[t] - most);
        if (p == 0) continue;
        sum += p;
        for (std::uint32_t d = 0; d < dim; ++d) {
          expected[d] += p * kv.value(t, kv_head, d);
          largest = std::max(largest, std::fabs(kv.value(t, kv_head, d)));
        }
      }
      for (std::uint32_t d = 0; d < dim; ++d) {
        const double right = sum > 0 ? expected[d] / sum : 0;
        const double difference = std::fabs(out[tile.row(i, h) * dim + d] - right);
        worst = difference <= worst ? worst : difference;  // a NaN stays
      }
      const double lse = sum > 0 ? most + std::log(sum) : -std::numeric_limits<double>::infinity();
      if (sum > 0)
        REQUIRE(std::fabs(row_lse(state, tile.row(i, h)) - lse) <= 2e-5 + 1e-6 * std::fabs(lse));
      else
        REQUIRE(state.scalars(tile.row(i, h)).empty());
    }
  }
  return worst / largest;
}

}  // namespace attention_test
