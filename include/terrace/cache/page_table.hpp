#pragma once
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "terrace/cache/planner.hpp"
#include "terrace/core/block.hpp"
#include "terrace/core/layout.hpp"

namespace terrace {

/// The page table of one request: for each row of layers, the blocks that hold its tokens, in order. Blocks before
/// length / tokens are sealed; those after them are open, unless the sequence is suspended. For sequence, reservation
/// and stream.
struct page_table {
  planner* owner = nullptr;
  std::uint32_t number = 0;                 ///< names the sequence to prefetchers
  std::uint64_t length = 0;                 ///< committed tokens
  std::uint32_t turn = 0;                   ///< how often the sequence has been continued
  std::vector<std::vector<block_id>> rows;  ///< ids of forgotten blocks are not valid
  bool reserved = false;                    ///< a reservation is being written, or a cut under way
  bool suspended = false;                   ///< open blocks have been sealed as they were
  std::uint64_t changes = 0;  ///< counts changes, so that readers of `rows` and `length` notice them
  /// For each row, the shared open tail that the reservation has replaced by a copy; not valid if there is none. It
  /// comes back if nothing is kept.
  std::vector<block_id> replaced;

  const layer_group& group(std::size_t row) const noexcept {
    return owner->layout().groups[group_index(row)];
  }
  std::size_t group_index(std::size_t row) const noexcept {
    const auto& groups = owner->layout().groups;
    std::size_t g = 0;
    for (; row >= groups[g].block_rows(); ++g) row -= groups[g].block_rows();
    return g;
  }
  /// The row that holds `layer`, and which of the block's layers it is.
  std::pair<std::uint32_t, std::uint32_t> row_of(std::uint32_t layer) const noexcept {
    std::uint32_t row = 0;
    for (const layer_group& g : owner->layout().groups) {
      if (layer < g.first_layer + g.layers) {
        const std::uint32_t at = layer - g.first_layer;
        return {row + at / g.layers_per_block, at % g.layers_per_block};
      }
      row += g.block_rows();
    }
    return {row, 0};
  }
  std::size_t sealed(std::size_t row) const noexcept { return length / group(row).tokens; }
  /// Bytes of tier 0 that the open blocks take while `tokens` more are reserved. They cannot leave until they are
  /// sealed.
  std::uint64_t open_bytes(std::uint32_t tokens) const noexcept {
    std::uint64_t bytes = 0;
    for (std::size_t row = 0; row < rows.size(); ++row) {
      const layer_group& g = group(row);
      bytes += ((length + tokens + g.tokens - 1) / g.tokens - length / g.tokens) * g.block_bytes();
    }
    return bytes;
  }
};

}  // namespace terrace
