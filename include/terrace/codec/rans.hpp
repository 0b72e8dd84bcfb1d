#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "terrace/core/config.hpp"

namespace terrace {

/// A range coder (rANS) with sixteen lanes, one for each lane of a vector. It writes small whole numbers with hardly
/// more bits than their distribution needs, and reads sixteen of them at a time.
///
/// There are sixteen distributions, and no others: fifteen discrete Gaussians about 0, of growing width, and one that
/// takes every number from -254 to 254. Which one codes a number is agreed upon elsewhere. They are computed from the
/// constants here by IEEE additions, multiplications and divisions of doubles at compile time, so they are the same
/// everywhere; they are part of every format that uses them.
///
/// A lane's state x is in [2^16, 2^32); its numbers are read by
///     slot = x mod 2048;  number = that whose interval [start, start + frequency) holds the slot;
///     x = frequency * (x / 2048) + slot - start;  if x < 2^16: x = x * 2^16 + the next 16 bits of the stream.
/// After sixteen numbers, lane 0 takes from the stream first. Source: Duda, "Asymmetric numeral systems", 2013;
/// interleaving: Giesen, "Interleaved entropy coders", 2014.
struct rans {
  static constexpr unsigned precision = 11;
  static constexpr std::uint32_t slots = 1u << precision;
  static constexpr std::uint32_t lowest_state = 1u << 16;
  static constexpr std::size_t lanes = 16;
  static constexpr std::size_t state_bytes = lanes * sizeof(std::uint32_t);

  static constexpr int distributions = 16;
  static constexpr int widest = distributions - 1;
  static constexpr int most = 254;  ///< the largest number that `widest` takes
  /// The largest number that each distribution takes.
  static constexpr std::array<int, distributions> reach{7,  8,  8,  9,  9,  10, 11, 13,
                                                        15, 17, 21, 26, 32, 40, 50, most};
  /// The variance up to which each is the best one.
  static constexpr std::array<float, distributions - 1> variance{0.0297f, 0.0517f, 0.09f, 0.157f, 0.273f,
                                                                 0.475f,  0.828f,  1.44f, 2.51f,  4.36f,
                                                                 7.6f,    13.2f,   23.0f, 40.1f,  69.8f};

  /// The distribution for numbers of variance `spread`, of which the largest magnitude is `largest`, at most `most`.
  static constexpr int choose(float spread, int largest) noexcept {
    int i = 0;
    while (i < widest &&
           (spread > variance[static_cast<std::size_t>(i)] || largest > reach[static_cast<std::size_t>(i)]))
      ++i;
    return i;
  }

  /// A number's interval in one of the distributions.
  struct interval {
    std::uint16_t start, frequency;
  };

