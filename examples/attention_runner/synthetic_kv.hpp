#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numbers>
#include <span>
#include <vector>

#include "model_shape.hpp"
#include "terrace/core/element.hpp"
#include "terrace/core/mix64.hpp"

namespace runner {

/// Keys, values and queries that no model computed: normally distributed, the same for the same seed and the same
/// place, so that a reference can make them again and nothing large is kept.
///
/// Making billions of normal numbers takes longer than storing them on a disk. So a million are made, and each row is
/// a stretch of them that begins where a hash of its place says.
class synthetic_kv {
 public:
  enum class plane : std::uint8_t { k, v };

  explicit synthetic_kv(const model_shape& shape, std::uint64_t seed = 1) : shape_(shape), seed_(seed) {
    halves_.reserve(pool_values);
    values_.reserve(pool_values);
    std::uint64_t state = seed;
    while (halves_.size() < pool_values) {  // Box and Muller
      const double u = uniform(state = mix(state + 1)), angle = uniform(state = mix(state + 1));
      const double radius = std::sqrt(-2 * std::log(u));
      push(radius * std::cos(2 * std::numbers::pi * angle));
      push(radius * std::sin(2 * std::numbers::pi * angle));
    }
  }

  const model_shape& shape() const noexcept { return shape_; }

  /// One token's key or value of one KV head, as stored, and as the numbers that this stands for. `sequence` tells
  /// apart what several sequences decode; 0 is what they share.
  std::span<const terrace::fp16> row(plane p, std::uint32_t layer, std::uint32_t kv_head, std::uint64_t token,
                                     std::uint32_t sequence = 0) const noexcept {
    return std::span(halves_).subspan(start(p, layer, kv_head, token, sequence), shape_.head_dim);
  }
  std::span<const float> values(plane p, std::uint32_t layer, std::uint32_t kv_head, std::uint64_t token,
                                std::uint32_t sequence = 0) const noexcept {
    return std::span(values_).subspan(start(p, layer, kv_head, token, sequence), shape_.head_dim);
  }

  /// Writes the queries of the token at `position`, [q_head][dim]. Each head looks for one of the first `context`
  /// tokens: its query is that token's key, scaled so that the token gets about half of the softmax mass
  /// (a * sqrt(dim) - a * a / 2 = ln(context), as |key| is about sqrt(dim) and the other logits have a variance of
  /// a * a). Attention that missed a block, or read a wrong one, would be far off.
  void queries(std::uint32_t layer, std::uint64_t position, std::uint64_t context, std::uint32_t sequence,
               std::span<float> out) const noexcept {
    const double root = std::sqrt(static_cast<double>(shape_.head_dim));
    const double inside = shape_.head_dim - 2 * std::log(static_cast<double>(context));
    const auto sharp = static_cast<float>(inside > 0 ? root - std::sqrt(inside) : root);
    for (std::uint32_t h = 0; h < shape_.q_heads; ++h) {
      const std::uint64_t wanted = hash(layer, h, position, sequence + 0x71756572u) % context;
      const auto key = values(plane::k, layer, h / (shape_.q_heads / shape_.kv_heads), wanted);
      for (std::uint32_t d = 0; d < shape_.head_dim; ++d) out[h * shape_.head_dim + d] = sharp * key[d];
    }
  }

  /// A number that depends on nothing but the seed and its arguments, evenly spread over 64 bits.
  std::uint64_t hash(std::uint64_t a, std::uint64_t b, std::uint64_t c, std::uint64_t d) const noexcept {
    return mix(mix(mix(mix(seed_ ^ a) ^ b) ^ c) ^ d);
  }

 private:
  static constexpr std::size_t pool_values = std::size_t{1} << 20;

  std::size_t start(plane p, std::uint32_t layer, std::uint32_t kv_head, std::uint64_t token,
                    std::uint32_t sequence) const noexcept {
    const std::uint64_t place = (std::uint64_t{layer} * shape_.kv_heads + kv_head) * 2 + (p == plane::v);
    return mix(mix(seed_ ^ place ^ (std::uint64_t{sequence} << 32)) + token) %
           (pool_values - shape_.head_dim + 1);
  }
  // SplitMix64 of a number.
  static constexpr std::uint64_t mix(std::uint64_t x) noexcept {
    return terrace::mix64(x + 0x9e3779b97f4a7c15u);
  }
  // In (0, 1].
  static double uniform(std::uint64_t bits) noexcept {
    return (static_cast<double>(bits >> 11) + 1) * 0x1p-53;
  }
  void push(double x) {
    halves_.push_back(terrace::to_fp16(static_cast<float>(x)));
    values_.push_back(terrace::to_float(halves_.back()));
  }

  model_shape shape_;
  std::uint64_t seed_;
  std::vector<terrace::fp16> halves_;
  std::vector<float> values_;
};

}  // namespace runner
