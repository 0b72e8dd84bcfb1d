#pragma once
#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <vector>

#include "terrace/core/error.hpp"
#include "terrace/observe/trace_log.hpp"

namespace terrace {

/// Writes a log in Chrome's trace event format (complete events, "ph": "X", times in microseconds), which
/// Perfetto and chrome://tracing read. Overlapping spans of one track get separate lanes, so the lanes of `io` show
/// how many transfers were in flight. O(n log n). Errors: io_error.
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
