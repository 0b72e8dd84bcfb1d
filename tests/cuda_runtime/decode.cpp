// Attention over a context that does not fit into device memory: the real kernels, emulated, on the streams of the fake
// runtime, against a cache on the host.
#include "terrace/cuda/decode.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <optional>
#include <vector>

#include "catch.hpp"
#include "emulated_kernels.hpp"
#include "engine.hpp"
#include "terrace/attention/stream.hpp"
#include "terrace/codec/q8_0.hpp"
#include "terrace/cuda/attention.cuh"
#include "terrace/cuda/kernels.cuh"
#include "terrace/cuda/merge.cuh"
#include "terrace/cuda/pinned_ram.hpp"
#include "terrace/cuda/vram.hpp"
#include "terrace/execution/sync_wait.hpp"
#include "terrace/policy/lru.hpp"
#include "terrace/tiered_cache.hpp"

using namespace terrace;

namespace {

constexpr std::size_t block = pattern::block_bytes;
constexpr std::uint32_t layers = 2, q_heads = 4, dim = 64;
using on_host = tiered_cache<tier<ram>, tier<ram, q8_0>, lru>;
using on_device = tiered_cache<tier<vram>, tier<pinned_ram, q8_0>, lru>;

std::vector<fp16> queries_of(std::uint32_t tokens, std::uint32_t seed) {
  std::vector<fp16> q(std::size_t{tokens} * q_heads * dim);
  for (std::size_t i = 0; i < q.size(); ++i) q[i] = to_fp16(std::sin(static_cast<float>(i * 7 + seed * 131)));
  return q;
}

struct troubles {
  std::uint64_t forgotten = 0;    // tokens, from the fifth block on
  const char* refused = nullptr;  // a call that the first run of each layer makes in vain
};

// What decode attention gives for the last `tokens` tokens of a context, in the bits of the device.
std::vector<fp16> on_a_device(std::uint64_t seed, std::size_t hot, std::uint32_t context,
                              std::uint32_t tokens, std::uint32_t layer, bool kernels, troubles with = {}) {
  fake_cuda::reset({.seed = seed});
  std::vector<fp16> result;
  {
    engine e;
    terrace::context ctx{{.codec_threads = 0}};
    auto cache = on_device::open(ctx, pattern::layout(layers), {.capacity = hot * block, .stream = e.stream},
                                 {.capacity = 400 * block});
    REQUIRE(cache);
    auto batch =
        cuda::batch::make(*cache, {.sequences = 4,
                                   .pages = 64,
                                   .tokens = 8,
                                   .window_bytes = 4 * block,
                                   .align = 4,
                                   .kernels = kernels ? cuda::device_kernels() : cuda::kernel_set{}});
    REQUIRE(batch);
    auto decode = cuda::decode_attention<fp16, dim>::make(
        **batch, {.q_heads = q_heads, .most_queries = tokens, .split_blocks = 4});
    REQUIRE(decode);
    sequence s = cache->make_sequence();
    for (std::uint32_t at = 0; at < context; at += 16)
      REQUIRE(e.append(s, std::min(16u, context - at), layers, 1));
    REQUIRE(ctx.sync_wait(cache->flush()));
    s.forget(64, 64 + with.forgotten);
    sequence* const all[] = {&s};
    REQUIRE((*batch)->assign(all));
    auto slots = (*batch)->reserve(std::vector<std::uint32_t>{tokens}, e.stream);
    REQUIRE(slots);
    {
      // The new tokens, by the engine's own kernel.
      const layer_group g = cache->layout().groups[0];
      for (std::uint32_t l = 0; l < layers; ++l)
        fake_cuda::launch(e.stream, [=, mapping = slots->mapping(l), base = (*batch)->pages()] {
          for (std::uint32_t t = 0; t < tokens; ++t) {
            const auto slot = static_cast<std::size_t>(mapping[t]);
            auto* page = const_cast<std::byte*>(base) + slot / g.tokens * cuda::batch::page_stride;
            for (const bool values : {false, true})
              for (std::uint32_t d = 0; d < dim; ++d) {
                const fp16 x = pattern::element_at(1, l, values, 0, context + t, d);
                std::memcpy(page + (values ? g.v_offset() : g.k_offset()) +
                                slot % g.tokens * g.token_stride(g.k) + d * sizeof x,
                            &x, sizeof x);
              }
          }
        });
    }
    const auto q = queries_of(tokens, 5);
    result.resize(q.size());
    void *device_q = nullptr, *device_out = nullptr;
    REQUIRE(cudaMalloc(&device_q, q.size() * sizeof(fp16)) == cudaSuccess);
    REQUIRE(cudaMalloc(&device_out, q.size() * sizeof(fp16)) == cudaSuccess);
    REQUIRE(cudaMemcpyAsync(device_q, q.data(), q.size() * sizeof(fp16), cudaMemcpyDefault, e.stream) ==
            cudaSuccess);
    for (std::uint32_t l = 0; l <= layer; ++l) {
      const auto run = [&] {
        return decode->run(l, static_cast<const fp16*>(device_q), static_cast<fp16*>(device_out), e.stream);
      };
      if (with.refused != nullptr) {
        fake_cuda::fail_call(with.refused, cudaErrorMemoryAllocation);
        REQUIRE_FALSE(run());
      }
      REQUIRE(run());
    }
    REQUIRE(cudaMemcpyAsync(result.data(), device_out, q.size() * sizeof(fp16), cudaMemcpyDefault,
                            e.stream) == cudaSuccess);
    (*batch)->commit(std::vector<std::uint32_t>{tokens});
    REQUIRE(cudaFree(device_q) == cudaSuccess);
    REQUIRE(cudaFree(device_out) == cudaSuccess);
  }
  CHECK(emulator::take_faults().empty());
  return result;
}

std::vector<float> on_the_host(std::size_t hot, std::uint32_t context, std::uint32_t tokens,
                               std::uint32_t layer, std::uint64_t forgotten = 0) {
  terrace::context ctx{{.codec_threads = 0}};
  auto cache =
      on_host::open(ctx, pattern::layout(layers), {.capacity = hot * block}, {.capacity = 400 * block});
  REQUIRE(cache);
  sequence s = cache->make_sequence();
  for (std::uint32_t at = 0; at < context; at += 16)
    REQUIRE(pattern::append(s, std::min(16u, context - at), layers, 1));
  s.forget(64, 64 + forgotten);
  auto r = s.reserve(tokens);
  REQUIRE(r);
  pattern::write(*r, layers, 1);
  const auto q = queries_of(tokens, 5);
  std::vector<float> out(q.size());
  REQUIRE(ctx.sync_wait(stream(*cache, s, *r, layer, q, out)));
  return out;
}

double relative_error(const std::vector<fp16>& a, const std::vector<float>& b) {
  double error = 0, norm = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    error += std::pow(to_float(a[i]) - b[i], 2);
    norm += std::pow(b[i], 2);
  }
  return std::sqrt(error / norm);
}

}  // namespace

