#pragma once
#include <cstddef>
#include <cstdint>

#include "terrace/cache/residency.hpp"
#include "terrace/core/layout.hpp"

namespace terrace {

/// Which tokens of which layers a block holds, by their position in the sequences that have it.
struct block_range {
  std::uint32_t first_layer = 0, layers = 0;
  std::uint64_t first_token = 0;
  std::uint32_t tokens = 0;
  friend bool operator==(const block_range&, const block_range&) noexcept = default;
};

/// O(groups).
inline block_range range_of(const kv_layout& layout, const block_record& r) noexcept {
  const layer_group& g = layout.groups[r.group];
  std::uint32_t row = r.row;  // within the group
  for (std::size_t before = 0; before < r.group; ++before) row -= layout.groups[before].block_rows();
  return {.first_layer = g.first_layer + row * g.layers_per_block,
          .layers = g.layers_per_block,
          .first_token = std::uint64_t{r.depth} * g.tokens,
          .tokens = g.tokens};
}

}  // namespace terrace
