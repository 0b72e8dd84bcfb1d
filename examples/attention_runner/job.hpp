#pragma once
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "ladder.hpp"
#include "llama.hpp"
#include "plan.hpp"
#include "scoring.hpp"
#include "terrace/terrace.hpp"

namespace runner {

/// Medians over a run's measured decode steps, in seconds a step: as it runs, its compute alone, its
/// transfers alone (codec work included).
struct step_times {
  double wall = 0, compute = 0, copy = 0;
  double overlap_ratio = 0;  ///< the median over the triples of hidden / hideable
};

/// What one run found.
struct run_result {
  run_plan plan;
  std::uint32_t context_tokens = 0, decode_tokens = 0;
  double prefill_s = 0, scoring_s = 0;
  std::vector<double> decode_s;  ///< of each decoded token
  double bits_per_byte = 0;
  std::vector<std::uint32_t> generated;
  std::vector<float> logits;  ///< of the scored tokens, to compare runs by
  step_times step;
  terrace::cache_stats stats;  ///< at the end of the decode, before steps were repeated for measuring

  double tokens_per_s() const {
    double sum = 0;
    for (const double s : decode_s) sum += s;
    return sum > 0 ? static_cast<double>(decode_s.size()) / sum : 0;
  }
};

/// A line on the terminal while a run goes on, and nothing anywhere else.
class progress {
 public:
  explicit progress(std::string what) : what_(std::move(what)), on_(::isatty(STDERR_FILENO) != 0) {}
  progress(const progress&) = delete;
  ~progress() {
    if (on_) std::fputs("\r\033[K", stderr);
  }
  void at(std::uint64_t done, std::uint64_t all) {
    const auto percent = static_cast<unsigned>(all == 0 ? 100 : done * 100 / all);
    if (!on_ || percent == last_) return;
    last_ = percent;
    std::fprintf(stderr, "\r\033[K%s: %u%%", what_.c_str(), percent);
  }

 private:
  std::string what_;
  bool on_;
  unsigned last_ = 101;
};

inline double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

inline double median(std::vector<double> values) {
  if (values.empty()) return 0;
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

/// Repeats the last decode step: whole, transfers alone, compute alone, in turn. Compute alone reads memory
/// that stands in for what is not in RAM: larger than a last-level cache, so that it comes from memory as the
/// real thing does.
inline terrace::result<step_times> measure_steps(ladder& kv) {
  constexpr std::size_t triples = 7;
  std::vector<std::byte> stand_in(std::size_t{64} << 20);
  std::vector<double> wall, compute, copy, overlap;
  for (std::size_t i = 0; i <= triples; ++i) {  // the first one warms up
    std::array<double, 3> took{};
    for (const step_parts parts : {step_parts::whole, step_parts::transfers, step_parts::compute}) {
      const auto start = std::chrono::steady_clock::now();
      if (auto done = kv.repeat_last_step(parts, stand_in); !done) return terrace::propagate(done.error());
      took[static_cast<std::size_t>(parts)] = seconds_since(start);
    }
    if (i == 0) continue;
    wall.push_back(took[0]);
    copy.push_back(took[1]);
    compute.push_back(took[2]);
    overlap.push_back((took[2] + took[1] - took[0]) / std::min(took[2], took[1]));
  }
  return step_times{median(wall), median(compute), median(copy), median(overlap)};
}

/// Prefills, scores, decodes: `text` is the context, then the tokens to be scored.
inline outcome<run_result> run(const run_plan& plan, const run_request& request, llama& model,
                               terrace::context& ctx, std::span<const std::uint32_t> text) {
  const auto failed = [&](const terrace::error& e, const char* doing) {
    return refuse(runner_error{std::string(doing) + ": " + e.message(), 1});
  };
  run_result r;
  r.plan = plan;
  r.context_tokens = request.context_tokens;
  r.decode_tokens = request.decode_tokens;
  auto opened = open_ladder(plan.codec, ctx, plan.layout, plan.sizes, request.policy,
                            request.prefetch == "none" ? terrace::any_prefetcher{} : terrace::layer_ahead{});
  if (!opened) return failed(opened.error(), "the cache cannot be opened");
  ladder& kv = **opened;

  using clock = std::chrono::steady_clock;
  progress bar(plan.codec);
  const std::uint64_t all = text.size() + request.decode_tokens;
  std::uint32_t at = 0;
  std::vector<float> next;  // logits that foretell token `at`
  const auto feed = [&](std::uint32_t count, logits_for wanted) -> terrace::result<std::span<const float>> {
    auto logits = model.forward(text.subspan(at, count), at, kv, wanted);
    if (logits) bar.at(at += count, all);
    return logits;
  };

  auto start = clock::now();
  while (at < request.context_tokens) {
    const std::uint32_t count = std::min(plan.chunk, request.context_tokens - at);
    auto logits = feed(count, logits_for::last);
    if (!logits) return failed(logits.error(), "prefill failed");
    next.assign(logits->begin(), logits->end());
  }
  r.prefill_s = seconds_since(start);

  // Teacher forcing: the logits after token i foretell token i + 1.
  start = clock::now();
  text_score score;
  while (at < text.size()) {
    const std::uint32_t first = at;
    const std::uint32_t count = std::min(plan.chunk, static_cast<std::uint32_t>(text.size()) - at);
    score.add(next, text.subspan(first, 1));
    auto logits = feed(count, logits_for::all);
    if (!logits) return failed(logits.error(), "teacher forcing failed");
    const std::size_t vocab = logits->size() / count;
    score.add(logits->first((count - 1) * vocab), text.subspan(first + 1, count - 1));
    r.logits.insert(r.logits.end(), logits->begin(), logits->end());
    next.assign(logits->end() - static_cast<std::ptrdiff_t>(vocab), logits->end());
  }
  r.bits_per_byte = score.bits_per_token();
  r.scoring_s = seconds_since(start);

  for (std::uint32_t i = 0; i < request.decode_tokens; ++i) {
    start = clock::now();
    const std::uint32_t token = greedy_token(next);
    r.generated.push_back(token);
    auto logits = model.forward({&token, 1}, at, kv, logits_for::last);
    if (!logits) return failed(logits.error(), "decode failed");
    next.assign(logits->begin(), logits->end());
    r.decode_s.push_back(seconds_since(start));
    bar.at(++at, all);
  }
  r.stats = kv.stats();
  if (plan.codec != "resident" && request.decode_tokens > 0) {
    auto measured = measure_steps(kv);
    if (!measured) return failed(measured.error(), "measuring a step failed");
    r.step = *measured;
  }
  return r;
}

}  // namespace runner
