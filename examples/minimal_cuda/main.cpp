// An engine with its own stream and kernels decodes over a context four times its budget of device memory; then the
// last token's attention is compared with the host's. Prints one line. The exit status is 1, with one sentence, if
// there is no device or the results differ.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <vector>

#include "engine.hpp"
#include "terrace/cuda/decode.hpp"
#include "terrace/cuda/pinned_ram.hpp"
#include "terrace/cuda/vram.hpp"
#include "terrace/medium/nvme.hpp"
#include "terrace/terrace.hpp"
using namespace terrace;
using namespace engine;

using kv_cache =
    tiered_cache<tier<vram>,              // hot: the engine's kernels read and write it
                 tier<pinned_ram, q8_0>,  // warm: goes over the link as it is, decoded on the device
                 tier<nvme, q8_0>,        // cool
                 lru>;

constexpr std::uint32_t prompt = 2048, steps = 32;

int fail(const error& e) { return std::fprintf(stderr, "minimal_cuda: %s\n", e.message().c_str()), 1; }
int fail(cudaError_t e) { return fail(cuda::error_of(e, "CUDA failed")); }

kv_layout layout() {
  return {{{.layers = layers, .tokens = page_tokens, .k = {kv_heads, dim}, .v = {kv_heads, dim}}}};
}

// What the device should find: attention over the same keys and values, all of them in host memory.
std::vector<float> attention_on_the_host(std::uint32_t layer) {
  context ctx{{}};
  auto cache = tiered_cache<tier<ram>, lru>::open(ctx, layout(), {.capacity = 16_MiB});
  std::vector<float> query(q_heads * dim), out(q_heads * dim);
  if (!cache) return out;
  auto sequence = cache->make_sequence();
  for (std::uint32_t position = 0; position < prompt + steps; ++position) {
    auto token = sequence.reserve(1);
    if (!token) return out;
    for (std::uint32_t l = 0; l < layers; ++l)
      for (std::uint32_t head = 0; head < kv_heads; ++head)
        for (std::uint32_t d = 0; d < dim; ++d) {
          token->k(l).row<fp16>(0, head)[d] = to_fp16(key_of(position, l, head, d));
          token->v(l).row<fp16>(0, head)[d] = to_fp16(value_of(position, l, head, d));
        }
    if (position + 1 == prompt + steps) {
      for (std::uint32_t i = 0; i < query.size(); ++i) query[i] = query_of(position, layer, i / dim, i % dim);
      if (!ctx.sync_wait(stream(*cache, sequence, *token, layer, query, out))) out.clear();
    }
    sequence.commit(std::move(*token), 1);
  }
  return out;
}

int decode(cudaStream_t stream, std::vector<fp16>& result) {
  context ctx{{.codec_threads = 1}};  // ends before the stream, which its link uses
  auto cache = kv_cache::open(ctx, layout(), {.capacity = 1_MiB, .stream = stream}, {.capacity = 1_MiB},
                              {.capacity = 8_MiB});
  if (!cache) return fail(cache.error());
  auto tokens = cache->make_sequence();
  auto batch = cuda::batch::make(
      *cache,
      {.sequences = 1, .pages = 256, .tokens = page_tokens, .align = 2, .kernels = engine::device_kernels()});
  if (!batch) return fail(batch.error());
  auto attention = cuda::decode_attention<fp16, dim>::make(**batch, {.q_heads = q_heads, .split_blocks = 2});
  if (!attention) return fail(attention.error());
  sequence* const all[] = {&tokens};
  if (auto assigned = (*batch)->assign(all); !assigned) return fail(assigned.error());
  auto buffers = cuda::device_tables::make((page_tokens + 1) * q_heads * dim * sizeof(fp16));
  if (!buffers) return fail(buffers.error());
  auto* const queries = buffers->as<fp16>();
  auto* const out = queries + page_tokens * q_heads * dim;

  for (std::uint32_t position = 0, count = page_tokens; position < prompt + steps; position += count) {
    if (position == prompt) count = 1;  // the prompt by whole pages, then a token at a time
    cache->advance_step(position);
    auto slots = (*batch)->reserve(std::vector{count}, stream);  // out_of_capacity shows here, at once
    if (!slots) return fail(slots.error());
    auto* const pages = const_cast<std::byte*>((*batch)->pages());
    for (std::uint32_t layer = 0; layer < layers; ++layer) {
      const new_tokens written{slots->mapping(layer), position, count, layer};
      if (const auto e = project(written, pages, cuda::batch::page_stride, queries, stream); e != cudaSuccess)
        return fail(e);
      if (count == 1)
        if (auto done = attention->run(layer, queries, out, stream); !done) return fail(done.error());
      ctx.poll();  // blocks leave and arrive meanwhile
    }
    (*batch)->commit(std::vector{count});
  }
  result.resize(q_heads * dim);
  cudaError_t e =
      cudaMemcpyAsync(result.data(), out, result.size() * sizeof(fp16), cudaMemcpyDeviceToHost, stream);
  if (e == cudaSuccess) e = cudaStreamSynchronize(stream);  // the only wait for the device
  if (e != cudaSuccess) return fail(e);
  const tier_stats& warm = cache->stats().tiers[1];
  std::printf("%u tokens, %u KiB of KV through %u KiB of device memory; %zu KiB warm, ", prompt + steps,
              (prompt + steps) * layers * kv_heads * dim / 256, 1024u, warm.resident_bytes >> 10);
  return 0;
}

int main() {
  if (auto device = cuda::probe_device(); !device) return fail(device.error());
  cudaStream_t stream = nullptr;
  if (const auto e = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking); e != cudaSuccess)
    return fail(e);
  std::vector<fp16> found;
  int status = decode(stream, found);
  if (status == 0) {
    const std::vector<float> right = attention_on_the_host(layers - 1);
    float worst = right.size() == found.size() ? 0.0f : 1.0f;
    for (std::size_t i = 0; i < found.size() && i < right.size(); ++i)
      worst = std::max(worst, std::abs(to_float(found[i]) - right[i]));
    std::printf("at most %.4f from the host's attention\n", static_cast<double>(worst));
    status = worst < 0.05f ? 0 : 1;  // q8_0 keeps about two digits
    if (status != 0) std::fprintf(stderr, "minimal_cuda: the device's attention is not that of the host\n");
  }
  static_cast<void>(cudaStreamDestroy(stream));
  return status;
}