  /// The distributions, as an encoder looks them up and as a decoder does. 160 KiB, built on first use.
  struct tables {
    /// [distribution][number + most]
    std::array<std::array<interval, 2 * most + 1>, distributions> of{};
    /// [distribution][slot]: number + 256 in the upper 10 bits, then 11 of frequency - 1, then 11 of slot - start.
    alignas(64) std::array<std::uint32_t, std::size_t{distributions} * slots> at{};
  };
  static const tables& table() noexcept;
};

namespace detail {

// The weights of a discrete Gaussian fall by q^(n * n); these q give standard deviations of 0.15 * 2^(i / 2.5).
inline constexpr std::array<double, rans::distributions - 1> rans_ratio{
    0.0115088800186, 0.02038529295,  0.0365924430236, 0.0672892700055, 0.129006184678,
    0.256547668242,  0.450435469265, 0.632444726202,  0.768630255466,  0.859729692169,
    0.916855355732,  0.951365745981, 0.971770946235,  0.983687929225,  0.99059839589};

using rans_frequencies = std::array<std::uint16_t, rans::most + 1>;

// How many slots n and -n have each: at least one, and more in proportion to their weights; 0 gets what is left over.
constexpr rans_frequencies rans_frequencies_of(std::size_t distribution) noexcept {
  const auto reach = static_cast<std::size_t>(rans::reach[distribution]);
  std::array<double, rans::most + 1> weight{};
  double sum = 0, w = 1, fall = 0, fall_step = 0;
  if (distribution == rans::widest) {
    for (std::size_t n = 0; n <= reach; ++n) weight[n] = 1;
    sum = static_cast<double>(2 * reach + 1);
  } else {
    const double q = rans_ratio[distribution];
    fall = q;  // q^(2 n + 1)
    fall_step = q * q;
    for (std::size_t n = 0; n <= reach; ++n) {
      weight[n] = w;
      sum = sum + (n == 0 ? w : w + w);
      w = w * fall;
      fall = fall * fall_step;
    }
  }
  rans_frequencies f{};
  const std::uint32_t spare = rans::slots - static_cast<std::uint32_t>(2 * reach + 1);
  std::uint32_t given = 0;
  for (std::size_t n = reach; n != 0; --n) {
    f[n] = static_cast<std::uint16_t>(1 + static_cast<std::uint32_t>(weight[n] / sum * spare));
    given += 2u * f[n];
  }
  f[0] = static_cast<std::uint16_t>(rans::slots - given);
  return f;
}

inline constexpr std::array<rans_frequencies, rans::distributions> rans_all_frequencies = [] {
  std::array<rans_frequencies, rans::distributions> all{};
  for (std::size_t i = 0; i < all.size(); ++i) all[i] = rans_frequencies_of(i);
  return all;
}();

}  // namespace detail

inline const rans::tables& rans::table() noexcept {
  static const tables made = [] {
    tables t;
    for (std::size_t d = 0; d < distributions; ++d) {
      std::uint32_t start = 0;
      for (int n = -reach[d]; n <= reach[d]; ++n) {
        const std::uint32_t f = detail::rans_all_frequencies[d][static_cast<std::size_t>(n < 0 ? -n : n)];
        t.of[d][static_cast<std::size_t>(n + most)] = {static_cast<std::uint16_t>(start),
                                                       static_cast<std::uint16_t>(f)};
        for (std::uint32_t i = 0; i < f; ++i)
          t.at[d * slots + start + i] = static_cast<std::uint32_t>(n + 256) << 22 | (f - 1) << 11 | i;
        start += f;
      }
    }
    return t;
  }();
  return made;
}

/// The state of a writer of numbers, which writes the last one first, from the end of a buffer towards its beginning:
/// its position, and the states of the lanes. The writing itself is in codec/rans_simd.hpp.
struct rans_writer {
  std::byte* at;  ///< where the stream begins, as far as it is written
  std::array<std::uint32_t, rans::lanes> states;

  /// Precondition: the buffer that ends at `end` has two bytes for each number, and state_bytes more.
  explicit rans_writer(std::byte* end) noexcept : at(end) { states.fill(rans::lowest_state); }

  /// Writes the states, which a reader takes first. Returns where the stream begins.
  std::byte* finish() noexcept {
    return static_cast<std::byte*>(std::memcpy(at -= rans::state_bytes, states.data(), rans::state_bytes));
  }
};

/// The state of a reader of numbers: its position in the stream, and the states of the lanes. The reading itself is
/// in codec/rans_simd.hpp.
struct rans_reader {
  const std::byte* stream;
  std::size_t size;
  std::size_t at =
      rans::state_bytes;  ///< of the next 16 bits; beyond `size` where more was read than there is
  std::array<std::uint32_t, rans::lanes> states;

  /// Precondition: at least state_bytes.
  rans_reader(const std::byte* begin, std::size_t bytes) noexcept : stream(begin), size(bytes) {
    std::memcpy(states.data(), begin, rans::state_bytes);
  }
  /// Whether everything has been read and, as far as can be told, came from a writer.
  bool done() const noexcept {
    for (const std::uint32_t x : states)
      if (x != rans::lowest_state) return false;
    return at == size;
  }
};

}  // namespace terrace
