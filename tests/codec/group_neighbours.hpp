#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <limits>
#include <random>

#include "catch.hpp"
#include "instruction_sets.hpp"
#include "terrace/core/element.hpp"

/// Many groups encoded together, some of them odd, have the codes that each has alone. A Row of n values has raw,
/// encode(set) and codes_of(group).
template <class Row, terrace::element_type T>
void check_that_groups_stand_alone() {
  using namespace terrace;
  constexpr float odd[] = {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                           1e-30f, 0};
  constexpr std::uint32_t groups = 71;
  std::mt19937 random(12);
  std::normal_distribution<float> normal;
  Row all(groups * 32), one(32);
  for (int round = 0; round < 20; ++round) {
    for (T& x : all.raw) x = from_float<T>(normal(random));
    // Some groups of zeros, some with a single value that is odd.
    for (std::size_t g = random() % 9; g < groups; g += 1 + random() % 30) {
      if (random() % 2 == 0) std::fill_n(all.raw.begin() + static_cast<std::ptrdiff_t>(g * 32), 32, T{});
      all.raw[g * 32 + random() % 32] = from_float<T>(odd[random() % std::size(odd)]);
    }
    for (const isa set : sets_here()) {
      all.encode(set);
      for (std::size_t g = 0; g < groups; ++g) {
        std::copy_n(all.raw.begin() + static_cast<std::ptrdiff_t>(g * 32), 32, one.raw.begin());
        one.encode(set);
        REQUIRE(all.codes_of(g) == one.codes_of(0));
      }
    }
  }
}
