#pragma once
#include <algorithm>
#include <cstdint>
#include <span>
#include <string_view>

#include "terrace/prefetch/prefetcher.hpp"

namespace terrace {

/// While one row of layers is streamed, asks for the first blocks of the next row that are not here; after the last
/// row, for those of the first row at the next step. Right for every model that goes through its layers in order.
class layer_ahead {
 public:
  static constexpr std::string_view name = "layer_ahead";
  struct options {
    std::uint32_t blocks = 16;  ///< how many of the next row
  };

  layer_ahead() = default;
  explicit layer_ahead(options o) noexcept : options_(o) {}

  void observe(const row_use& use) noexcept { use_ = use; }
  std::size_t suggest(std::span<prefetch_wish> out) noexcept {
    if (out.empty() || use_.blocks == 0) return 0;
    const bool last = use_.row + 1 >= use_.rows;
    out[0] = {.row = last ? 0 : use_.row + 1,
              .first = 0,
              .blocks = std::min(options_.blocks, use_.blocks),
              .at_step = last ? use_.step + 1 : use_.step,
              .absent = true};
    return 1;
  }

 private:
  options options_{};
  row_use use_{};
};
static_assert(prefetcher<layer_ahead>);

}  // namespace terrace
