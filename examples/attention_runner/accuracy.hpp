#pragma once
#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "difference.hpp"
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
    std::vector<difference_tally> all(
        std::min<std::uint64_t>(pairs, std::uint64_t{shape.layers} * shape.q_heads));
    ctx.parallel_for(all.size(), [&](std::size_t i) noexcept {
      // Layers in turn, continuing from step to step; the heads of one layer in turn as well.
      const std::uint64_t turn = (std::uint64_t{step} * request_.batch + sequence) * all.size() + i;
      const auto layer = static_cast<std::uint32_t>(turn % shape.layers);
      const auto head = static_cast<std::uint32_t>(turn / shape.layers * 7 % shape.q_heads);
      const auto query = queries.subspan(layer * width + std::size_t{head} * shape.head_dim, shape.head_dim);
      const std::vector<double> right =
          reference_attention(kv_, layer, head, tokens, request_.context_tokens, sequence, query);
      for (std::uint32_t d = 0; d < shape.head_dim; ++d)
        all[i].add(static_cast<double>(outputs[layer][std::size_t{head} * shape.head_dim + d]), right[d]);
    });
    for (const difference_tally& one : all) tally_ += one;
  }

  /// Over everything that was compared.
  difference found() const { return tally_.found(); }

 private:
  const synthetic_kv& kv_;
  const run_request& request_;
  difference_tally tally_;
};

}  // namespace runner
