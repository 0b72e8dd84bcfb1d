#include "device_job.hpp"

#include <algorithm>
#include <memory>
#include <optional>
#include <utility>

#include "../accuracy.hpp"
#include "../interruption.hpp"
#include "../progress.hpp"
#include "context_upload.hpp"
#include "device_attention.hpp"
#include "opened_device.hpp"
#include "token_inputs.hpp"

namespace runner {
namespace {

/// Synthetic KV in one cache on the device, and the sequences that decode over it.
class device_job {
 public:
  device_job(const model_shape& shape, const run_request& request, const run_plan& plan)
      : request_(request), plan_(plan), kv_(shape), accuracy_(kv_, request) {}

  terrace::result<void> open(const device_stream& stream, terrace::context& ctx) {
    auto attention = device_attention::open(kv_.shape(), request_, plan_, 1, stream, ctx);
    if (!attention) return terrace::propagate(attention.error());
    attention_ = std::move(*attention);
    auto inputs = token_inputs::make(kv_.shape(), request_.batch);
    if (!inputs) return terrace::propagate(inputs.error());
    inputs_.emplace(std::move(*inputs));
    return {};
  }

  terrace::result<void> fill(progress& bar) {
    auto upload = context_upload::make(kv_, plan_.layout.groups[0], plan_.chunk);
    if (!upload) return terrace::propagate(upload.error());
    terrace::sequence& first = attention_->first();
    for (std::uint32_t at = 0; at < request_.context_tokens;) {
      if (auto going = go_on(); !going) return going;
      const std::uint32_t count = std::min(plan_.chunk, request_.context_tokens - at);
      auto room = first.reserve(count);
      if (!room) return terrace::propagate(room.error());
      if (auto written = upload->write(*room, attention_->link(), stream(), owner()); !written)
        return written;
      first.commit(std::move(*room), count);
      attention_->end_step();
      bar.at(at += count, request_.context_tokens + request_.decode_tokens);
    }
    if (auto done = stream().finish(); !done) return done;
    return attention_->begin_decode();
  }

  /// Decodes one token of every sequence; returns the seconds that it took. Making synthetic data is not timed.
  terrace::result<double> decode(std::uint32_t step) {
    if (auto uploaded =
            inputs_->upload(kv_, request_.context_tokens + step, request_.context_tokens, stream());
        !uploaded)
      return terrace::propagate(uploaded.error());
    auto took = attention_->step(step_parts::whole, 1, rows());
    if (!took) return took;
    if (auto back = inputs_->download(stream()); !back) return terrace::propagate(back.error());
    for (std::uint32_t s = 0; s < request_.batch; ++s)
      accuracy_.compare(owner(), step, s, inputs_->queries(s), inputs_->outputs(s));
    return took;
  }

  /// Of the last step.
  terrace::result<step_times> measure() { return attention_->measure(rows()); }

  difference error() const { return accuracy_.found(); }
  terrace::kv_store& cache() { return attention_->cache(); }

 private:
  terrace::context& owner() { return cache().owner(); }
  const device_stream& stream() const { return attention_->stream(); }
  device_attention::rows_of_layer rows() const {
    return [this](std::uint32_t layer) {
      return layer_rows{.q = inputs_->device_queries(layer),
                        .k = inputs_->device_keys(layer),
                        .v = inputs_->device_values(layer),
                        .out = inputs_->device_outputs(layer)};
    };
  }

  const run_request& request_;
  const run_plan& plan_;
  synthetic_kv kv_;
  accuracy accuracy_;
  std::unique_ptr<device_attention> attention_;
  std::optional<token_inputs> inputs_;
};

}  // namespace

outcome<run_result> run_on_device(const model_shape& shape, const run_request& request, const run_plan& plan,
                                  const terrace::context::options& threads) {
  auto device = opened_device::open(shape.head_dim);
  if (!device) return refuse(device.error());
  terrace::context ctx{threads};  // ends before the stream, which its link uses
  run_result r = run_result::of(request, plan);
  device_job job(shape, request, plan);
  if (auto opened = job.open(device->stream(), ctx); !opened) return refuse_opening(opened.error());
  progress bar(plan.codec);
  const auto start = std::chrono::steady_clock::now();
  if (auto filled = job.fill(bar); !filled) return failed(filled.error(), "filling the context failed");
  r.prefill_s = seconds_since(start);

  ctx.trace(request.trace);
  for (std::uint32_t step = 0; step < request.decode_tokens; ++step) {
    if (auto going = go_on(); !going) return failed(going.error(), "decode failed");
    auto took = job.decode(step);
    if (!took) return failed(took.error(), "decode failed");
    r.decode_s.push_back(*took);
    device->sample();
    bar.at(request.context_tokens + step + 1, request.context_tokens + request.decode_tokens);
  }
  ctx.trace(nullptr);
  r.error = job.error();
  return device->finish(std::move(r), job);
}

}  // namespace runner
