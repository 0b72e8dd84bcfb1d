#pragma once
#include <algorithm>
#include <bit>
#include <cstdint>

#include "terrace/core/layout.hpp"

namespace terrace {

/// Tokens of a tile, one bit each. A tile has at most 64.
using token_mask = std::uint64_t;
inline constexpr std::uint32_t max_tile_tokens = 64;

/// The bits [begin, end), both at most 64.
constexpr token_mask token_range(std::uint64_t begin, std::uint64_t end) noexcept {
  if (begin >= end) return 0;
  return (~token_mask{0} >> (64 - (end - begin))) << begin;
}

/// Which of the tile's tokens, at positions [first, first + tokens), a query at `position` sees: those up to
/// its own position that are among the last `window` (its own included; 0 is no window) or the first `sinks`.
constexpr token_mask visible_tokens(retention keep, std::uint64_t position, std::uint64_t first,
                                    std::uint32_t tokens) noexcept {
  const auto clip = [&](std::uint64_t p) {
    return p <= first ? 0 : std::min<std::uint64_t>(p - first, tokens);
  };
  const std::uint64_t end = position + 1;
  if (keep.window == 0 || keep.window >= end) return token_range(0, clip(end));
  return token_range(clip(end - keep.window), clip(end)) |
         token_range(0, clip(std::min<std::uint64_t>(keep.sinks, end)));
}

/// Consecutive tokens of a mask: [begin, end), empty where there are no more.
struct token_run {
  std::uint32_t begin = 0;
  std::uint32_t end = 0;
  constexpr bool empty() const noexcept { return begin == end; }
};

/// The first run of set bits at or after `from` (at most 64). O(1).
constexpr token_run next_run(token_mask mask, std::uint32_t from = 0) noexcept {
  const token_mask rest = from >= 64 ? 0 : mask >> from << from;
  if (rest == 0) return {};
  const auto begin = static_cast<std::uint32_t>(std::countr_zero(rest));
  return {begin, begin + static_cast<std::uint32_t>(std::countr_one(rest >> begin))};
}

}  // namespace terrace
