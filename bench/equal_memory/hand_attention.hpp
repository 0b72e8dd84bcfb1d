#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "huge_memory.hpp"
#include "problem.hpp"
#include "terrace/attention/attend.hpp"
#include "terrace/execution/context.hpp"

namespace equal_memory {

/// Attention over blocks that somebody else has brought: Terrace's kernels, cut into the work items of
/// terrace::stream, on the same threads. All that differs is how the blocks come.
class hand_attention {
 public:
  hand_attention(context& ctx, const problem& p)
      : context_(ctx), problem_(p), tails_(bench::huge_memory(problem::layers * p.block_bytes)) {
    for (std::uint32_t layer = 0; layer < problem::layers; ++layer)
      p.write_block(layer, problem::blocks_a_layer, 1, tail(layer));
  }

  /// The token itself lies in a block of each layer that is always in memory.
  std::size_t tail_bytes() const noexcept { return problem::layers * problem_.block_bytes; }

  void begin(std::uint32_t layer) {
    const attention_shape shape{.q_heads = problem::shape.q_heads,
                                .kv_heads = problem::shape.kv_heads,
                                .dim = problem::shape.head_dim};
    if (!queries_.load(shape, problem_.queries_of(layer), problem::context)) give_up("no memory");
    if (!state_.reset(queries_.rows(), problem::shape.head_dim)) give_up("no memory");
  }
  /// Folds in blocks first, first + 1 and so on.
  void fold(std::uint32_t first, std::span<const std::byte* const> blocks) {
    context_.parallel_for(problem::shape.kv_heads, [&](std::size_t head) noexcept {
      for (std::size_t b = 0; b < blocks.size(); ++b) {
        const block_view view =
            view_of(first + static_cast<std::uint32_t>(b), problem::block_tokens, blocks[b]);
        const bool last = b + 1 == blocks.size();
        const block_view next = last ? block_view{} : view_of(0, problem::block_tokens, blocks[b + 1]);
        attend(queries_, view, state_, static_cast<std::uint32_t>(head), 0, 1, best_isa(),
               last ? nullptr : &next);
      }
    });
  }
  void finish(std::uint32_t layer, std::span<float> out) {
    for (std::uint32_t head = 0; head < problem::shape.kv_heads; ++head)
      attend(queries_, view_of(problem::blocks_a_layer, 1, tail(layer)), state_, head, 0, 1);
    state_.finish(out.subspan(layer * problem::width, problem::width));
  }

 private:
  std::byte* tail(std::uint32_t layer) noexcept { return tails_.get() + layer * problem_.block_bytes; }
  block_view view_of(std::uint32_t index, std::uint32_t tokens, const std::byte* data) const noexcept {
    return {.group = &problem_.group,
            .data = data,
            .first_position = std::uint64_t{index} * problem::block_tokens,
            .tokens = tokens};
  }

  context& context_;
  const problem& problem_;
  bench::memory tails_;
  query_tile queries_;
  partial_state state_;
};

}  // namespace equal_memory
