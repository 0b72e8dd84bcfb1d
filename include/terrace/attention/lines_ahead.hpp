#pragma once
#include <algorithm>
#include <cstddef>
#include <utility>

#include "terrace/attention/block_view.hpp"
#include "terrace/core/config.hpp"

namespace terrace::kernels {

/// Cache lines that will be read later, asked for one by one in the order in which they lie in memory: a kernel that
/// asks for some between its arithmetic keeps memory busy all the time.
class lines_ahead {
 public:
  /// None.
  constexpr lines_ahead() noexcept = default;
  /// Those of `count` rows from row `first` on, of which `rows` has `left`; the further ones are the first of `next`,
  /// where that is of the same form, and otherwise none.
  lines_ahead(const token_rows& rows, std::size_t left, const token_rows& next, std::size_t first,
              std::size_t count) noexcept
      : stride_(rows.stride), gap_(rows.stride - rows.row_bytes()) {
    const std::size_t last = first + count, here = std::min(last, left);
    const std::size_t skipped = std::max(first, left) - left;
    const bool goes_on = next.first != nullptr && next.stride == stride_ && last > left;
    const segment there = goes_on ? rows_from(next, skipped, last - left - skipped) : segment{};
    if (first >= here) {
      now_ = there;
    } else {
      now_ = rows_from(rows, first, here - first);
      next_ = there;
    }
  }

  /// Asks for the next `lines`, if there are still so many.
  TERRACE_ALWAYS_INLINE void fetch(std::size_t lines) noexcept {
    for (std::size_t i = 0; i < lines && now_.at < now_.end; ++i) {
      __builtin_prefetch(now_.at);
      now_.at += line_bytes;
      if (now_.at < now_.row_end) continue;
      now_.at = now_.row_end + gap_;
      now_.row_end += stride_;
      if (now_.at >= now_.end) now_ = std::exchange(next_, {});
    }
  }

  /// Likewise for a constant number, in few instructions where rows follow one another: for a kernel that has little else to
  /// do meanwhile. One that waits for memory anyway does better with `fetch`, which spreads the requests.
  TERRACE_ALWAYS_INLINE void fetch_at_once(std::size_t lines) noexcept {
    if (gap_ != 0 || static_cast<std::size_t>(now_.end - now_.at) <= lines * line_bytes) return fetch(lines);
#if defined(__GNUC__) && !defined(__clang__) && !defined(__CUDACC__)
#pragma GCC unroll 64
#endif
    for (std::size_t i = 0; i < lines; ++i) __builtin_prefetch(now_.at + i * line_bytes);
    now_.at += lines * line_bytes;
  }

  /// Lines that `bytes` take, begun ones included.
  static constexpr std::size_t lines(std::size_t bytes) noexcept {
    return (bytes + line_bytes - 1) / line_bytes;
  }

 private:
  static constexpr std::size_t line_bytes = 64;

  struct segment {
    const std::byte* at = nullptr;
    const std::byte* row_end = nullptr;  // of the row that `at` is in; of all, where there are no gaps
    const std::byte* end = nullptr;
  };
  segment rows_from(const token_rows& rows, std::size_t first, std::size_t count) const noexcept {
    const std::byte* const at = rows[first];
    const std::byte* const end = at + count * stride_ - gap_;
    return {at, gap_ == 0 ? end : at + stride_ - gap_, end};
  }

  segment now_, next_;
  std::size_t stride_ = 0;
  std::size_t gap_ = 0;  // between a row's end and the next row
};

}  // namespace terrace::kernels
