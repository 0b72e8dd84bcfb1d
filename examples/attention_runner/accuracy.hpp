#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>
#include <vector>

#include "reference_attention.hpp"
#include "run_result.hpp"
#include "terrace/execution/context.hpp"

namespace runner {

/// How far attention over synthetic KV is from the same attention in float64, over the steps of a run.
class accuracy {
 public:
  accuracy(const synthetic_kv& kv, const run_request& request) : kv_(kv), request_(request) {}

  /// Compares some heads of some layers of the step just decoded with the reference; over the whole run, as many as
  /// take a second or two. `queries` are [layer][q_head][dim], `outputs` [q_head][dim] of each layer.
  void compare(terrace::context& ctx, std::uint32_t step, std::uint32_t sequence,
               std::span<const float> queries, std::span<const std::vector<float>> outputs) {
    const model_shape& shape = kv_.shape();
    const std::uint64_t tokens = std::uint64_t{request_.context_tokens} + step + 1;
    const std::uint64_t affordable = (std::uint64_t{1} << 28) / (tokens * shape.head_dim);
    const std::uint64_t steps = std::uint64_t{request_.decode_tokens} * request_.batch;
    const std::uint64_t pairs = std::max<std::uint64_t>(1, affordable / steps);
    const std::size_t width = std::size_t{shape.q_heads} * shape.head_dim;
    struct found {
      double error = 0, norm = 0, most = 0;
    };
    std::vector<found> all(std::min<std::uint64_t>(pairs, std::uint64_t{shape.layers} * shape.q_heads));
    ctx.parallel_for(all.size(), [&](std::size_t i) noexcept {
      // Layers in turn, continuing from step to step; the heads of one layer in turn as well.
      const std::uint64_t turn = (std::uint64_t{step} * request_.batch + sequence) * all.size() + i;
      const auto layer = static_cast<std::uint32_t>(turn % shape.layers);
      const auto head = static_cast<std::uint32_t>(turn / shape.layers * 7 % shape.q_heads);
      const auto query = queries.subspan(layer * width + std::size_t{head} * shape.head_dim, shape.head_dim);
      const std::vector<double> right =
          reference_attention(kv_, layer, head, tokens, request_.context_tokens, sequence, query);
      for (std::uint32_t d = 0; d < shape.head_dim; ++d) {
        const double e =
            static_cast<double>(outputs[layer][std::size_t{head} * shape.head_dim + d]) - right[d];
        all[i].error += e * e;
        all[i].norm += right[d] * right[d];
        all[i].most = std::max(all[i].most, std::abs(e));
      }
    });
    for (const found& f : all) {
      error_ += f.error;
      norm_ += f.norm;
      max_abs_ = std::max(max_abs_, f.most);
    }
  }

  /// Over everything that was compared.
  difference found() const {
    return {.max_abs = max_abs_, .rel_l2 = norm_ > 0 ? std::sqrt(error_ / norm_) : 0};
  }

 private:
  const synthetic_kv& kv_;
  const run_request& request_;
  double error_ = 0, norm_ = 0, max_abs_ = 0;
};

}  // namespace runner
