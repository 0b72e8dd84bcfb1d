#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "terrace/attention/attend_item.hpp"
#include "terrace/attention/partial_state.hpp"
#include "terrace/attention/query_tile.hpp"
#include "terrace/attention/visible_tokens.hpp"
#include "terrace/core/config.hpp"
#include "terrace/core/cpu.hpp"
#include "terrace/core/error.hpp"
#include "terrace/core/layout.hpp"

namespace terrace {

/// Whether `attend` can read blocks of this group for this shape; the error's text says why not. For callers of
/// `attend` to ask once, not for each block.
inline result<void> validate(const attention_shape& shape, const layer_group& group,
                             block_encoding encoding = block_encoding::raw) noexcept {
  if (auto good = validate(shape); !good) return good;
  if (group.k.heads != shape.kv_heads || (group.v.present() && group.v.heads != shape.kv_heads))
    return fail(errc::invalid_argument, "attention needs keys and values of the shape's KV heads");
  if (group.k.dim != shape.dim || group.v_dim() % 16 != 0)
    return fail(errc::invalid_argument,
                "head dimensions must be multiples of 16, and the keys' that of the queries");
  if (!group.v.present() && group.v_dim() > group.k.dim)
    return fail(errc::invalid_argument, "the values in a latent plane are a part of its vectors");
  switch (encoding) {
    case block_encoding::raw:
    case block_encoding::fp8:
      return {};
    case block_encoding::q8_0:
    case block_encoding::q4_0:
      if (group.k.dim % 32 != 0 || group.v_dim() % 32 != 0)
        return fail(errc::invalid_argument, "q8_0 and q4_0 need head dimensions that are multiples of 32");
      if (!reads_in_place(group))
        return fail(errc::invalid_argument,
                    "q8_0 and q4_0 are read in place where they stand for fp16 or bf16");
      return {};
  }
  return fail(errc::invalid_argument, "attention reads blocks that are raw, fp8, q8_0 or q4_0");
}

/// Folds the keys and values of one block into the rows of `queries` queries, from `first_query` on, for the
/// query heads that read `kv_head`. This is one work item: it touches no rows of other heads and queries, and items
/// with distinct rows may run concurrently. Blocks are folded in ascending order of position.
///
/// A query at position p sees the keys at positions up to p that `shape.keep` retains: the last `window`
/// ones, its own included, and the first `sinks`. Other keys and values contribute nothing, even if they are NaN, and
/// nothing past the block's valid tokens is read.
///
/// **Bits do not depend on grouping.** After blocks 0..i a row depends only on its query, on their keys, values and
/// positions, and on the instruction set: not on the number of queries in the call, nor on how work is cut into
/// items, windows or threads. A block is cut into tiles of min(64, tokens of the group) at fixed positions, and for
/// each tile
///
///     s  = sum of q * k        16 lanes of FMA over dim, ascending, then one fixed tree; at most FLT_MAX
///     m' = max(m, max of s)    over the tile's visible keys
///     p  = exp(s - m')
///     l  = l * exp(m - m') + (sum of p, one fixed tree)
///     o  = o * exp(m - m'), then p * v + o by FMA, over the visible tokens, ascending
///
/// This also holds for q8_0 and q4_0 blocks that are read in place, unless the shape's `arithmetic` is `integer`:
/// then s and p * v are sums of products of integers. With `bf16`, raw bf16 blocks are multiplied in pairs of bf16, and
/// p is rounded to bf16. attention_arithmetic.hpp bounds the errors of both.
///
/// `next` is the next block that these queries will be folded with, if known: it is fetched into the processor's
/// cache meanwhile, which changes no bits.
///
/// Logits may have any size. A row whose logits are all -infinity stays empty. A NaN in a visible key makes
/// its rows NaN.
///
/// Preconditions: validate(shape, group, encoding) succeeded; `state` has the tile's rows and the values'
/// dim; first_query + queries <= tile.size(). No allocation, no error. O(queries * group * tokens * dim).
/// Source: FlashAttention-2, algorithm 1.
inline void attend(const query_tile& tile, const block_view& block, partial_state& state,
                   std::uint32_t kv_head, std::uint32_t first_query, std::uint32_t queries,
                   isa set = best_isa(), const block_view* next = nullptr) noexcept {
  const layer_group& group = *block.group;
  TERRACE_ASSERT(validate(tile.shape(), group, block.encoding),
                 "attention was asked for a block that it cannot read");
  TERRACE_ASSERT(state.rows() == tile.rows() && state.dim() == group.v_dim(),
                 "the state is not of the tile's shape");
  TERRACE_ASSERT(std::size_t{first_query} + queries <= tile.size(),
                 "the tile has fewer queries than were asked for");
  TERRACE_ASSERT(block.tokens <= group.tokens, "a block cannot have more tokens than its group says");
  const kernels::attend_item item{
      .queries = &tile,
      .state = &state,
      .keys = key_rows(block, kv_head),
      .values = value_rows(block, kv_head),
      .next_keys = next == nullptr ? token_rows{} : key_rows(*next, kv_head),
      .next_values = next == nullptr ? token_rows{} : value_rows(*next, kv_head),
      .first_position = block.first_position,
      .tokens = block.tokens,
      .tile_tokens = std::min(max_tile_tokens, group.tokens),
      .first_head = kv_head * tile.shape().group(),
      .heads = tile.shape().group(),
      .first_query = first_query,
      .count = queries,
  };
  kernels::attend(item, set);
}

/// Folds `blocks` blocks in turn, as one work item: `view_of(i)` gives block i, and `after(i)` is called when it has
/// been folded. Each is fetched into the processor's cache while the one before it is folded. Otherwise as `attend`.
template <class View, class After>
void attend_in_turn(const query_tile& tile, std::size_t blocks, View view_of, partial_state& state,
                    std::uint32_t kv_head, std::uint32_t first_query, std::uint32_t queries,
                    After after) noexcept {
  if (blocks == 0) return;
  block_view block = view_of(std::size_t{0});
  for (std::size_t i = 0; i < blocks; ++i) {
    const bool last = i + 1 == blocks;
    const block_view next = last ? block_view{} : view_of(i + 1);
    attend(tile, block, state, kv_head, first_query, queries, best_isa(), last ? nullptr : &next);
    after(i);
    block = next;
  }
}

}  // namespace terrace
