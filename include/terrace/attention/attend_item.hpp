#pragma once
#include <cstddef>
#include <cstdint>

#include "terrace/attention/partial_state.hpp"
#include "terrace/attention/query_tile.hpp"
#include "terrace/cache/block_view.hpp"
#include "terrace/core/config.hpp"
#include "terrace/core/cpu.hpp"

namespace terrace::kernels {

/// One call of `attend`, resolved to addresses.
struct attend_item {
  const query_tile* queries;
  partial_state* state;
  token_rows keys, values;
  token_rows next_keys, next_values;  ///< of the next block, if known: prefetched
  std::uint64_t first_position;       ///< of the block
  std::uint32_t tokens;               ///< valid ones
  std::uint32_t tile_tokens;          ///< tiles begin at multiples of this, at most max_tile_tokens
  std::uint32_t first_head, heads;
  std::uint32_t first_query, count;

  std::size_t rows() const noexcept { return std::size_t{count} * heads; }
};

/// Folds the item with the kernel for `set`, which the processor must support.
void attend(const attend_item& item, isa set) noexcept;

}  // namespace terrace::kernels

#if !defined(TERRACE_PREBUILT)
#include "terrace/attention/kernel.hpp"  // IWYU pragma: export
#endif
