#pragma once
#include <chrono>

namespace terrace {

/// Where a context has its time from, when it is not the machine's clock: the seam by which deadlines and back-off are
/// tested without sleeping (testing/virtual_clock.hpp). Named in context::options. Called by the owner thread only.
class time_source {
 public:
  using time_point = std::chrono::steady_clock::time_point;

  /// Never goes back.
  virtual time_point now() const noexcept = 0;
  /// Called instead of going to sleep: nothing is left to be done, and the earliest thing that is due is due at
  /// `until`, time_point::max() where nothing ever is. Returns when now() has reached `until`, or earlier where poll()
  /// has something to do.
  virtual void sleep_until(time_point until) noexcept = 0;

 protected:
  ~time_source() = default;
};

}  // namespace terrace
