#pragma once
#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

namespace terrace {

/// What a span of a trace belongs to.
enum class trace_track : std::uint8_t {
  compute,  ///< attention over blocks that are here
  copy,     ///< a codec or a copy at work, on a thread of the pool
  io,       ///< a read or a write of a medium, from its submission to its completion
  stall,    ///< a stream that has nothing to compute because its next window has not arrived
};
inline constexpr std::array trace_track_names{"compute", "copy", "io", "stall"};

/// A stretch of time during which something was done. Times are nanoseconds of the steady clock.
struct trace_span {
  const char* name;  ///< a literal
  std::int64_t begin, end;
  std::uint64_t bytes;
  std::uint32_t block;  ///< index of the block, or of the first of several
  trace_track track;
};

/// A record of what was done when: as many spans as fit in memory that is allocated at the start. Once it is full,
/// further spans are only counted, so a trace is a prefix of what happened, and never stops the program.
///
///     trace_log log(100'000);
///     ctx.trace(&log);            // caches of this context write to it from here on
///     ...
///     ctx.trace(nullptr);
///     auto written = write_chrome_trace(log, file);   // observe/chrome_trace.hpp
///
/// Without a log attached, recording costs one branch.
class trace_log {
 public:
  /// Room for `capacity` spans of 48 bytes; pages are touched as they fill.
  explicit trace_log(std::size_t capacity)
      : spans_(std::make_unique_for_overwrite<trace_span[]>(capacity)), capacity_(capacity) {}

  /// The clock of the spans.
  static std::int64_t now() noexcept {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(
               std::chrono::steady_clock::now().time_since_epoch())
        .count();
  }

  /// Any thread; lock-free; no allocation.
  void add(const trace_span& span) noexcept {
    const std::size_t at = next_.fetch_add(1, std::memory_order_relaxed);
    if (at < capacity_) spans_[at] = span;
  }

  /// What was recorded, in the order in which it ended, as far as threads do not cross. Precondition: everything
  /// recorded on other threads is visible to the caller's thread, as it is for transfers that have completed.
  std::span<const trace_span> spans() const noexcept {
    return {spans_.get(), std::min(capacity_, next_.load(std::memory_order_relaxed))};
  }
  /// Spans for which there was no room.
  std::size_t dropped() const noexcept { return next_.load(std::memory_order_relaxed) - spans().size(); }

 private:
  std::unique_ptr<trace_span[]> spans_;
  std::size_t capacity_;
  std::atomic<std::size_t> next_{0};
};

/// Records the time from its construction to its destruction, if there is a log.
class trace_scope {
 public:
  trace_scope(trace_log* log, trace_track track, const char* name, std::uint32_t block,
              std::size_t bytes) noexcept
      : log_(log) {
    if (log != nullptr) [[unlikely]]
      span_ = {name, trace_log::now(), 0, bytes, block, track};
  }
  trace_scope(const trace_scope&) = delete;
  ~trace_scope() {
    if (log_ == nullptr) [[likely]]
      return;
    span_.end = trace_log::now();
    log_->add(span_);
  }

 private:
  trace_log* log_;
  trace_span span_;  // uninitialised if there is no log
};

}  // namespace terrace
