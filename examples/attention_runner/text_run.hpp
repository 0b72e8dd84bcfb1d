#pragma once
#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <utility>
#include <vector>

#include "interruption.hpp"
#include "kv_backend.hpp"
#include "llama.hpp"
#include "progress.hpp"
#include "run_result.hpp"
#include "scoring.hpp"

namespace runner {

/// A model over a text, with its KV in any backend: prefill, scoring by teacher forcing, greedy decode, in this
/// order. What each of them finds, and how long it took, goes into a run_result.
class text_run {
 public:
  /// Called before each chunk of the text that is scored, with the position of its first token.
  using before_chunk = std::function<void(std::uint32_t)>;

  /// `text` is the context, then the tokens to be scored. All arguments are referred to.
  text_run(llama& model, const run_request& request, std::span<const std::uint32_t> text, progress& bar)
      : model_(model), request_(request), text_(text), bar_(bar), history_(text.begin(), text.end()) {}
  text_run(text_run&&) = delete;

  /// The text, and what was generated since.
  const std::vector<std::uint32_t>& history() const noexcept { return history_; }

  /// Feeds the context, `chunk` tokens at a time. The backend's errors.
  terrace::result<void> prefill(kv_backend& kv, std::uint32_t chunk, run_result& r) {
    const auto start = std::chrono::steady_clock::now();
    for (std::uint32_t at = 0; at < request_.context_tokens;) {
      if (auto going = go_on(); !going) return going;
      const std::uint32_t count = std::min(chunk, request_.context_tokens - at);
      auto logits = model_.forward(text_.subspan(at, count), at, kv, logits_for::last);
      if (!logits) return terrace::propagate(logits.error());
      next_.assign(logits->begin(), logits->end());
      show(at += count);
    }
    r.prefill_s = seconds_since(start);
    return {};
  }

  /// Feeds the tokens to be scored: bits per token, and all logits. The backend's errors.
  terrace::result<void> score(kv_backend& kv, std::uint32_t chunk, run_result& r,
                              const before_chunk& before = {}) {
    const auto start = std::chrono::steady_clock::now();
    auto found =
        teacher_forcing(kv, chunk, before, next_, [&](std::span<const float> logits, std::uint32_t at) {
          r.logits.insert(r.logits.end(), logits.begin(), logits.end());
          show(at);
        });
    if (!found) return terrace::propagate(found.error());
    r.bits_per_byte = *found;
    r.scoring_s = seconds_since(start);
    return {};
  }
  /// The same over a KV that is not used any further, such as a fork of it. Returns bits per token.
  terrace::result<double> score_apart(kv_backend& kv, std::uint32_t chunk, const before_chunk& before) {
    std::vector<float> next = next_;
    return teacher_forcing(kv, chunk, before, next, [](std::span<const float>, std::uint32_t) {});
  }

  /// Generates. The backend's errors.
  terrace::result<void> decode(kv_backend& kv, run_result& r) {
    auto at = static_cast<std::uint32_t>(text_.size());
    for (std::uint32_t i = 0; i < request_.decode_tokens; ++i) {
      if (auto going = go_on(); !going) return going;
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

 private:
  void show(std::uint32_t at) { bar_.at(at, text_.size() + request_.decode_tokens); }

  // The logits after token i predict token i + 1; `next` predicts the first one, and in the end the one after the
  // text. Returns bits per token.
  template <class Keep>
  terrace::result<double> teacher_forcing(kv_backend& kv, std::uint32_t chunk, const before_chunk& before,
                                          std::vector<float>& next, Keep keep) {
    text_score found;
    const auto end = static_cast<std::uint32_t>(text_.size());
    for (std::uint32_t at = request_.context_tokens; at < end;) {
      if (auto going = go_on(); !going) return terrace::propagate(going.error());
      const std::uint32_t count = std::min(chunk, end - at);
      if (before) before(at);
      found.add(next, text_.subspan(at, 1));
      auto logits = model_.forward(text_.subspan(at, count), at, kv, logits_for::all);
      if (!logits) return terrace::propagate(logits.error());
      const std::size_t vocab = logits->size() / count;
      found.add(logits->first((count - 1) * vocab), text_.subspan(at + 1, count - 1));
      next.assign(logits->end() - static_cast<std::ptrdiff_t>(vocab), logits->end());
      keep(*logits, at += count);
    }
    return found.bits_per_token();
  }

  llama& model_;
  const run_request& request_;
  std::span<const std::uint32_t> text_;
  progress& bar_;
  std::vector<std::uint32_t> history_;
  std::vector<float> next_;  // logits that predict the next token
};

}  // namespace runner
