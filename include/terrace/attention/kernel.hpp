#pragma once
#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

#include "terrace/attention/block_view.hpp"
#include "terrace/attention/partial_state.hpp"
#include "terrace/attention/query_tile.hpp"
#include "terrace/attention/visible_tokens.hpp"
#include "terrace/codec/q4_0_simd.hpp"
#include "terrace/core/config.hpp"
#include "terrace/core/element.hpp"

namespace terrace::kernels {

/// One call of `attend`, resolved to addresses.
struct attend_item {
  const query_tile* queries;
  partial_state* state;
  token_rows keys, values;
  std::uint64_t first_position;  ///< of the block
  std::uint32_t tokens;          ///< valid ones
  std::uint32_t tile_tokens;     ///< tiles begin at multiples of this, at most max_tile_tokens
  std::uint32_t first_head, heads;
  std::uint32_t first_query, count;

  std::size_t rows() const noexcept { return std::size_t{count} * heads; }
};

}  // namespace terrace::kernels

#define TERRACE_KERNEL "terrace/attention/kernel_body.hpp"
#include "terrace/core/for_each_isa.hpp"
