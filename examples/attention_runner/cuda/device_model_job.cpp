#include "device_model_job.hpp"

#include <algorithm>
#include <bit>
#include <memory>
#include <utility>

#include "../progress.hpp"
#include "../text_run.hpp"
#include "device_backend.hpp"
#include "opened_device.hpp"

namespace runner {
namespace {

// Tokens of a chunk: as the plan says, but no more than keep the states of their splits within a few MiB. Those lie
// outside the cache's memory, and a window over resident KV has all splits of a sequence.
std::uint32_t chunk_of(const model_shape& shape, const run_plan& plan, std::size_t tokens) {
  constexpr std::size_t room = std::size_t{16} << 20;
  const std::size_t splits = tokens / plan.split_tokens + 2;
  const std::size_t row = splits * (shape.head_dim * sizeof(float) + sizeof(terrace::softmax_row));
  const std::size_t most = std::max<std::size_t>(1, room / (row * shape.q_heads));
  return static_cast<std::uint32_t>(std::min<std::size_t>(plan.chunk, std::bit_floor(most)));
}

}  // namespace

outcome<run_result> run_model_on_device(llama& model, const run_request& request, const run_plan& plan,
                                        std::span<const std::uint32_t> text, terrace::context& ctx) {
  const model_config& c = model.config();
  const model_shape shape{"model", c.num_hidden_layers, c.num_attention_heads, c.num_key_value_heads,
                          c.head_dim};
  auto device = opened_device::open(shape.head_dim);
  if (!device) return refuse(device.error());
  const std::uint32_t chunk = chunk_of(shape, plan, text.size() + request.decode_tokens);
  auto opened = device_backend::open(shape, request, plan, chunk, device->stream(), ctx);
  if (!opened) return refuse_opening(opened.error());
  device_backend& kv = **opened;

  run_result r = run_result::of(request, plan);
  progress bar(plan.codec);
  text_run reading(model, request, text, bar);
  if (auto done = reading.prefill(kv, chunk, r); !done) return failed(done.error(), "prefill failed");
  if (auto done = reading.score(kv, chunk, r); !done) return failed(done.error(), "teacher forcing failed");
  device->sample();
  ctx.trace(request.trace);
  if (auto done = reading.decode(kv, r); !done) return failed(done.error(), "decode failed");
  ctx.trace(nullptr);
  return device->finish(std::move(r), kv);
}

}  // namespace runner
