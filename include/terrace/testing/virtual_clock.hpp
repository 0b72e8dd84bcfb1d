#pragma once
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "terrace/execution/time_source.hpp"

namespace terrace {

/// Time that passes only when a test says so, or when everybody sleeps: then it jumps to what is due next, so that
/// no test waits for a deadline. It must outlive the contexts that are told of it:
///
///     virtual_clock clock;
///     context ctx{{.codec_threads = 0, .time = &clock}};
///
/// Everything that completes must be due at some time (event_source::due) or be posted by the owner: completions of
/// other threads and of descriptors are not waited for. So the context has no codec threads, and media are of memory.
///
/// Where nothing is due and yet somebody waits, or where the program sleeps again and again without an end, it prints
/// a sentence and aborts: the test hangs, and no time would end that.
class virtual_clock final : public time_source {
 public:
  using duration = std::chrono::steady_clock::duration;

  /// `patience`: how often the program may sleep until the test next calls `rouse` or `advance`.
  explicit virtual_clock(std::uint64_t patience = 1'000'000) noexcept : patience_(patience) {}
  virtual_clock(const virtual_clock&) = delete;

  time_point now() const noexcept override { return now_; }
  /// Lets time pass. What is due by then completes in the next poll().
  void advance(duration by) noexcept {
    now_ += by;
    rouse();
  }
  /// The test goes on by itself: it may sleep `patience` times again.
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

  time_point now_{std::chrono::hours(1)};  // not the epoch: a time that was never set has passed
  std::uint64_t sleeps_ = 0, patience_;
};

}  // namespace terrace
