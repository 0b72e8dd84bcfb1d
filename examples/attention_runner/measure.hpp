#pragma once
#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <span>
#include <vector>

#include "interruption.hpp"
#include "ladder.hpp"

namespace runner {

inline double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

inline double median(std::vector<double> values) {
  if (values.empty()) return 0;
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

/// The peak resident memory of this process, in bytes; 0 where the system does not say.
inline std::size_t process_bytes_peak() {
  std::FILE* const status = std::fopen("/proc/self/status", "r");
  if (status == nullptr) return 0;
  unsigned long long kib = 0;
  for (char line[256]; std::fgets(line, sizeof line, status) != nullptr;)
    if (std::sscanf(line, "VmHWM: %llu kB", &kib) == 1) break;
  std::fclose(status);
  return static_cast<std::size_t>(kib) << 10;
}

/// Medians over a run's measured decode steps, in seconds a step: as it runs, its compute alone, its
/// transfers alone (codec work included).
struct step_times {
  double wall = 0, compute = 0, copy = 0;
  double overlap_ratio = 0;     ///< the median over the triples of hidden / hideable
  double read_bytes_per_s = 0;  ///< plain reading of memory, by the threads that compute
};

/// Bytes a second that plain reading of `memory` reaches on the owner and the pool together.
inline double read_bandwidth(terrace::context& ctx, terrace::const_bytes memory) {
  constexpr std::size_t piece = std::size_t{1} << 20;
  std::vector<std::uint64_t> sums(memory.size() / piece);
  const auto start = std::chrono::steady_clock::now();
  ctx.parallel_for(sums.size(), [&](std::size_t i) noexcept {
    const std::byte* at = memory.data() + i * piece;
    std::array<std::uint64_t, 8> sum{};  // independent of one another: memory is the limit, not the adder
    for (std::size_t b = 0; b < piece; b += sizeof sum)
      for (std::size_t s = 0; s < sum.size(); ++s) {
        std::uint64_t word;
        std::memcpy(&word, at + b + s * sizeof word, sizeof word);
        sum[s] += word;
      }
    for (const std::uint64_t s : sum) sums[i] += s;
  });
  const double took = seconds_since(start);
  volatile std::uint64_t used = 0;
  for (const std::uint64_t s : sums) used = used + s;
  return static_cast<double>(sums.size() * piece) / took;
}

/// Repeats the last decode step through repeat(step_parts, stand_in): whole, transfers alone, compute alone, in turn.
/// Compute alone reads memory that stands in for what is not in RAM: larger than a last-level cache, so that it comes
/// from memory as the real thing does. Disk times vary from one step to the next, so this runs as many triples as the
/// time allows.
template <class Repeat>
terrace::result<step_times> measure_steps(ladder& kv, Repeat repeat) {
  constexpr std::size_t least = 11, most = 41;
  constexpr double longest = 75;  // seconds
  constexpr std::size_t stand_in_bytes = std::size_t{128} << 20;
  auto arena = terrace::ram::open(kv.owner(), {.capacity = stand_in_bytes});
  if (!arena) return terrace::propagate(arena.error());
  std::byte* const memory = (*arena)->address(*(*arena)->reserve(stand_in_bytes));
  std::memset(memory, 0, stand_in_bytes);
  const terrace::const_bytes stand_in(memory, stand_in_bytes);

  std::vector<double> wall, compute, copy, overlap, read;
  const auto began = std::chrono::steady_clock::now();
  for (std::size_t i = 0; i <= least || (i <= most && seconds_since(began) < longest); ++i) {
    if (auto going = go_on(); !going) return terrace::propagate(going.error());
    std::array<double, 3> took{};
    for (const step_parts parts : {step_parts::whole, step_parts::transfers, step_parts::compute}) {
      const auto start = std::chrono::steady_clock::now();
      if (auto done = repeat(parts, stand_in); !done) return terrace::propagate(done.error());
      kv.end_step();
      took[static_cast<std::size_t>(parts)] = seconds_since(start);
    }
    const double bandwidth = read_bandwidth(kv.owner(), stand_in);
    if (i == 0) continue;  // it warms up
    wall.push_back(took[0]);
    copy.push_back(took[1]);
    compute.push_back(took[2]);
    read.push_back(bandwidth);
    overlap.push_back((took[2] + took[1] - took[0]) / std::min(took[2], took[1]));
  }
  return step_times{median(wall), median(compute), median(copy), median(overlap), median(read)};
}

}  // namespace runner
