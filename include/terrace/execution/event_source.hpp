#pragma once
#include <chrono>
#include <cstddef>

namespace terrace {

/// A device whose completions a context brings back to its owner thread: an io_uring, a set of CUDA events. Called by
/// the owner thread only.
class event_source {
 public:
  event_source() = default;
  event_source(const event_source&) = delete;  // a context holds its address
  event_source& operator=(const event_source&) = delete;
  virtual ~event_source() = default;

  /// Hands queued work to the device and runs the completions that are ready. Never blocks. Returns how many
  /// ran.
  virtual std::size_t poll() noexcept = 0;

  /// Operations that are queued or in flight. While it is 0 the context does not wait for this source.
  virtual std::size_t pending() const noexcept = 0;

  /// A file descriptor that is readable while poll() would complete something, or -1 where the device has none and
  /// must be polled. Constant for the life of the source. It may be readable once spuriously after the first call.
  virtual int descriptor() const noexcept = 0;

  /// Whether the device has its own call that waits for its completions, which saves the calls that a descriptor
  /// costs: then wait() uses sleep() while no other source has work pending.
  virtual bool sleeps() const noexcept { return false; }

  /// Blocks until poll() has something to complete, the descriptor `wake` was written, or `until` is reached
  /// (time_point::max(): never); may return earlier. `wake` is the same in each call. False if it could not sleep;
  /// then wait() sleeps on descriptor(). Precondition: sleeps(), and poll() was called since work was queued.
  virtual bool sleep([[maybe_unused]] std::chrono::steady_clock::time_point until,
                     [[maybe_unused]] int wake) noexcept {
    return false;
  }

  /// When poll() has something to do even if no device says so, such as a deadline that passes: wait() does not
  /// sleep beyond it. It does not show on a context's descriptor().
  virtual std::chrono::steady_clock::time_point due() const noexcept {
    return std::chrono::steady_clock::time_point::max();
  }
};

}  // namespace terrace
