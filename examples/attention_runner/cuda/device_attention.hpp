#pragma once
#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "../measure.hpp"
#include "../model_shape.hpp"
#include "../plan.hpp"
#include "device_ladder.hpp"
#include "device_stream.hpp"
#include "kernels.hpp"
#include "terrace/cuda/batch.hpp"
#include "terrace/cuda/calibrate.hpp"
#include "terrace/cuda/decode.hpp"

namespace runner {

/// The inputs of one layer's attention and the place of its results, in device memory: fp16, [token][head][dim], the
/// new tokens of all sequences in order.
struct layer_rows {
  const terrace::fp16 *q = nullptr, *k = nullptr, *v = nullptr;
  terrace::fp16* out = nullptr;
};

/// A cache whose hot tier is in device memory, the sequences that decode in it, and attention of their new tokens by
/// Terrace's kernels over the windows of a batch. Everything is enqueued on one stream, which outlives it.
class device_attention {
 public:
  /// A cache as the plan says, with one empty sequence. Steps have at most `most_tokens` new tokens of each of
  /// request.batch sequences. Errors: those of the runtime and of opening.
  static terrace::result<std::unique_ptr<device_attention>> open(
      const model_shape& shape, const run_request& request, const run_plan& plan, std::uint32_t most_tokens,
      const device_stream& stream, terrace::context& ctx) {
    std::unique_ptr<device_attention> made(new device_attention(shape, request, plan, stream, ctx));
    if (auto opened = made->open(most_tokens); !opened) return terrace::propagate(opened.error());
    return made;
  }

  terrace::kv_store& cache() noexcept { return *cache_; }
  terrace::cuda::host_link& link() noexcept { return *link_; }
  const device_stream& stream() const noexcept { return stream_; }
  terrace::sequence& first() noexcept { return sequences_.front(); }

  /// From here on a step covers all sequences, which share what the first one has by now.
  terrace::result<void> begin_decode() {
    while (sequences_.size() < request_.batch) sequences_.push_back(cache_->fork(first()));
    std::vector<terrace::sequence*> all;
    for (terrace::sequence& s : sequences_) all.push_back(&s);
    return batch_->assign(all);
  }

  // A step: reserve, attend of each layer in ascending order, commit.

  /// Makes room for `tokens` new tokens of each sequence. Errors: those of cuda::batch::reserve.
  terrace::result<void> reserve(std::uint32_t tokens) {
    auto slots = batch_->reserve(of_each(tokens), stream_.get());
    if (!slots) return terrace::propagate(slots.error());
    slots_ = *slots;
    one_token_ = tokens == 1;
    return {};
  }
  /// Writes the new tokens' keys and values, and attends. Enqueues; waits for nothing but a disk. Errors: those of the
  /// kernels and of cuda::batch::next.
  terrace::result<void> attend(std::uint32_t layer, const layer_rows& rows,
                               step_parts parts = step_parts::whole) {
    auto done = write(layer, rows);
    if (done && parts == step_parts::transfers) done = only_transfer(layer);
    if (done && parts != step_parts::transfers)
      done = (one_token_ ? attend_one_ : attend_several_)(layer, rows.q, rows.out, stream_.get());
    ctx_.poll();
    return done;
  }
  /// Keeps `kept` of the new tokens of each sequence, and ends the step.
  void commit(std::uint32_t kept) {
    batch_->commit(of_each(kept));
    end_step();
  }
  void end_step() { cache_->advance_step(cache_->control().step() + 1); }

  /// A step of one token of each sequence, of which it keeps `kept`; waits for the end of the step. Returns the
  /// seconds until then. Keeps nothing if it fails.
  using rows_of_layer = std::function<layer_rows(std::uint32_t layer)>;
  terrace::result<double> step(step_parts parts, std::uint32_t kept, const rows_of_layer& rows) {
    const auto start = std::chrono::steady_clock::now();
    batch_->stand_in(parts == step_parts::compute);
    if (auto room = reserve(1); !room) return terrace::propagate(room.error());
    terrace::result<void> done;
    for (std::uint32_t layer = 0; layer < shape_.layers && done; ++layer)
      done = attend(layer, rows(layer), parts);
    if (auto finished = stream_.finish(); done && !finished) done = finished;
    commit(done ? kept : 0);
    if (!done) return terrace::propagate(done.error());
    return seconds_since(start);
  }

  /// Repeats a step of one token and keeps nothing of it: whole, transfers alone, compute alone, in turn. Timed by
  /// the host's clock only, from the first call to the end of the stream's work.
  terrace::result<step_times> measure(const rows_of_layer& rows) {
    constexpr std::size_t triples = 7;
    std::vector<double> wall, compute, copy, overlap;
    for (std::size_t i = 0; i <= triples; ++i) {  // the first one warms up
      std::array<double, 3> took{};
      for (const step_parts parts : {step_parts::whole, step_parts::transfers, step_parts::compute}) {
        auto ran = step(parts, 0, rows);
        if (!ran) return terrace::propagate(ran.error());
        took[static_cast<std::size_t>(parts)] = *ran;
      }
      if (i == 0) continue;
      wall.push_back(took[0]);
      copy.push_back(took[1]);
      compute.push_back(took[2]);
      overlap.push_back((took[2] + took[1] - took[0]) / std::min(took[2], took[1]));
    }
    return step_times{median(wall), median(compute), median(copy), median(overlap), 0};
  }

