#include "device_job.hpp"

#include <algorithm>
#include <array>
#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "../accuracy.hpp"
#include "../open_ladder.hpp"
#include "../progress.hpp"
#include "context_upload.hpp"
#include "device_ladder.hpp"
#include "kernels.hpp"
#include "terrace/cuda/calibrate.hpp"
#include "terrace/cuda/decode.hpp"
#include "token_inputs.hpp"

namespace runner {
namespace {

using terrace::fp16;
namespace cuda = terrace::cuda;

/// Attention of one layer on a stream, whatever the head dimension.
using attend_layer =
    std::function<terrace::result<void>(std::uint32_t layer, const fp16* queries, fp16* out, cudaStream_t)>;

template <std::uint32_t dim>
terrace::result<attend_layer> attention_of(cuda::batch& batch, std::uint32_t q_heads,
                                           std::uint32_t split_blocks) {
  using decode_attention = cuda::decode_attention<fp16, dim>;
  auto made = decode_attention::make(batch, {.q_heads = q_heads, .split_blocks = split_blocks});
  if (!made) return terrace::propagate(made.error());
  auto shared = std::make_shared<decode_attention>(std::move(*made));
  return attend_layer([shared](std::uint32_t layer, const fp16* queries, fp16* out, cudaStream_t stream) {
    return shared->run(layer, queries, out, stream);
  });
}

/// One cache on the device, and the sequences that decode in it.
class device_job {
 public:
  device_job(const model_shape& shape, const run_request& request, const run_plan& plan,
             terrace::context& ctx)
      : request_(request), plan_(plan), ctx_(ctx), kv_(shape), accuracy_(kv_, request) {}

  terrace::result<void> open(const device_stream& stream) {
    stream_ = &stream;
    auto link = cuda::host_link::of(ctx_);
    if (!link) return terrace::propagate(link.error());
    link_ = *link;
    const cuda::kernel_set kernels = device_kernels();
    auto choice = cuda::calibrated(*link_, {.kernel = kernels.copy});
    if (!choice) return terrace::propagate(choice.error());
    link_->use(*choice);
    auto cache = open_device_ladder(ctx_, plan_, request_.policy, stream.get());
    if (!cache) return terrace::propagate(cache.error());
    cache_ = std::move(*cache);
    sequences_.push_back(cache_->make_sequence());

    // Splits of about 256 tokens: windows of a few MiB then have enough of them to fill a device.
    const terrace::layer_group& group = plan_.layout.groups[0];
    const std::uint32_t split_blocks = std::max(1u, 256 / group.tokens);
    const bool resident = plan_.codec == "resident";
    auto batch = cuda::batch::make(*cache_, {.sequences = request_.batch,
                                             .pages = pages_of_a_layer(),
                                             .tokens = request_.batch,
                                             .window_bytes = resident ? group.block_bytes() : 0,
                                             .align = split_blocks,
                                             .kernels = kernels});
    if (!batch) return terrace::propagate(batch.error());
    batch_ = std::move(*batch);
    auto attend = kv_.shape().head_dim == 64 ? attention_of<64>(*batch_, kv_.shape().q_heads, split_blocks)
                                             : attention_of<128>(*batch_, kv_.shape().q_heads, split_blocks);
    if (!attend) return terrace::propagate(attend.error());
    attend_ = std::move(*attend);
    auto inputs = token_inputs::make(kv_.shape(), request_.batch);
    if (!inputs) return terrace::propagate(inputs.error());
    inputs_.emplace(std::move(*inputs));
    return {};
  }

  terrace::result<void> fill(progress& bar) {
    auto upload = context_upload::make(kv_, plan_.layout.groups[0], plan_.chunk);
    if (!upload) return terrace::propagate(upload.error());
    for (std::uint32_t at = 0; at < request_.context_tokens;) {
      const std::uint32_t count = std::min(plan_.chunk, request_.context_tokens - at);
      auto room = sequences_.front().reserve(count);
      if (!room) return terrace::propagate(room.error());
      if (auto written = upload->write(*room, *link_, *stream_, ctx_); !written) return written;
      sequences_.front().commit(std::move(*room), count);
      end_step();
      bar.at(at += count, request_.context_tokens + request_.decode_tokens);
    }
    if (auto done = stream_->finish(); !done) return done;
    while (sequences_.size() < request_.batch) sequences_.push_back(cache_->fork(sequences_.front()));
    std::vector<terrace::sequence*> all;
    for (terrace::sequence& s : sequences_) all.push_back(&s);
    return batch_->assign(all);
  }

  /// One token of every sequence; returns the seconds that it took. What is synthetic is made outside of the clock.
  terrace::result<double> decode(std::uint32_t step) {
    if (auto uploaded =
            inputs_->upload(kv_, request_.context_tokens + step, request_.context_tokens, *stream_);
        !uploaded)
      return terrace::propagate(uploaded.error());
    const auto start = std::chrono::steady_clock::now();
    if (auto ran = run_step(step_parts::whole, 1); !ran) return terrace::propagate(ran.error());
    const double took = seconds_since(start);
    end_step();
    if (auto back = inputs_->download(*stream_); !back) return terrace::propagate(back.error());
    for (std::uint32_t s = 0; s < request_.batch; ++s)
      accuracy_.compare(ctx_, step, s, inputs_->queries(s), inputs_->outputs(s));
    return took;
  }

