#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>

#include "../kv_backend.hpp"
#include "device_attention.hpp"
#include "terrace/core/convert.hpp"

namespace runner {

/// The KV of one sequence with its hot tier on a device, for a model whose layers are computed on the host: keys,
/// values and queries of a chunk go up through pinned memory, layer by layer, and the results come down the same way.
/// All of them are fp16 there.
class device_backend final : public kv_backend {
 public:
  /// Chunks have at most `most_tokens` tokens. The arguments are referred to. Errors: those of
  /// device_attention::open.
  static terrace::result<std::unique_ptr<device_backend>> open(
      const model_shape& shape, const run_request& request, const run_plan& plan, std::uint32_t most_tokens,
      const device_stream& stream, terrace::context& ctx) {
    std::unique_ptr<device_backend> made(new device_backend(shape, most_tokens, stream));
    const std::size_t bytes = made->elements(most_tokens) * sizeof(terrace::fp16);
    auto host = terrace::cuda::host_tables::make(bytes);
    if (!host) return terrace::propagate(host.error());
    auto device = terrace::cuda::device_tables::make(bytes);
    if (!device) return terrace::propagate(device.error());
    made->host_ = std::move(*host);
    made->device_ = std::move(*device);
    auto attention = device_attention::open(shape, request, plan, most_tokens, stream, ctx);
    if (!attention) return terrace::propagate(attention.error());
    made->attention_ = std::move(*attention);
    if (auto begun = made->attention_->begin_decode(); !begun) return terrace::propagate(begun.error());
    return made;
  }
  ~device_backend() override {
    static_cast<void>(stream_.finish());  // copies that were enqueued before an error
    drop_reservation();
  }

  terrace::result<void> reserve(std::uint32_t tokens) override {
    if (tokens > most_tokens_)
      return terrace::fail(terrace::errc::invalid_argument, "a chunk is longer than the device has room for");
    drop_reservation();
    if (auto room = attention_->reserve(tokens); !room) return room;
    tokens_ = tokens;
    reserved_ = true;
    return {};
  }
  // All layers share this place: a layer has been copied up before the next one is written.
  std::span<terrace::fp16> k(std::uint32_t, std::uint32_t token, std::uint32_t kv_head) override {
    return head(at(host_->data()), token, kv_head);
  }
  std::span<terrace::fp16> v(std::uint32_t, std::uint32_t token, std::uint32_t kv_head) override {
    return head(at(host_->data()) + values_at(), token, kv_head);
  }
  /// Waits for the device.
  terrace::result<void> attend(std::uint32_t layer, std::span<const float> q, std::span<float> out) override {
    terrace::fp16* const host = at(host_->data());
    terrace::convert(q, std::span(host + queries_at(), q.size()));
    if (auto up = stream_.copy(device_.data(), host, results_at() * sizeof(terrace::fp16)); !up) return up;
    if (auto done = attention_->attend(layer, rows()); !done) return done;
    if (auto down = stream_.copy(host + results_at(), rows().out, out.size() * sizeof(terrace::fp16)); !down)
      return down;
    if (auto finished = stream_.finish(); !finished) return finished;
    terrace::convert(std::span<const terrace::fp16>(host + results_at(), out.size()), out);
    return {};
  }
  terrace::result<void> commit(std::uint32_t tokens) override {
    attention_->commit(tokens);
    reserved_ = false;
    return {};
  }

  /// Measures the attention of the last decoded token, over every layer. Every layer is given what the last one was,
  /// which takes the same time. Precondition: a single token was decoded last.
  terrace::result<step_times> measure() {
    return attention_->measure([this](std::uint32_t) { return rows(); });
  }
  terrace::kv_store& cache() noexcept { return attention_->cache(); }

 private:
  device_backend(const model_shape& shape, std::uint32_t most_tokens, const device_stream& stream)
      : shape_(shape), most_tokens_(most_tokens), stream_(stream) {}

  void drop_reservation() {
    if (reserved_) attention_->commit(0);
    reserved_ = false;
  }

  // Offsets of a chunk's rows, in elements, the same on the host and the device: keys, values, queries, and the
  // results.
  std::size_t q_width() const { return std::size_t{shape_.q_heads} * shape_.head_dim; }
  std::size_t kv_width() const { return std::size_t{shape_.kv_heads} * shape_.head_dim; }
  std::size_t elements(std::uint32_t tokens) const { return 2 * tokens * (kv_width() + q_width()); }
  std::size_t values_at() const { return tokens_ * kv_width(); }
  std::size_t queries_at() const { return 2 * values_at(); }
  std::size_t results_at() const { return queries_at() + tokens_ * q_width(); }
  static terrace::fp16* at(std::byte* base) { return reinterpret_cast<terrace::fp16*>(base); }
  std::span<terrace::fp16> head(terrace::fp16* rows, std::uint32_t token, std::uint32_t kv_head) const {
    return {rows + token * kv_width() + std::size_t{kv_head} * shape_.head_dim, shape_.head_dim};
  }
  layer_rows rows() const {
    terrace::fp16* const base = at(device_.data());
    return {.q = base + queries_at(), .k = base, .v = base + values_at(), .out = base + results_at()};
  }

  const model_shape shape_;
  const std::uint32_t most_tokens_;
  const device_stream& stream_;
  std::unique_ptr<terrace::cuda::host_tables> host_;
  terrace::cuda::device_tables device_;
  std::unique_ptr<device_attention> attention_;
  std::uint32_t tokens_ = 0;  // of the last reservation
  bool reserved_ = false;
};

}  // namespace runner
