#pragma once
#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "terrace/core/error.hpp"

namespace terrace {

/// How well a tier works now, and how it has failed. A snapshot; times are of the context's clock.
struct tier_health {
  using time_point = std::chrono::steady_clock::time_point;
  enum class state : std::uint8_t {
    working,    ///< takes blocks
    set_aside,  ///< has failed too often: nothing is stored there before `next_retry`
    probing,    ///< set aside, and one block or sync is under way to find out whether it works again
  };
  bool healthy = true;  ///< works, and the last read, write and sync of it to end all succeeded
  state now = state::working;
  bool answers = true;            ///< false while loads from it are refused because reads of it hang
  std::uint64_t failures = 0;     ///< reads, writes and syncs that failed or passed their deadline, in all
  std::uint32_t in_a_row = 0;     ///< of these, since the last success of the same kind; the most of any kind
  std::uint32_t times_aside = 0;  ///< how often it has been set aside, not counting failed probes
  error last{};                   ///< the last failure; meaningful where failures > 0
  time_point aside_since{};       ///< meaningful unless it works
  time_point next_retry{};  ///< no probe before it; meaningful unless it works; time_point::max(): never
};

/// How well a whole cache works now.
struct cache_health {
  enum class verdict : std::uint8_t {
    working,   ///< every tier is healthy
    degraded,  ///< some tier is not; blocks still find room in another below tier 0
    failing,   ///< no tier below tier 0 takes blocks: new ones stay in tier 0 until reserve finds no slot
  };
  verdict now = verdict::working;
  std::vector<tier_health> tiers;  ///< nearest first; those left out are healthy and do nothing
};

/// When a tier is set aside, and for how long.
struct health_options {
  unsigned tolerated = 2;  ///< how many writes in a row may fail, or reads hang, without setting it aside
  unsigned tolerated_reads = std::numeric_limits<unsigned>::max();  ///< likewise reads that fail otherwise
  std::chrono::milliseconds first_pause{10};  ///< before the first retry; each failed retry doubles it
  std::chrono::milliseconds longest_pause{10'000};
};

/// A circuit breaker: decides when a tier is set aside and when it is tried again. It is told of every transfer, and
/// asked before each; it knows no tier and no clock, so callers pass the time.
///
/// Its rules:
/// - More failures of one kind in a row than are tolerated set the tier aside. Unless the options say otherwise, any
///   number of failed reads (including wrong checksums) is tolerated: they say nothing about writes, and the tier may
///   be all the room there is. The engine can carry on by recomputing blocks, but not when reserve is refused. Few
///   reads that pass their deadline are tolerated, because each holds buffers and a job until it ends.
/// - One write that passes its deadline sets it aside, because it would be tried again and hold more of them. So does
///   one sync that fails, because nobody knows what else the medium has forgotten.
/// - A tier set aside takes one block when its pause is over. That probe heals it, or doubles the pause. After a
///   failed sync only a sync heals the tier: blocks that arrive would prove nothing. A sync that fails with
///   errc::unavailable says that no later one will succeed: then there are no more probes.
/// - Loads are tried whatever the state, because the block may be nowhere else. Only if reads hang are they refused,
///   except for one probe: the caller would wait a whole deadline for each block, and recomputing it is faster.
/// - The pause starts again at `first_pause` once what had failed has succeeded.
///
/// All members are O(1).
class circuit_breaker {
 public:
  using time_point = tier_health::time_point;
  enum class work : std::uint8_t { read, write, sync };

  explicit circuit_breaker(health_options o = {}) noexcept : options_(o) {}

  const tier_health& health() const noexcept { return health_; }

  /// Whether a store to the tier may begin.
  bool admits_store(time_point now) const noexcept {
    return works() || (cause_ != work::sync && probe_due(now));
  }
  /// Whether a load from the tier may begin.
  bool admits_load(time_point now) const noexcept { return health_.answers || probe_due(now); }
  /// Whether a sync of the tier may begin.
  bool admits_sync(time_point now) const noexcept {
    return works() || cause_ != work::sync || probe_due(now);
  }
  /// Set aside because a sync failed: what lies there may not be durable.
  bool sync_failed() const noexcept { return !works() && cause_ == work::sync; }
  /// A transfer or sync begins. True: the tier is set aside and was waiting for work of this kind, so this is the
  /// probe; whoever reports how it ended must report that too.
  bool begun(work w, time_point now) noexcept {
    const bool tells = w == work::read    ? !health_.answers
                       : w == work::write ? cause_ != work::sync
                                          : cause_ == work::sync;
    if (!tells || !probe_due(now)) return false;
    health_.now = tier_health::state::probing;
    return true;
  }
  /// It has succeeded, in time or not.
  void succeeded(work w, bool probe = false) noexcept {
    row(w) = 0;
    if (w == work::read) {
      health_.answers = true;
      late_reads_ = 0;
    }
    if (probe) withdrawn();
    if (!works() && (w == cause_ || (probe && cause_ == work::read))) {
      health_.now = tier_health::state::working;
      health_.answers = true;
      rows_ = {};
      late_reads_ = 0;
    }
    if (w == cause_) pauses_ = 0;
    sum_up();
  }
  /// It has failed, or passed its deadline.
  void failed(work w, const error& why, time_point now, bool probe = false) noexcept {
    ++health_.failures;
    health_.last = why;
    const bool late = why.code == errc::deadline;
    if (w == work::read && late) ++late_reads_;
    const bool hangs = late_reads_ > options_.tolerated;
    const bool enough = ++row(w) > (w == work::read ? options_.tolerated_reads : options_.tolerated) ||
                        (w == work::read ? hangs : late);
    if (probe || w == work::sync || (enough && works())) set_aside(w, now);
    if (w == work::sync && why.code == errc::unavailable) health_.next_retry = time_point::max();
    if (hangs) health_.answers = false;
    sum_up();
  }
  /// The probe has ended but says nothing about the tier: its source could not be read, for example.
  void withdrawn() noexcept {
    if (health_.now == tier_health::state::probing) health_.now = tier_health::state::set_aside;
  }

 private:
  bool works() const noexcept { return health_.now == tier_health::state::working; }
  bool probe_due(time_point now) const noexcept {
    return health_.now == tier_health::state::set_aside && now >= health_.next_retry;
  }
  std::uint32_t& row(work w) noexcept { return rows_[static_cast<std::size_t>(w)]; }

  void set_aside(work w, time_point now) noexcept {
    if (works()) {
      health_.aside_since = now;
      ++health_.times_aside;
    }
    if (works() || w == work::sync) cause_ = w;
    health_.now = tier_health::state::set_aside;
    const auto longer = options_.first_pause * (std::int64_t{1} << std::min(pauses_++, 20u));
    health_.next_retry = now + std::min(longer, options_.longest_pause);
  }
  void sum_up() noexcept {
    health_.in_a_row = *std::max_element(rows_.begin(), rows_.end());
    health_.healthy = works() && health_.in_a_row == 0;
  }

  health_options options_;
  tier_health health_;
  std::array<std::uint32_t, 3> rows_{};  // failures in a row, of each kind of work
  std::uint32_t late_reads_ = 0;         // since a read last succeeded
  work cause_ = work::write;             // what it was set aside for
  unsigned pauses_ = 0;                  // since what had failed last succeeded
};

}  // namespace terrace
