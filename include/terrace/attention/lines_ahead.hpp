#pragma once
#include <cstddef>

#include "terrace/attention/block_view.hpp"
#include "terrace/core/config.hpp"

namespace terrace::kernels {

/// Cache lines that will be read later, asked for one by one in the order in which they lie in memory: a kernel that
/// asks for some between its arithmetic keeps memory busy all the time.
class lines_ahead {
 public:
  /// None.
  constexpr lines_ahead() noexcept = default;
  /// Those of `count` rows from row `first` on, which need not be there: asking for memory that does not exist does
  /// nothing. Precondition: count > 0.
  lines_ahead(const token_rows& rows, std::size_t first, std::size_t count) noexcept
      : at_(rows[first]), stride_(rows.stride), gap_(rows.stride - rows.row_bytes()) {
    end_ = at_ + count * stride_ - gap_;
    row_end_ = gap_ == 0 ? end_ : at_ + rows.row_bytes();
  }

  /// Asks for the next `lines`, if there are still so many.
  TERRACE_ALWAYS_INLINE void fetch(std::size_t lines) noexcept {
    for (std::size_t i = 0; i < lines && at_ < end_; ++i) {
      __builtin_prefetch(at_);
      at_ += line_bytes;
      if (at_ < row_end_) continue;
      at_ = row_end_ + gap_;
      row_end_ += stride_;
    }
  }

  /// Lines that `bytes` take, begun ones included.
  static constexpr std::size_t lines(std::size_t bytes) noexcept {
    return (bytes + line_bytes - 1) / line_bytes;
  }

 private:
  static constexpr std::size_t line_bytes = 64;

  const std::byte* at_ = nullptr;
  const std::byte* row_end_ = nullptr;
  const std::byte* end_ = nullptr;
  std::size_t stride_ = 0;
  std::size_t gap_ = 0;  // between a row's end and the next row
};

}  // namespace terrace::kernels
