#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>
#include <vector>

#include "../../examples/attention_runner/kv_backend.hpp"
#include "../../examples/attention_runner/model_config.hpp"
#include "terrace/core/element.hpp"

/// All KV in plain vectors, attention in double, one key after the other: slow, and obviously right. A row's
/// bits do not depend on the chunk that it comes in.
class dense_backend final : public runner::kv_backend {
 public:
  explicit dense_backend(const runner::model_config& config)
      : config_(config), k_(config.num_hidden_layers), v_(config.num_hidden_layers) {}

  terrace::result<void> reserve(std::uint32_t tokens) override {
    reserved_ = tokens;
    for (auto& layer : k_) layer.resize(std::size_t{committed_ + tokens} * config_.kv_size());
    for (auto& layer : v_) layer.resize(std::size_t{committed_ + tokens} * config_.kv_size());
    return {};
  }
  std::span<terrace::fp16> k(std::uint32_t layer, std::uint32_t token, std::uint32_t kv_head) override {
    return head(k_[layer], committed_ + token, kv_head);
  }
  std::span<terrace::fp16> v(std::uint32_t layer, std::uint32_t token, std::uint32_t kv_head) override {
    return head(v_[layer], committed_ + token, kv_head);
  }
  terrace::result<void> attend(std::uint32_t layer, std::span<const float> q, std::span<float> out) override {
    if (layer == failing_layer) return terrace::fail(terrace::errc::lost, "a block is lost");
    if (poisoned) std::fill(out.begin(), out.end(), std::nanf(""));
    if (poisoned) return {};
    const std::uint32_t dim = config_.head_dim, heads = config_.num_attention_heads;
    const std::uint32_t group = heads / config_.num_key_value_heads;
    std::vector<double> sum(dim);
    for (std::uint32_t row = 0; row < reserved_ * heads; ++row) {
      const std::uint32_t last = committed_ + row / heads, kv_head = row % heads / group;
      double total = 0, most = -INFINITY;
      sum.assign(dim, 0);
      for (std::uint32_t token = 0; token <= last; ++token) {
        const auto key = head(k_[layer], token, kv_head), value = head(v_[layer], token, kv_head);
        double score = 0;
        for (std::uint32_t i = 0; i < dim; ++i) score += double{q[row * dim + i]} * double{to_float(key[i])};
        score /= std::sqrt(static_cast<double>(dim));
        const double rescale = score > most ? std::exp(most - score) : 1.0;
        most = std::max(most, score);
        const double weight = std::exp(score - most);
        total = total * rescale + weight;
        for (std::uint32_t i = 0; i < dim; ++i)
          sum[i] = sum[i] * rescale + weight * double{to_float(value[i])};
      }
      for (std::uint32_t i = 0; i < dim; ++i) out[row * dim + i] = static_cast<float>(sum[i] / total);
    }
    return {};
  }
  terrace::result<void> commit(std::uint32_t tokens) override {
    committed_ += tokens;
    return {};
  }

  std::uint32_t committed() const noexcept { return committed_; }
  std::uint32_t failing_layer = 0xffffffffu;  ///< attend of this layer reports lost blocks
  bool poisoned = false;                      ///< attend gives NaN

 private:
  std::span<terrace::fp16> head(std::vector<terrace::fp16>& layer, std::uint32_t token,
                                std::uint32_t kv_head) const {
    return std::span(layer).subspan(
        std::size_t{token} * config_.kv_size() + std::size_t{kv_head} * config_.head_dim, config_.head_dim);
  }

  runner::model_config config_;
  std::uint32_t committed_ = 0;
  std::uint32_t reserved_ = 0;
  std::vector<std::vector<terrace::fp16>> k_, v_;  ///< [layer][token][kv_head][dim]
};
