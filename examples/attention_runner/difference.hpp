#pragma once
#include <cmath>

namespace runner {

/// How far results are from what they should be.
struct difference {
  double max_abs = 0;
  double rel_l2 = 0;  ///< norm of the difference / norm of what should be

  bool is_finite() const noexcept { return std::isfinite(max_abs) && std::isfinite(rel_l2); }
};

/// Adds up a difference. What is not a number makes it NaN, and nothing takes that back.
class difference_tally {
 public:
  void add(double got, double right) noexcept {
    const double off = got - right;
    error_ += off * off;
    norm_ += right * right;
    keep_larger(std::abs(off));
  }
  difference_tally& operator+=(const difference_tally& other) noexcept {
    error_ += other.error_;
    norm_ += other.norm_;
    keep_larger(other.max_abs_);
    return *this;
  }
  difference found() const noexcept {
    return {.max_abs = max_abs_, .rel_l2 = norm_ == 0 ? 0 : std::sqrt(error_ / norm_)};
  }

 private:
  void keep_larger(double off) noexcept {
    if (!(off <= max_abs_)) max_abs_ = std::isnan(max_abs_) ? max_abs_ : off;
  }
  double error_ = 0, norm_ = 0, max_abs_ = 0;
};

}  // namespace runner
