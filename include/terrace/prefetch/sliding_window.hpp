#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "terrace/prefetch/prefetcher.hpp"

namespace terrace {

/// While one row of layers is attended, asks for the newest blocks of the next, and then for its oldest; after the
/// last row, for those of the first row at the next step. Right where attention reads only the near past and the
/// sinks of a row of which it could see more. (In a layer with a window, everything visible is near: `layer_ahead` is
/// enough there.)
class sliding_window {
 public:
  static constexpr std::string_view name = "sliding_window";
  struct options {
    std::uint32_t blocks = 16;  ///< the newest of a row
    std::uint32_t sinks = 1;    ///< and its oldest
  };

  sliding_window() = default;
  explicit sliding_window(options o) noexcept : options_(o) {}

  void observe(const row_use& use) noexcept { use_ = use; }
  std::size_t suggest(std::span<prefetch_wish> out) noexcept {
    const bool last = use_.row + 1 >= use_.rows;
    const std::uint32_t row = last ? 0 : use_.row + 1;
    const std::uint64_t step = last ? use_.step + 1 : use_.step;
    const std::uint32_t newest = std::min(options_.blocks, use_.blocks);
    const std::uint32_t oldest = std::min(options_.sinks, use_.blocks - newest);
    std::size_t count = 0;
    if (newest != 0 && count < out.size())
      out[count++] = {.row = row, .first = use_.blocks - newest, .blocks = newest, .at_step = step};
    if (oldest != 0 && count < out.size())
      out[count++] = {.row = row, .first = 0, .blocks = oldest, .at_step = step};
    return count;
  }

 private:
  options options_{};
  row_use use_{};
};
static_assert(prefetcher<sliding_window>);

}  // namespace terrace
