#pragma once
#include <algorithm>
#include <chrono>

namespace terrace {

/// Counts the time during which somebody looked. Whoever stays away for long, computing without poll() or as a
/// stopped process, must find what has ended in the meantime, not find everything late. So at most a quarter of the
/// patience counts between two looks, and nothing is late before it has been looked for several times.
///
///     watched_clock clock(10s);
///     auto due = clock.now() + clock.patience();
///     if (due <= clock.look(ctx.now())) give_up();     // in each poll
///
/// All O(1). For one thread.
class watched_clock {
 public:
  using real_clock = std::chrono::steady_clock;
  using duration = real_clock::duration;

  /// `patience`: how long to wait for each thing.
  explicit watched_clock(duration patience) noexcept
      : patience_(patience), longest_gap_(patience / 4 + duration(1)) {}

  duration patience() const noexcept { return patience_; }

  /// Time watched so far.
  duration now() const noexcept { return watched_; }

  /// Begins to watch at `real`: what passed since the last look does not count. For when nothing was being waited
  /// for.
  void begin(real_clock::time_point real) noexcept { looked_ = real; }

  /// Counts what has passed since the last look, and returns now().
  duration look(real_clock::time_point real) noexcept {
    watched_ += std::clamp(real - looked_, duration(0), longest_gap_);
    looked_ = real;
    return watched_;
  }

  /// When to look again for what is due at `due`, so that all time until then counts.
  real_clock::time_point next_look(duration due) const noexcept {
    return looked_ + std::clamp(due - watched_, duration(0), longest_gap_);
  }

 private:
  duration patience_, longest_gap_;
  duration watched_{};
  real_clock::time_point looked_{};
};

}  // namespace terrace
