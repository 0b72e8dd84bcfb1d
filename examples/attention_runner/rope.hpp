#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "parallel_for.hpp"

namespace runner {

/// Rotary position embedding as HuggingFace's Llama has it: element i of a head is paired with i + dim / 2,
/// and the pair is turned by position * theta^(-2 i / dim). Angles are computed in double: a float angle is
/// off by a thousandth of a turn at position 65536.
class rope_table {
 public:
  /// Precondition: `head_dim` is even.
  rope_table(std::uint32_t head_dim, double theta) : half_(head_dim / 2), frequency_(half_) {
    for (std::size_t i = 0; i < half_; ++i)
      frequency_[i] = std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(head_dim));
  }

  /// Computes the turns of `count` positions from `first` on; does nothing if it has these already.
  void prepare(std::uint32_t first, std::size_t count, const parallel_for& parallel) {
    constexpr std::size_t positions_per_piece = 64;
    if (first == first_ && count <= count_) return;
    first_ = first;
    count_ = count;
    cosine_.resize(count * half_);
    sine_.resize(count * half_);
    for_pieces(parallel, count, positions_per_piece, [this](std::size_t begin, std::size_t end) {
      for (std::size_t row = begin; row < end; ++row) {
        const double position = static_cast<double>(first_) + static_cast<double>(row);
        for (std::size_t i = 0; i < half_; ++i) {
          const double angle = position * frequency_[i];
          cosine_[row * half_ + i] = static_cast<float>(std::cos(angle));
          sine_[row * half_ + i] = static_cast<float>(std::sin(angle));
        }
      }
    });
  }

  /// Turns one head, x to y (may be the same), to the `row`-th prepared position.
  void rotate(std::size_t row, const float* x, float* y) const noexcept {
    const float* c = cosine_.data() + row * half_;
    const float* s = sine_.data() + row * half_;
    for (std::size_t i = 0; i < half_; ++i) {
      const float a = x[i], b = x[i + half_];
      y[i] = a * c[i] - b * s[i];
      y[i + half_] = b * c[i] + a * s[i];
    }
  }

 private:
  std::size_t half_;
  std::vector<double> frequency_;
  std::uint32_t first_ = 0;
  std::size_t count_ = 0;
  std::vector<float> cosine_;  ///< [row][half]
  std::vector<float> sine_;
};

}  // namespace runner
