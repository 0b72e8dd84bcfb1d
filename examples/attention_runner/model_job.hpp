#pragma once
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "llama.hpp"
#include "model_recomputation.hpp"
#include "open_ladder.hpp"
#include "progress.hpp"
#include "run_result.hpp"
#include "scoring.hpp"

namespace runner {

/// A checkpoint's model over one ladder: prefill, scoring by teacher forcing, greedy decode.
class model_job {
 public:
  /// `text` is the context, then the tokens to be scored. All of it is referred to.
  model_job(llama& model, const run_request& request, std::span<const std::uint32_t> text)
      : model_(model),
        request_(request),
        text_(text),
        history_(text.begin(), text.end()),
        second_model_(model.another()),
        recomputation_(second_model_, history_) {}
  model_job(model_job&&) = delete;

  outcome<run_result> run(const run_plan& plan, terrace::context& ctx) {
    run_result r;
    r.plan = plan;
    r.context_tokens = request_.context_tokens;
    r.scored_tokens = request_.scored_tokens;
    r.decode_tokens = request_.decode_tokens;
    r.attend = request_.attend.name;
    auto opened = open_ladder(ctx, plan, request_.policy, prefetcher_named(request_.prefetch, plan));
    if (!opened) return refuse_opening(opened.error());
    ladder& kv = **opened;
    kv.repair_with(recomputation_, request_.inject);
    if (request_.attend.selects()) kv.select_by(request_.attend);
    progress bar(plan.codec);
    bar_ = &bar;

    auto start = std::chrono::steady_clock::now();
    if (auto done = prefill(kv, plan.chunk); !done) return failed(done.error(), "prefill failed");
    r.prefill_s = seconds_since(start);
    if (request_.control) {
      auto found = hide_far_context(kv, plan.chunk);
      if (!found) return failed(found.error(), "scoring without the far context failed");
      r.control = *found;
    }
    // A selection is one of a step: the scored tokens come one at a time then, as they do in a decode.
    if (kv.selector() != nullptr) kv.selector()->start();
    start = std::chrono::steady_clock::now();
    auto scored = score(kv, kv.selector() != nullptr ? 1 : plan.chunk, 0, &r.logits);
    if (!scored) return failed(scored.error(), "teacher forcing failed");
    r.bits_per_byte = *scored;
    r.scoring_s = seconds_since(start);
    ctx.trace(request_.trace);
    if (auto done = decode(kv, r); !done) return failed(done.error(), "decode failed");
    ctx.trace(nullptr);
    r.stats = kv.stats();
    r.health = kv.health();
    r.recomputed_blocks = kv.recomputed_blocks();
    if (kv.selector() != nullptr) r.selection = kv.selector()->result();
    if (plan.codec != "resident") {
      auto measured = measure_steps({&*opened, 1});
      if (!measured) return failed(measured.error(), "measuring a step failed");
      r.step = *measured;
    }
    r.process_bytes_peak = process_bytes_peak();
    return r;
  }

 private:
  /// Tokens that the control leaves visible, at the granularity of blocks.
  static constexpr std::uint32_t control_window = 512;

  /// Of so many scored tokens one is attended over everything as well.
  static constexpr std::uint32_t checked_tokens = 64;

  void show(std::uint32_t at) { bar_->at(at, text_.size() + request_.decode_tokens); }

  terrace::result<void> prefill(ladder& kv, std::uint32_t chunk) {
    for (std::uint32_t at = 0; at < request_.context_tokens;) {
      const std::uint32_t count = std::min(chunk, request_.context_tokens - at);
      auto logits = model_.forward(text_.subspan(at, count), at, kv, logits_for::last);
      if (!logits) return terrace::propagate(logits.error());
      next_.assign(logits->begin(), logits->end());
      show(at += count);
    }
    return {};
  }

  // Teacher forcing: the logits after token i foretell token i + 1. `window` 0 hides nothing; else what lies
  // farther back than that is forgotten before each chunk. Returns bits per token.
  terrace::result<double> score(ladder& kv, std::uint32_t chunk, std::uint32_t window,
                                std::vector<float>* all_logits) {
    text_score found;
    std::vector<float> next = next_;  // foretells token `at`
    const auto end = static_cast<std::uint32_t>(text_.size());
    for (std::uint32_t at = request_.context_tokens; at < end;) {
      const std::uint32_t count = std::min(chunk, end - at);
      if (window != 0 && at > window) kv.forget_before(at - window);
      found.add(next, text_.subspan(at, 1));
      if (kv.selector() != nullptr) kv.selector()->check(at % checked_tokens == 0);
      auto logits = model_.forward(text_.subspan(at, count), at, kv, logits_for::all);
      if (!logits) return terrace::propagate(logits.error());
      const std::size_t vocab = logits->size() / count;
      found.add(logits->first((count - 1) * vocab), text_.subspan(at + 1, count - 1));
      if (all_logits != nullptr) all_logits->insert(all_logits->end(), logits->begin(), logits->end());
      next.assign(logits->end() - static_cast<std::ptrdiff_t>(vocab), logits->end());
      at += count;
      if (all_logits != nullptr) show(at);
    }
    if (kv.selector() != nullptr) kv.selector()->check(false);
    if (all_logits != nullptr) next_ = std::move(next);
    return found.bits_per_token();
  }

  // The same text, scored by a fork of the sequence that lets go of everything but the nearest tokens, again
  // and again while it goes on. What the near tokens' own keys have taken in from the far ones stays.
  terrace::result<control_result> hide_far_context(ladder& kv, std::uint32_t chunk) {
    const std::unique_ptr<ladder> forgetful = kv.fork();
    auto scored = score(*forgetful, std::min(chunk, control_window), control_window, nullptr);
    if (!scored) return terrace::propagate(scored.error());
    return control_result{control_window, *scored};
  }

  terrace::result<void> decode(ladder& kv, run_result& r) {
    auto at = static_cast<std::uint32_t>(text_.size());
    for (std::uint32_t i = 0; i < request_.decode_tokens; ++i) {
      const auto start = std::chrono::steady_clock::now();
      const std::uint32_t token = greedy_token(next_);
      r.generated.push_back(token);
      history_.push_back(token);
      auto logits = model_.forward({&token, 1}, at, kv, logits_for::last);
      if (!logits) return terrace::propagate(logits.error());
      next_.assign(logits->begin(), logits->end());
      r.decode_s.push_back(seconds_since(start));
      show(++at);
    }
    return {};
  }

  llama& model_;
  const run_request& request_;
  std::span<const std::uint32_t> text_;
  std::vector<std::uint32_t> history_;  // the text, and what was generated since
  llama second_model_;                  // for blocks that are found lost while the first computes
  model_recomputation recomputation_;
  std::vector<float> next_;  // logits that foretell the next token
  progress* bar_ = nullptr;
};

}  // namespace runner
