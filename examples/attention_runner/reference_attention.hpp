#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "synthetic_kv.hpp"

namespace runner {

/// One head's attention over synthetic KV, in double, over all tokens at once: what streaming is compared
/// with. `sequence` wrote the tokens from `context` on; all before are shared.
inline std::vector<double> reference_attention(const synthetic_kv& kv, std::uint32_t layer,
                                               std::uint32_t q_head, std::uint64_t tokens,
                                               std::uint64_t context, std::uint32_t sequence,
                                               std::span<const float> query) {
  using plane = synthetic_kv::plane;
  const std::uint32_t dim = kv.shape().head_dim;
  const std::uint32_t kv_head = q_head / (kv.shape().q_heads / kv.shape().kv_heads);
  const auto owner = [&](std::uint64_t token) { return token < context ? 0 : sequence; };
  const double scale = 1 / std::sqrt(static_cast<double>(dim));
  std::vector<double> scores(tokens);
  double most = -std::numeric_limits<double>::infinity();
  for (std::uint64_t t = 0; t < tokens; ++t) {
    const auto key = kv.values(plane::k, layer, kv_head, t, owner(t));
    double sum[4]{};  // four chains of additions instead of one
    for (std::uint32_t d = 0; d < dim; d += 4)
      for (std::uint32_t i = 0; i < 4; ++i)
        sum[i] += static_cast<double>(query[d + i]) * static_cast<double>(key[d + i]);
    scores[t] = scale * (sum[0] + sum[1] + sum[2] + sum[3]);
    most = std::max(most, scores[t]);
  }
  std::vector<double> out(dim);
  double total = 0;
  for (std::uint64_t t = 0; t < tokens; ++t) {
    const double weight = std::exp(scores[t] - most);
    const auto value = kv.values(plane::v, layer, kv_head, t, owner(t));
    for (std::uint32_t d = 0; d < dim; ++d) out[d] += weight * static_cast<double>(value[d]);
    total += weight;
  }
  for (double& o : out) o /= total;
  return out;
}

}  // namespace runner
