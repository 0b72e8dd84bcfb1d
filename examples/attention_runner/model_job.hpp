#pragma once
#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "llama.hpp"
#include "model_recomputation.hpp"
#include "open_ladder.hpp"
#include "progress.hpp"
#include "run_result.hpp"
#include "text_run.hpp"

namespace runner {

/// A checkpoint's model over one ladder on the host: what text_run does, with repair of lost blocks, attention to a
/// selection of blocks, the control, and the times of a step.
class model_job {
 public:
  /// `text` is the context, then the tokens to be scored. All arguments are referred to.
  model_job(llama& model, const run_request& request, std::span<const std::uint32_t> text)
      : model_(model), second_model_(model.another()), request_(request), text_(text) {}
  model_job(model_job&&) = delete;

  outcome<run_result> run(const run_plan& plan, terrace::context& ctx) {
    run_result r = run_result::of(request_, plan);
    progress bar(plan.codec);
    text_run text(model_, request_, text_, bar);
    model_recomputation anew(second_model_, text.history());
    auto opened = open_ladder(ctx, plan, request_.policy, prefetcher_named(request_.prefetch, plan));
    if (!opened) return refuse_opening(opened.error());
    ladder& kv = **opened;
    kv.repair_with(anew, request_.inject);
    if (request_.attend.selects()) kv.select_by(request_.attend);

    if (auto done = text.prefill(kv, plan.chunk, r); !done) return failed(done.error(), "prefill failed");
    if (request_.control) {
      auto found = hide_far_context(text, kv, plan.chunk);
      if (!found) return failed(found.error(), "scoring without the far context failed");
      r.control = *found;
    }
    if (auto done = score(text, kv, plan.chunk, r); !done)
      return failed(done.error(), "teacher forcing failed");
    ctx.trace(request_.trace);
    if (auto done = text.decode(kv, r); !done) return failed(done.error(), "decode failed");
    ctx.trace(nullptr);
    r.stats = kv.stats();
    r.health = kv.health();
    r.recomputed_blocks = kv.recomputed_blocks();
    if (kv.selector() != nullptr) r.selection = kv.selector()->result();
    if (plan.codec != "resident") {
      auto measured = measure_steps(kv, [&kv](step_parts parts, std::span<const std::byte> stand_in) {
        return kv.repeat_last_token(parts, stand_in);
      });
      if (!measured) return failed(measured.error(), "measuring a step failed");
      r.step = *measured;
    }
    r.process_bytes_peak = process_bytes_peak();
    return r;
  }

 private:
  /// Tokens that the control leaves visible, at the granularity of blocks.
  static constexpr std::uint32_t control_window = 512;

  /// One in this many scored tokens is also attended over everything.
  static constexpr std::uint32_t checked_tokens = 64;

  // A selection belongs to one step, so with a selector the scored tokens come one at a time, as in a decode.
  static terrace::result<void> score(text_run& text, ladder& kv, std::uint32_t chunk, run_result& r) {
    block_selector* const selector = kv.selector();
    if (selector == nullptr) return text.score(kv, chunk, r);
    selector->start();
    auto scored = text.score(kv, 1, r, [&](std::uint32_t at) { selector->check(at % checked_tokens == 0); });
    selector->check(false);
    return scored;
  }

  // The same text, scored by a fork of the sequence that forgets all but the nearest tokens, again and again as it
  // goes on. What the near tokens' own keys have taken in from the far ones stays.
  static terrace::result<control_result> hide_far_context(text_run& text, ladder& kv, std::uint32_t chunk) {
    const std::unique_ptr<ladder> forgetful = kv.fork();
    auto scored = text.score_apart(*forgetful, std::min(chunk, control_window), [&](std::uint32_t at) {
      if (at > control_window) forgetful->forget_before(at - control_window);
    });
    if (!scored) return terrace::propagate(scored.error());
    return control_result{control_window, *scored};
  }

  llama& model_;
  llama second_model_;  // for blocks that are found lost while the first computes
  const run_request& request_;
  std::span<const std::uint32_t> text_;
};

}  // namespace runner