  /// Repeats the last step and keeps nothing of it: whole, transfers alone, compute alone, in turn. One clock, the
  /// host's, from the first call to the end of the stream's work.
  terrace::result<step_times> measure() {
    constexpr std::size_t triples = 7;
    std::vector<double> wall, compute, copy, overlap;
    for (std::size_t i = 0; i <= triples; ++i) {  // the first one warms up
      std::array<double, 3> took{};
      for (const step_parts parts : {step_parts::whole, step_parts::transfers, step_parts::compute}) {
        const auto start = std::chrono::steady_clock::now();
        if (auto ran = run_step(parts, 0); !ran) return terrace::propagate(ran.error());
        took[static_cast<std::size_t>(parts)] = seconds_since(start);
        end_step();
      }
      if (i == 0) continue;
      wall.push_back(took[0]);
      copy.push_back(took[1]);
      compute.push_back(took[2]);
      overlap.push_back((took[2] + took[1] - took[0]) / std::min(took[2], took[1]));
    }
    return step_times{median(wall), median(compute), median(copy), median(overlap), 0};
  }

  difference error() const { return accuracy_.found(); }
  terrace::cache_stats stats() const { return cache_->stats(); }

 private:
  // Of all sequences at the end: a window may have them all, where everything is resident.
  std::uint32_t pages_of_a_layer() const {
    const std::uint32_t tokens = request_.context_tokens + request_.decode_tokens + 1;
    return request_.batch * (tokens / plan_.layout.groups[0].tokens + 2);
  }
  void end_step() { cache_->advance_step(cache_->control().step() + 1); }

  // Every layer of a step, and the wait for its end; `kept` of each sequence's new tokens stay.
  terrace::result<void> run_step(step_parts parts, std::uint32_t kept) {
    batch_->stand_in(parts == step_parts::compute);
    auto slots = batch_->reserve(std::vector<std::uint32_t>(request_.batch, 1), stream_->get());
    if (!slots) return terrace::propagate(slots.error());
    terrace::result<void> done;
    for (std::uint32_t layer = 0; layer < kv_.shape().layers && done; ++layer) {
      done = write(*slots, layer);
      if (done && parts == step_parts::transfers) done = only_transfer(layer);
      if (done && parts != step_parts::transfers)
        done = attend_(layer, inputs_->device_queries(layer), inputs_->device_outputs(layer), stream_->get());
      ctx_.poll();
    }
    if (auto finished = stream_->finish(); done && !finished) done = finished;
    batch_->commit(std::vector<std::uint32_t>(request_.batch, done ? kept : 0));
    return done;
  }
  terrace::result<void> write(const cuda::reserved_slots& slots, std::uint32_t layer) {
    return write_tokens({.k = reinterpret_cast<const std::byte*>(inputs_->device_keys(layer)),
                         .v = reinterpret_cast<const std::byte*>(inputs_->device_values(layer)),
                         .mapping = slots.mapping(layer),
                         .pages = const_cast<std::byte*>(batch_->pages()),
                         .page_stride = cuda::batch::page_stride,
                         .page = cuda::page_of(plan_.layout.groups[0]),
                         .tokens = slots.tokens()},
                        stream_->get());
  }
  terrace::result<void> only_transfer(std::uint32_t layer) {
    while (auto window = batch_->next(layer, stream_->get())) std::move(*window).release(stream_->get());
    if (batch_->failure()) return terrace::propagate(terrace::error(*batch_->failure()));
    return {};
  }

  const run_request& request_;
  const run_plan& plan_;
  terrace::context& ctx_;
  const device_stream* stream_ = nullptr;
  cuda::host_link* link_ = nullptr;
  synthetic_kv kv_;
  accuracy accuracy_;
  std::shared_ptr<terrace::kv_store> cache_;
  std::vector<terrace::sequence> sequences_;
  std::unique_ptr<cuda::batch> batch_;  // ends before its sequences, and these before their cache
  attend_layer attend_;
  std::optional<token_inputs> inputs_;
};

}  // namespace

outcome<run_result> run_on_device(const model_shape& shape, const run_request& request, const run_plan& plan,
                                  const terrace::context::options& threads) {
  if (shape.head_dim != 64 && shape.head_dim != 128)
    return refuse("--device cuda attends heads of 64 and 128 elements, not of " +
                  std::to_string(shape.head_dim));
  const auto device = cuda::probe_device();
  if (!device) return failed(device.error(), "--device cuda");
  auto stream = device_stream::make();
  if (!stream) return failed(stream.error(), "--device cuda");
  auto link = (*stream)->link_bytes_per_s();
  if (!link) return failed(link.error(), "measuring the link failed");

  terrace::context ctx{threads};  // ends before the stream, which its link follows
  run_result r;
  r.plan = plan;
  r.context_tokens = request.context_tokens;
  r.decode_tokens = request.decode_tokens;
  r.batch = request.batch;
  device_memory_meter memory;
  device_job job(shape, request, plan, ctx);
  if (auto opened = job.open(**stream); !opened) return refuse_opening(opened.error());
  progress bar(plan.codec);
  const auto start = std::chrono::steady_clock::now();
  if (auto filled = job.fill(bar); !filled) return failed(filled.error(), "filling the context failed");
  r.prefill_s = seconds_since(start);

  ctx.trace(request.trace);
  for (std::uint32_t step = 0; step < request.decode_tokens; ++step) {
    auto took = job.decode(step);
    if (!took) return failed(took.error(), "decode failed");
    r.decode_s.push_back(*took);
    memory.sample();
    bar.at(request.context_tokens + step + 1, request.context_tokens + request.decode_tokens);
  }
  ctx.trace(nullptr);
  r.error = job.error();
  r.stats = job.stats();
  if (plan.codec != "resident") {
    auto measured = job.measure();
    if (!measured) return failed(measured.error(), "measuring a step failed");
    r.step = *measured;
  }
  memory.sample();
  r.device = device_figures{device->name, *link, memory.peak()};
  r.process_bytes_peak = process_bytes_peak();
  return r;
}

}  // namespace runner
