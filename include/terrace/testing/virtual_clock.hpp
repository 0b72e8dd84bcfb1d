#pragma once
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "terrace/execution/time_source.hpp"

namespace terrace {

/// Time that passes only when a test says so, or when everybody sleeps: then it jumps to what is due next, so that no
/// test waits for a deadline. It must outlive the contexts that use it:
///
///     virtual_clock clock;
///     context ctx{{.codec_threads = 0, .time = &clock}};
///
/// Everything that completes must be due at some time (event_source::due) or be posted by the owner: completions from
/// other threads and descriptors are not waited for. So give the context no codec threads, and use media in memory.
///
/// If somebody waits although nothing is due, or the program sleeps again and again without end, it prints a sentence
/// and aborts: the test hangs, and no passing of time would end that.
class virtual_clock final : public time_source {
 public:
  using duration = std::chrono::steady_clock::duration;

  /// `patience`: how often the program may sleep before the test next calls `rouse` or `advance`.
  explicit virtual_clock(std::uint64_t patience = 1'000'000) noexcept : patience_(patience) {}
  virtual_clock(const virtual_clock&) = delete;

  time_point now() const noexcept override { return now_; }
  /// Lets time pass. What is due by then completes in the next poll().
  void advance(duration by) noexcept {
    now_ += by;
    rouse();
  }
  /// The test itself makes progress: the program may sleep `patience` times again.
  void rouse() noexcept { sleeps_ = 0; }
  /// Sleeps since the test was last roused.
  std::uint64_t sleeps() const noexcept { return sleeps_; }

  void sleep_until(time_point until) noexcept override {
    if (until == time_point::max()) give_up("somebody waits, and nothing is due: this would never end");
    if (++sleeps_ > patience_) give_up("somebody waits, and sleeps again and again: this does not end");
    if (now_ < until) now_ = until;
  }

 private:
  [[noreturn]] static void give_up(const char* why) noexcept {
    std::fprintf(stderr, "terrace: %s\n", why);
    std::abort();
  }

  time_point now_{std::chrono::hours(1)};  // not the epoch, so that a time that was never set has passed
  std::uint64_t sleeps_ = 0, patience_;
};

}  // namespace terrace
