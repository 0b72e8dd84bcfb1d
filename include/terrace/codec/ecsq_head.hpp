#pragma once
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "terrace/codec/rope.hpp"
#include "terrace/core/element.hpp"

// What the kernels of ecsq share: one head of one block.
namespace terrace::kernels {

/// Where one head's rows lie, and how they are rotated.
struct ecsq_head {
  std::uint32_t tokens, dim;
  std::size_t stride;  ///< bytes from a token's row to the next one's
  const float* turns;  ///< for each token dim / 2 cosines, then dim / 2 sines; null: not rotated
  rope::pairing pairs;
};

/// The first three bytes of a coded head.
struct ecsq_record {
  static constexpr std::int8_t zeros = -128, stored = 127;
  /// Steps of 2^-14 to 2^8: their multiples, and what rounding does to them, are far from the limits of fp16.
  static constexpr int least_step = -112, most_step = 64;

  std::int8_t step = zeros;  ///< log2, in eighths
  std::uint8_t spread = 0, means = 0;

  bool coded() const noexcept { return step != zeros && step != stored; }
};

/// The numbers of a head that precede its multiples, and how its channels are distributed.
struct ecsq_channels {
  static constexpr std::size_t most = 1024;

  std::int16_t means[most];
  std::int16_t distances[most];  ///< of distributions from the middle one
  std::uint8_t distributions[most];
  ecsq_record record;
};

/// 2^(eighths / 8), by a table and a shift: the same on every machine.
inline float ecsq_step(int eighths) noexcept {
  constexpr std::array<float, 8> part{1.0f,        1.09050773f, 1.18920712f, 1.29683955f,
                                      1.41421356f, 1.54221083f, 1.68179283f, 1.83400809f};
  const auto i = static_cast<std::size_t>(eighths & 7);
  return std::ldexp(part[i], (eighths - static_cast<int>(i)) / 8);
}

/// How far rounding to a type, after a rotation, may move a value, per unit of the two elements of its pair; and the
/// most steps that a value may have for this to stay below half a step.
struct ecsq_rounding {
  float unit, most_steps;
  static constexpr ecsq_rounding of(element type) noexcept {
    if (type == element::bf16) return {0x1p-8f, 60};
    return {type == element::fp16 ? 0x1p-11f : 0x1p-20f, 127};
  }
};
inline constexpr float ecsq_tolerance = 0.02f;

/// How far, in eighths of log2, the step of a head that was coded before may lie above or below the one that its
/// spread asks for now. Quantising moves a value by half a step at most, which is 0.79 standard deviations (ecsq
/// takes steps up to 1.5 of them, rounded), so the spread is now 0.21 to 1.79 of what it was.
inline constexpr int ecsq_steps_up = 20, ecsq_steps_down = 8;

}  // namespace terrace::kernels
