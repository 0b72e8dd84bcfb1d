#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "../synthetic_kv.hpp"
#include "device_stream.hpp"
#include "terrace/core/element.hpp"

namespace runner {

/// What a model would have computed for one new token of each sequence, in device memory: queries, keys and values of
/// all layers; and room for the results. All of them are fp16.
class token_inputs {
 public:
  static terrace::result<token_inputs> make(const model_shape& shape, std::uint32_t sequences) {
    token_inputs t(shape, sequences);
    auto host = terrace::cuda::host_tables::make(t.bytes());
    if (!host) return terrace::propagate(host.error());
    auto device = terrace::cuda::device_tables::make(t.bytes());
    if (!device) return terrace::propagate(device.error());
    t.host_ = std::move(*host);
    t.device_ = std::move(*device);
    return t;
  }

  /// Makes those of the token at `position` and copies them up. Waits.
  terrace::result<void> upload(const synthetic_kv& kv, std::uint64_t position, std::uint64_t context,
                               const device_stream& stream) {
    for (std::uint32_t layer = 0; layer < shape_.layers; ++layer)
      for (std::uint32_t s = 0; s < sequences_; ++s) {
        const std::span<float> q = queries_of(s).subspan(layer * q_width(), q_width());
        kv.queries(layer, position, context, s, q);
        terrace::fp16* const rounded = at(host_->data(), queries_at(layer)) + s * q_width();
        for (std::size_t i = 0; i < q.size(); ++i) q[i] = to_float(rounded[i] = terrace::to_fp16(q[i]));
        for (std::uint32_t h = 0; h < shape_.kv_heads; ++h) {
          const std::size_t row = s * kv_width() + std::size_t{h} * shape_.head_dim;
          std::ranges::copy(kv.row(synthetic_kv::plane::k, layer, h, position, s),
                            at(host_->data(), keys_at(layer)) + row);
          std::ranges::copy(kv.row(synthetic_kv::plane::v, layer, h, position, s),
                            at(host_->data(), values_at(layer)) + row);
        }
      }
    if (auto copied = stream.copy(device_.data(), host_->data(), outputs_at(0) * sizeof(terrace::fp16));
        !copied)
      return copied;
    return stream.finish();
  }
  /// The results of all layers, [q_head][dim] each, of one sequence. Precondition: `download` was called.
  std::vector<std::vector<float>> outputs(std::uint32_t sequence) const {
    std::vector<std::vector<float>> all(shape_.layers);
    for (std::uint32_t layer = 0; layer < shape_.layers; ++layer) {
      const terrace::fp16* const from = at(host_->data(), outputs_at(layer)) + sequence * q_width();
      for (std::size_t i = 0; i < q_width(); ++i) all[layer].push_back(to_float(from[i]));
    }
    return all;
  }
  terrace::result<void> download(const device_stream& stream) {
    const std::size_t first = outputs_at(0) * sizeof(terrace::fp16);
    if (auto copied = stream.copy(host_->data() + first, device_.data() + first, bytes() - first); !copied)
      return copied;
    return stream.finish();
  }
  /// The queries as the device has them, [layer][q_head][dim].
  std::span<const float> queries(std::uint32_t sequence) const {
    return std::span(queries_).subspan(sequence * shape_.layers * q_width(), shape_.layers * q_width());
  }

  /// In device memory: [sequence][q_head][dim] of a layer, and [sequence][kv_head][dim].
  const terrace::fp16* device_queries(std::uint32_t layer) const {
    return at(device_.data(), queries_at(layer));
  }
  const terrace::fp16* device_keys(std::uint32_t layer) const { return at(device_.data(), keys_at(layer)); }
  const terrace::fp16* device_values(std::uint32_t layer) const {
    return at(device_.data(), values_at(layer));
  }
  terrace::fp16* device_outputs(std::uint32_t layer) const { return at(device_.data(), outputs_at(layer)); }

 private:
  token_inputs(const model_shape& shape, std::uint32_t sequences)
      : shape_(shape), sequences_(sequences), queries_(sequences * shape.layers * q_width()) {}

  // Offsets, in elements: for each layer the queries, keys and values, and then the outputs of all layers.
  std::size_t q_width() const { return std::size_t{shape_.q_heads} * shape_.head_dim; }
  std::size_t kv_width() const { return std::size_t{shape_.kv_heads} * shape_.head_dim; }
  std::size_t queries_at(std::uint32_t layer) const {
    return layer * sequences_ * (q_width() + 2 * kv_width());
  }
  std::size_t keys_at(std::uint32_t layer) const { return queries_at(layer) + sequences_ * q_width(); }
  std::size_t values_at(std::uint32_t layer) const { return keys_at(layer) + sequences_ * kv_width(); }
  std::size_t outputs_at(std::uint32_t layer) const {
    return queries_at(shape_.layers) + layer * sequences_ * q_width();
  }
  std::size_t bytes() const { return outputs_at(shape_.layers) * sizeof(terrace::fp16); }
  static terrace::fp16* at(std::byte* base, std::size_t element) {
    return reinterpret_cast<terrace::fp16*>(base) + element;
  }
  std::span<float> queries_of(std::uint32_t sequence) {
    return std::span(queries_).subspan(sequence * shape_.layers * q_width(), shape_.layers * q_width());
  }

  model_shape shape_;
  std::uint32_t sequences_;
  std::vector<float> queries_;  // [sequence][layer][q_head][dim]
  std::unique_ptr<terrace::cuda::host_tables> host_;
  terrace::cuda::device_tables device_;
};

}  // namespace runner
