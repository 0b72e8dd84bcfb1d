#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numbers>
#include <span>

#include "terrace/core/config.hpp"

namespace runner {

/// -log2 of the probability that softmax(logits) gives `token`. The sum of exponentials is in double and in
/// ascending order, so that the same logits give the same bits. Precondition: token < logits.size().
inline double surprisal_bits(std::span<const float> logits, std::uint32_t token) {
  TERRACE_ASSERT(token < logits.size(), "a token that is not in the vocabulary was scored");
  const double most = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - most);
  return (most - static_cast<double>(logits[token]) + std::log(sum)) / std::numbers::ln2;
}

/// The likeliest token; of several, the one with the lowest id.
inline std::uint32_t greedy_token(std::span<const float> logits) {
  return static_cast<std::uint32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

/// How well a model predicts a text that is fed to it chunk by chunk.
class text_score {
 public:
  /// Scores tokens.size() predictions: row i of `logits`, [token][vocab], is the prediction of tokens[i].
  void add(std::span<const float> logits, std::span<const std::uint32_t> tokens) {
    if (tokens.empty()) return;
    const std::size_t vocab = logits.size() / tokens.size();
    for (std::size_t i = 0; i < tokens.size(); ++i)
      bits_ += surprisal_bits(logits.subspan(i * vocab, vocab), tokens[i]);
    tokens_ += tokens.size();
  }
  std::size_t tokens() const noexcept { return tokens_; }
  /// The mean of -log2 p over the tokens scored: bits per byte where tokens are bytes. 0 before the first.
  double bits_per_token() const noexcept { return tokens_ == 0 ? 0 : bits_ / static_cast<double>(tokens_); }

 private:
  double bits_ = 0;
  std::size_t tokens_ = 0;
};

/// Bits per byte of a whole text: text_score over one chunk.
inline double bits_per_byte(std::span<const float> logits, std::span<const std::uint32_t> bytes) {
  text_score score;
  score.add(logits, bytes);
  return score.bits_per_token();
}

}  // namespace runner
