#pragma once
#include <cstddef>
#include <cstdint>

#include "terrace/core/mix64.hpp"

namespace terrace {

/// Random numbers that are the same on every machine and compiler for the same seed, so that a seed is a test:
/// SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
class seeded_random {
 public:
  explicit constexpr seeded_random(std::uint64_t seed) noexcept : state_(seed) {}

  constexpr std::uint64_t next() noexcept { return mix64(state_ += 0x9e3779b97f4a7c15u); }
  /// In [0, n). Precondition: n > 0. Not quite uniform for huge n, which does not matter to tests.
  constexpr std::size_t below(std::size_t n) noexcept { return static_cast<std::size_t>(next() % n); }
  constexpr bool chance(double probability) noexcept {
    return static_cast<double>(next() >> 11) * 0x1p-53 < probability;
  }

 private:
  std::uint64_t state_;
};

}  // namespace terrace
