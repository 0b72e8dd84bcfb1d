#pragma once
#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <span>
#include <vector>

#include "terrace/core/error.hpp"

namespace terrace {

/// What a span of a trace belongs to.
enum class trace_track : std::uint8_t {
  compute,  ///< attention over blocks that are here
  copy,     ///< a codec or a copy at work, on a thread of the pool
  io,       ///< a read or a write of a medium, from its submission to its completion
  stall,    ///< a stream that has nothing to compute, because its next window has not come
};
inline constexpr std::array trace_track_names{"compute", "copy", "io", "stall"};

/// A stretch of time in which something was done. Times are nanoseconds of the steady clock.
struct trace_span {
  const char* name;  ///< a literal
  std::int64_t begin, end;
  std::uint64_t bytes;
  std::uint32_t block;  ///< index of the block, or of the first of several
  trace_track track;
};

/// A record of what was done when: spans in memory that is made at the start, as many as fit. When it is full
/// the rest is counted and not kept, so a trace is a prefix of what happened and never a stop.
///
///     trace_log log(100'000);
///     ctx.trace(&log);            // caches of this context write to it from here on
///     ...
///     ctx.trace(nullptr);
///     auto written = write_chrome_trace(log, file);
///
/// Where no log is attached, recording costs one branch.
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

  /// What was recorded, in the order in which it ended, as far as threads do not cross. Precondition: all that
  /// was recorded on other threads has come home to the caller's, as transfers have that completed.
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

/// Records the time from its construction to its end, where there is a log.
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
  trace_span span_;  // without a value where there is no log
};

/// Writes a log in Chrome's trace event format (complete events, "ph": "X", times in microseconds), which
/// Perfetto and chrome://tracing read. Spans of one track that overlap get lanes of their own, so that the
/// lanes of `io` show how many transfers were in flight. O(n log n). Errors: io_error.
inline result<void> write_chrome_trace(const trace_log& log, std::FILE* to) {
  std::vector<const trace_span*> order;
  for (const trace_span& s : log.spans()) order.push_back(&s);
  std::sort(order.begin(), order.end(), [](const trace_span* a, const trace_span* b) {
    return a->begin != b->begin ? a->begin < b->begin : a < b;
  });
  const std::int64_t origin = order.empty() ? 0 : order.front()->begin;

  constexpr std::size_t lanes_a_track = 1000;  // thread ids of a track: from its number times this
  std::array<std::vector<std::int64_t>, trace_track_names.size()> lane_ends;
  std::fprintf(to, "{\"displayTimeUnit\": \"ms\", \"otherData\": {\"dropped_spans\": \"%zu\"},\n",
               log.dropped());
  std::fputs("\"traceEvents\": [\n", to);
  std::fputs("{\"ph\": \"M\", \"pid\": 1, \"name\": \"process_name\", \"args\": {\"name\": \"terrace\"}}",
             to);
  for (const trace_span* s : order) {
    const auto track = static_cast<std::size_t>(s->track);
    auto& ends = lane_ends[track];
    std::size_t lane = 0;
    while (lane < ends.size() && ends[lane] > s->begin) ++lane;
    if (lane == ends.size()) ends.push_back(0);
    ends[lane] = s->end;
    const auto from = static_cast<unsigned long long>(s->begin - origin);
    const auto took = static_cast<unsigned long long>(s->end - s->begin);
    std::fprintf(to,
                 ",\n{\"ph\": \"X\", \"pid\": 1, \"tid\": %zu, \"cat\": \"%s\", \"name\": \"%s\", "
                 "\"ts\": %llu.%03llu, \"dur\": %llu.%03llu, \"args\": {\"block\": %lu, \"bytes\": %llu}}",
                 track * lanes_a_track + lane, trace_track_names[track], s->name, from / 1000, from % 1000,
                 took / 1000, took % 1000, static_cast<unsigned long>(s->block),
                 static_cast<unsigned long long>(s->bytes));
  }
  for (std::size_t track = 0; track < lane_ends.size(); ++track)
    for (std::size_t lane = 0; lane < lane_ends[track].size(); ++lane)
      std::fprintf(to,
                   ",\n{\"ph\": \"M\", \"pid\": 1, \"tid\": %zu, \"name\": \"thread_name\", \"args\": "
                   "{\"name\": \"%s %zu\"}}",
                   track * lanes_a_track + lane, trace_track_names[track], lane);
  std::fputs("\n]}\n", to);
  if (std::ferror(to) != 0 || std::fflush(to) != 0)
    return fail(errc::io_error, "a trace could not be written", errno);
  return {};
}

}  // namespace terrace