TEST_CASE("attention over what a device cannot hold is that over all of it on the host") {
  const std::uint32_t tokens = GENERATE(1u, 3u), layer = GENERATE(0u, 1u);
  CAPTURE(tokens, layer);
  const auto host = on_the_host(400, 700, tokens, layer);  // everything in tier 0: nothing was encoded
  const auto device = on_a_device(1, 400, 700, tokens, layer, true);
  CHECK(relative_error(device, host) < 2e-3);
  const auto streamed =
      on_a_device(2, 48, 700, tokens, layer, true);  // most of it through q8_0 in pinned memory
  CHECK(relative_error(streamed, host) < 2e-2);
}

TEST_CASE("the same bits, whatever order the streams run in and whoever decodes") {
  const auto once = on_a_device(3, 48, 500, 2, 1, true);
  for (std::uint64_t seed = 4; seed < 8; ++seed) CHECK(on_a_device(seed, 48, 500, 2, 1, true) == once);
}

TEST_CASE("a layer that failed half-way is attended from its beginning when it is asked for again") {
  for (const std::size_t hot : {400u, 48u}) {
    const auto right = on_a_device(3, hot, 500, 1, 0, true);
    CHECK(on_a_device(3, hot, 500, 1, 0, true, {.refused = "cudaMalloc"}) == right);
  }
  const auto right = on_a_device(3, 48, 500, 1, 1, true);
  CHECK(on_a_device(3, 48, 500, 1, 1, true, {.refused = "cudaMemcpyBatchAsync"}) == right);
}

TEST_CASE("a token attends on a device over what its sequence has not forgotten") {
  const auto host = on_the_host(400, 320, 1, 0, 128);
  CHECK(relative_error(on_a_device(1, 400, 320, 1, 0, true, {.forgotten = 128}), host) < 2e-3);
}

