#pragma once
#include <chrono>

namespace terrace {

/// Where a context gets its time when it is not the machine's clock: lets deadlines and back-off be tested without
/// sleeping (testing/virtual_clock.hpp). Set in context::options. Called by the owner thread only.
class time_source {
 public:
  using time_point = std::chrono::steady_clock::time_point;

  /// Never goes back.
  virtual time_point now() const noexcept = 0;
  /// Called instead of sleeping: there is nothing left to do, and the next thing is due at `until`
  /// (time_point::max(): never). Returns when now() has reached `until`, or earlier if poll() has something to do.
  virtual void sleep_until(time_point until) noexcept = 0;

 protected:
  ~time_source() = default;
};

}  // namespace terrace
