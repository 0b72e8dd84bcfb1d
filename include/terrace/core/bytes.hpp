#pragma once
#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <string_view>

namespace terrace {

/// Read-only bytes and writable bytes.
using const_bytes = std::span<const std::byte>;
using mutable_bytes = std::span<std::byte>;

inline namespace literals {
/// Sizes as people write them: `400_MiB`.
constexpr std::size_t operator""_KiB(unsigned long long n) noexcept {
  return static_cast<std::size_t>(n) << 10;
}
constexpr std::size_t operator""_MiB(unsigned long long n) noexcept {
  return static_cast<std::size_t>(n) << 20;
}
constexpr std::size_t operator""_GiB(unsigned long long n) noexcept {
  return static_cast<std::size_t>(n) << 30;
}
}  // namespace literals

/// The smallest multiple of `alignment` (a power of two) that is at least `n`.
constexpr std::size_t align_up(std::size_t n, std::size_t alignment) noexcept {
  return (n + alignment - 1) & ~(alignment - 1);
}

/// a * b, or nothing if the product does not fit. Sizes from a file or a command line are multiplied with this before
/// anything is allocated.
constexpr std::optional<std::size_t> checked_product(std::size_t a, std::size_t b) noexcept {
  if (a != 0 && b > std::numeric_limits<std::size_t>::max() / a) return std::nullopt;
  return a * b;
}

/// Reads "4096", "64KiB", "1.5GiB" (also K/M/G/T and KB/MB/GB/TB, all meaning powers of two). Returns nothing for any
/// other text, for a negative number, and for a size that does not fit.
constexpr std::optional<std::size_t> parse_size(std::string_view text) noexcept {
  double value = 0, scale = 1;
  std::size_t i = 0;
  bool digits = false;
  for (; i < text.size() && text[i] >= '0' && text[i] <= '9'; ++i, digits = true)
    value = value * 10 + (text[i] - '0');
  if (i < text.size() && text[i] == '.') {
    for (++i; i < text.size() && text[i] >= '0' && text[i] <= '9'; ++i, digits = true) {
      scale /= 10;
      value += scale * (text[i] - '0');
    }
  }
  if (!digits) return std::nullopt;
  std::string_view unit = text.substr(i);
  double factor = 1;
  if (!unit.empty()) {
    switch (unit.front()) {
      case 'K':
      case 'k':
        factor = 1024.0;
        break;
      case 'M':
      case 'm':
        factor = 1024.0 * 1024;
        break;
      case 'G':
      case 'g':
        factor = 1024.0 * 1024 * 1024;
        break;
      case 'T':
      case 't':
        factor = 1024.0 * 1024 * 1024 * 1024;
        break;
      case 'B':
        break;
      default:
        return std::nullopt;
    }
    if (unit.front() != 'B') unit.remove_prefix(1);
    if (!unit.empty() && unit != "iB" && unit != "B") return std::nullopt;
  }
  const double bytes = value * factor;
  if (!(bytes < 9.0e18)) return std::nullopt;
  return static_cast<std::size_t>(bytes + 0.5);
}

}  // namespace terrace