 private:
  /// Attention of one layer on a stream, whatever the head dimension.
  using attend_layer = std::function<terrace::result<void>(std::uint32_t layer, const terrace::fp16* queries,
                                                           terrace::fp16* out, cudaStream_t)>;

  device_attention(const model_shape& shape, const run_request& request, const run_plan& plan,
                   const device_stream& stream, terrace::context& ctx)
      : shape_(shape), request_(request), plan_(plan), stream_(stream), ctx_(ctx) {}

  terrace::result<void> open(std::uint32_t most_tokens) {
    auto link = terrace::cuda::host_link::of(ctx_);
    if (!link) return terrace::propagate(link.error());
    link_ = *link;
    const terrace::cuda::kernel_set kernels = device_kernels();
    auto choice = terrace::cuda::calibrated(*link_, {.kernel = kernels.copy});
    if (!choice) return terrace::propagate(choice.error());
    link_->use(*choice);
    auto cache = open_device_ladder(ctx_, plan_, request_.policy, stream_.get());
    if (!cache) return terrace::propagate(cache.error());
    cache_ = std::move(*cache);
    sequences_.push_back(cache_->make_sequence());

    auto batch = terrace::cuda::batch::make(*cache_, {.sequences = request_.batch,
                                                      .pages = pages_of_a_layer(most_tokens),
                                                      .tokens = request_.batch * most_tokens,
                                                      .window_bytes = plan_.window_bytes,
                                                      .align = split_blocks(),
                                                      .kernels = kernels});
    if (!batch) return terrace::propagate(batch.error());
    batch_ = std::move(*batch);
    const auto make = [this](attend_layer& attend, std::uint32_t queries) {
      return shape_.head_dim == 64 ? make_attention<64>(attend, queries)
                                   : make_attention<128>(attend, queries);
    };
    if (auto made = make(attend_one_, 1); !made) return made;
    return most_tokens == 1 ? terrace::result<void>() : make(attend_several_, most_tokens);
  }
  template <std::uint32_t dim>
  terrace::result<void> make_attention(attend_layer& attend, std::uint32_t most_queries) {
    using decode_attention = terrace::cuda::decode_attention<terrace::fp16, dim>;
    auto made = decode_attention::make(
        *batch_, {.q_heads = shape_.q_heads, .most_queries = most_queries, .split_blocks = split_blocks()});
    if (!made) return terrace::propagate(made.error());
    attend = [shared = std::make_shared<decode_attention>(std::move(*made))](
                 std::uint32_t layer, const terrace::fp16* queries, terrace::fp16* out, cudaStream_t stream) {
      return shared->run(layer, queries, out, stream);
    };
    return {};
  }

  std::uint32_t split_blocks() const { return plan_.split_tokens / plan_.layout.groups[0].tokens; }
  // The pages of all sequences at the end: where everything is resident, a window may have them all.
  std::uint32_t pages_of_a_layer(std::uint32_t most_tokens) const {
    const std::uint32_t tokens =
        request_.context_tokens + request_.scored_tokens + request_.decode_tokens + most_tokens;
    return request_.batch * (tokens / plan_.layout.groups[0].tokens + 2);
  }
  std::vector<std::uint32_t> of_each(std::uint32_t tokens) const {
    return std::vector<std::uint32_t>(request_.batch, tokens);
  }
  terrace::result<void> write(std::uint32_t layer, const layer_rows& rows) {
    return write_tokens({.k = reinterpret_cast<const std::byte*>(rows.k),
                         .v = reinterpret_cast<const std::byte*>(rows.v),
                         .mapping = slots_.mapping(layer),
                         .pages = const_cast<std::byte*>(batch_->pages()),
                         .page_stride = terrace::cuda::batch::page_stride,
                         .page = terrace::cuda::page_of(plan_.layout.groups[0]),
                         .tokens = slots_.tokens()},
                        stream_.get());
  }
  terrace::result<void> only_transfer(std::uint32_t layer) {
    while (auto window = batch_->next(layer, stream_.get())) std::move(*window).release(stream_.get());
    if (batch_->failure()) return terrace::propagate(terrace::error(*batch_->failure()));
    return {};
  }

  const model_shape shape_;
  const run_request& request_;
  const run_plan& plan_;
  const device_stream& stream_;
  terrace::context& ctx_;
  terrace::cuda::host_link* link_ = nullptr;
  std::shared_ptr<terrace::kv_store> cache_;
  std::vector<terrace::sequence> sequences_;
  std::unique_ptr<terrace::cuda::batch> batch_;  // ends before its sequences, and these before their cache
  attend_layer attend_one_, attend_several_;     // of one new token of each sequence, and of more
  terrace::cuda::reserved_slots slots_;
  bool one_token_ = true;
};

}  // namespace runner