TEST_CASE("whoever is dropped between two layers changes no bit of the others, and is zeros itself") {
  const auto second_layer = [](std::optional<std::size_t> dropped) {
    fake_cuda::reset({.seed = 9});
    std::vector<fp16> result(3 * q_heads * dim);
    {
      engine e;
      terrace::context ctx{{.codec_threads = 0}};
      auto cache = on_device::open(ctx, pattern::layout(layers), {.capacity = 48 * block, .stream = e.stream},
                                   {.capacity = 200 * block});
      REQUIRE(cache);
      auto batch = cuda::batch::make(*cache, {.sequences = 3,
                                              .pages = 64,
                                              .window_bytes = 4 * block,
                                              .align = 4,
                                              .kernels = cuda::device_kernels()});
      REQUIRE(batch);
      auto decode = cuda::decode_attention<fp16, dim>::make(**batch, {.q_heads = q_heads, .split_blocks = 4});
      REQUIRE(decode);
      std::vector<sequence> sequences;
      std::vector<sequence*> all;
      for (std::uint32_t i = 0; i < 3; ++i) {
        sequences.push_back(cache->make_sequence());
        for (std::uint32_t at = 0; at < 160 + 32 * i; at += 16)
          REQUIRE(e.append(sequences.back(), 16, layers, 1 + i));
      }
      for (sequence& s : sequences) all.push_back(&s);
      REQUIRE((*batch)->assign(all));
      auto slots = (*batch)->reserve(std::vector<std::uint32_t>{1, 1, 1}, e.stream);
      REQUIRE(slots);
      fake_cuda::launch(e.stream, [=, g = cache->layout().groups[0], base = (*batch)->pages()] {
        for (std::uint32_t l = 0; l < layers; ++l)
          for (std::uint32_t t = 0; t < 3; ++t) {
            const auto slot = static_cast<std::size_t>(slots->mapping(l)[t]);
            auto* page = const_cast<std::byte*>(base) + slot / g.tokens * cuda::batch::page_stride;
            for (const std::size_t plane : {g.k_offset(), g.v_offset()})
              std::memset(page + plane + slot % g.tokens * g.token_stride(g.k), 0, dim * sizeof(fp16));
          }
      });
      const auto q = queries_of(3, 5);
      void *device_q = nullptr, *device_out = nullptr;
      REQUIRE(cudaMalloc(&device_q, q.size() * sizeof(fp16)) == cudaSuccess);
      REQUIRE(cudaMalloc(&device_out, q.size() * sizeof(fp16)) == cudaSuccess);
      REQUIRE(cudaMemcpyAsync(device_q, q.data(), q.size() * sizeof(fp16), cudaMemcpyDefault, e.stream) ==
              cudaSuccess);
      for (std::uint32_t l = 0; l < layers; ++l) {
        if (l == 1 && dropped) REQUIRE((*batch)->drop(*dropped, e.stream));
        REQUIRE(decode->run(l, static_cast<const fp16*>(device_q), static_cast<fp16*>(device_out), e.stream));
      }
      REQUIRE(cudaMemcpyAsync(result.data(), device_out, q.size() * sizeof(fp16), cudaMemcpyDefault,
                              e.stream) == cudaSuccess);
      (*batch)->commit(std::vector<std::uint32_t>{0, 0, 0});
      REQUIRE(cudaFree(device_q) == cudaSuccess);
      REQUIRE(cudaFree(device_out) == cudaSuccess);
    }
    CHECK(emulator::take_faults().empty());
    return result;
  };
  auto want = second_layer({});
  const std::size_t dropped = GENERATE(0u, 1u, 2u), each = q_heads * dim;
  std::fill_n(want.begin() + static_cast<std::ptrdiff_t>(dropped * each), each, fp16{});
  CHECK(second_layer(dropped) == want);
}

TEST_CASE("what decode attention refuses") {
  fake_cuda::reset();
  engine e;
  terrace::context ctx{{.codec_threads = 0}};
  auto cache = on_device::open(ctx, pattern::layout(layers), {.capacity = 64 * block, .stream = e.stream},
                               {.capacity = 64 * block});
  REQUIRE(cache);
  auto batch = cuda::batch::make(*cache, {.window_bytes = block, .align = 4});
  REQUIRE(batch);
  CHECK(cuda::decode_attention<fp16, 128>::make(**batch, {.q_heads = 4}).error().code ==
        errc::invalid_argument);
  CHECK(cuda::decode_attention<fp16, 64>::make(**batch, {.q_heads = 0}).error().code ==
        errc::invalid_argument);
  CHECK(cuda::decode_attention<fp16, 64>::make(**batch, {.q_heads = 4, .split_blocks = 8}).error().code ==
        errc::invalid_argument);
  CHECK(cuda::decode_attention<fp16, 64>::make(**batch, {.q_heads = 4, .split_blocks = 0}).error().code ==
        errc::invalid_argument);
  CHECK(cuda::batch::make(*cache, {.align = 0}).error().code == errc::invalid_argument);

  auto decode =
      cuda::decode_attention<fp16, 64>::make(**batch, {.q_heads = 4, .most_queries = 2, .split_blocks = 4});
  REQUIRE(decode);
  sequence s = cache->make_sequence();
  for (int i = 0; i < 10; ++i) REQUIRE(e.append(s, 16, layers, 1));
  sequence* const all[] = {&s};
  REQUIRE((*batch)->assign(all));
  const auto run = [&](std::uint32_t layer, std::uint32_t tokens) {
    REQUIRE((*batch)->reserve(std::vector<std::uint32_t>{tokens}, e.stream));
    const auto done = decode->run(layer, nullptr, nullptr, e.stream);
    (*batch)->commit(std::vector<std::uint32_t>{0});
    REQUIRE_FALSE(done);
    return done.error().code;
  };
  CHECK(run(0, 3) == errc::invalid_argument);
  CHECK(run(layers, 1) == errc::invalid_argument);
  s.forget(32, 64);  // then the second query would be told of the wrong tokens
  CHECK(run(0, 2) == errc::unavailable);
}
