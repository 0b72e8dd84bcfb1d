#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "block_selector.hpp"
#include "difference.hpp"
#include "measure.hpp"
#include "plan.hpp"
#include "terrace/cache/stats.hpp"
#include "terrace/cache/tier_health.hpp"

namespace runner {

/// What scoring found with all but the nearest tokens hidden: whether the far context matters at all.
struct control_result {
  std::uint32_t window_tokens = 0;
  double bits_per_byte = 0;
};

/// What a run on a CUDA device says of it.
struct device_figures {
  std::string name;
  double link_bytes_per_s = 0;      ///< plain copies of pinned memory to the device, in this run
  std::size_t vram_bytes_peak = 0;  ///< taken of the device's memory by this run, tables and all
};

/// What one run found.
struct run_result {
  run_plan plan;
  std::uint32_t context_tokens = 0, scored_tokens = 0, decode_tokens = 0, batch = 1;
  double prefill_s = 0, scoring_s = 0;
  std::vector<double> decode_s;  ///< of each step: one token of every sequence
  double bits_per_byte = 0;
  std::optional<control_result> control;
  std::vector<std::uint32_t> generated;
  std::vector<float> logits;                  ///< of the scored tokens, to compare runs by
  std::optional<device_figures> device;       ///< of a run on one
  std::optional<difference> error;            ///< where the run knows what its results should be
  std::string attend = "dense";               ///< which blocks it reads: as --attend says
  std::optional<selection_result> selection;  ///< where attention did not read everything
  step_times step;
  terrace::cache_stats stats;    ///< at the end of the decode, before steps were repeated for measuring
  terrace::cache_health health;  ///< likewise
  std::uint64_t recomputed_blocks = 0;  ///< by then
  std::size_t process_bytes_peak = 0;

  /// A result without any findings yet.
  static run_result of(const run_request& request, const run_plan& plan) {
    run_result r;
    r.plan = plan;
    r.context_tokens = request.context_tokens;
    r.scored_tokens = request.scored_tokens;
    r.decode_tokens = request.decode_tokens;
    r.batch = request.batch;
    r.attend = request.attend.name;
    return r;
  }
  double tokens_per_s() const {
    double sum = 0;
    for (const double s : decode_s) sum += s;
    return sum > 0 ? static_cast<double>(decode_s.size() * batch) / sum : 0;
  }
  /// Bytes a second that the step's compute alone reads: all of the KV, or a selection.
  double compute_bytes_per_s() const {
    const double share = selection ? selection->share_read() : 1;
    return step.compute > 0 ? share * static_cast<double>(plan.kv_bytes_total) / step.compute : 0;
  }
};

}  // namespace runner
