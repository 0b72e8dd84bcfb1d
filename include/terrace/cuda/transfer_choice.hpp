#pragma once
#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace terrace::cuda {

/// How pieces of memory cross the link between host and device.
enum class transfer_method : std::uint8_t {
  copies,   ///< one cudaMemcpyAsync each: the copy engine alone, best for large pieces
  batched,  ///< one cudaMemcpyBatchAsync for all of them: about a quarter of the calls' cost
  kernel,   ///< a gather or scatter kernel on a few multiprocessors: best for many small pieces
};
inline constexpr std::size_t transfer_methods = 3;

constexpr std::string_view name(transfer_method m) noexcept {
  constexpr std::array<std::string_view, transfer_methods> names{"copies", "batched", "kernel"};
  return names[static_cast<std::size_t>(m)];
}

/// Which method is fastest, by the size of a piece and by how many there are at once: a table over powers of two,
/// which `calibrate` (cuda/calibrate.hpp) measures, or which says the same everywhere.
class transfer_choice {
 public:
  static constexpr std::size_t smallest = std::size_t{4} << 10;  ///< bytes of the first column's pieces
  static constexpr std::size_t sizes = 11;                       ///< 4 KiB, 8 KiB, ... 4 MiB and more
  static constexpr std::size_t counts = 7;                       ///< 1, 4, 16, ... 4096 and more

  /// Until something was measured: several small pieces go in one call where they can.
  constexpr transfer_choice() noexcept {
    for (std::size_t s = 0; s < sizes; ++s)
      for (std::size_t c = 0; c < counts; ++c)
        table_[s][c] = c > 0 && (smallest << s) < (std::size_t{1} << 20) ? transfer_method::batched
                                                                         : transfer_method::copies;
  }
  /// `constexpr auto choice = transfer_choice::always(transfer_method::kernel)`
  static constexpr transfer_choice always(transfer_method m) noexcept {
    transfer_choice c;
    for (auto& row : c.table_) row.fill(m);
    return c;
  }

  /// For `count` pieces of `bytes` each; if they differ, of their mean.
  constexpr transfer_method pick(std::size_t bytes, std::size_t count) const noexcept {
    return table_[size_class(bytes)][count_class(count)];
  }
  constexpr void set(std::size_t size, std::size_t count, transfer_method m) noexcept {
    table_[size][count] = m;
  }

  static constexpr std::size_t bytes_of(std::size_t size) noexcept { return smallest << size; }
  static constexpr std::size_t count_of(std::size_t count) noexcept { return std::size_t{1} << (2 * count); }
  /// The nearest column and row on a logarithmic scale, the smaller one on a tie.
  static constexpr std::size_t size_class(std::size_t bytes) noexcept {
    return std::min(sizes - 1, rounded_log2(std::max(bytes, smallest)) - rounded_log2(smallest));
  }
  static constexpr std::size_t count_class(std::size_t count) noexcept {
    return std::min(counts - 1, rounded_log2(std::max<std::size_t>(count, 1)) / 2);
  }

  friend constexpr bool operator==(const transfer_choice&, const transfer_choice&) = default;

 private:
  // log2, rounded at 1.5 times a power of two.
  static constexpr std::size_t rounded_log2(std::size_t n) noexcept {
    const auto floor = static_cast<std::size_t>(std::bit_width(n)) - 1;
    return floor + (n > (std::size_t{3} << floor) / 2 ? 1 : 0);
  }

  std::array<std::array<transfer_method, counts>, sizes> table_{};
};

}  // namespace terrace::cuda
