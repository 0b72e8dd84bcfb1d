// What blocks draw of the softmax mass on a device, as the cache's policies are told of it: the real kernels,
// emulated, on the streams of the fake runtime, beside a stream on the host.
#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "catch.hpp"
#include "emulated_kernels.hpp"
#include "engine.hpp"
#include "terrace/attention/stream.hpp"
#include "terrace/codec/q8_0.hpp"
#include "terrace/cuda/attention.cuh"
#include "terrace/cuda/decode.hpp"
#include "terrace/cuda/kernels.cuh"
#include "terrace/cuda/merge.cuh"
#include "terrace/cuda/pinned_ram.hpp"
#include "terrace/cuda/vram.hpp"
#include "terrace/execution/sync_wait.hpp"
#include "terrace/policy/attention_weighted.hpp"
#include "terrace/policy/lru.hpp"
#include "terrace/tiered_cache.hpp"

using namespace terrace;

namespace {

constexpr std::size_t block = pattern::block_bytes;
constexpr std::uint32_t layers = 2, q_heads = 4, dim = 64;

std::vector<fp16> queries_of(std::uint32_t tokens) {
  std::vector<fp16> q(std::size_t{tokens} * q_heads * dim);
  for (std::size_t i = 0; i < q.size(); ++i) q[i] = to_fp16(8 * std::sin(static_cast<float>(i * 7)));
  return q;
}

// A cache on a device, and a batch that decodes over it.
template <class Policy = attention_weighted>
struct device_decode {
  using type = tiered_cache<tier<vram>, tier<pinned_ram, q8_0>, Policy>;

  explicit device_decode(std::size_t hot, cuda::kernel_set kernels = cuda::device_kernels())
      : opened(type::open(ctx, pattern::layout(layers), {.capacity = hot * block, .stream = e.stream},
                          {.capacity = 400 * block})) {
    REQUIRE(opened);
    auto made = cuda::batch::make(*opened, {.sequences = 4,
                                            .pages = 64,
                                            .tokens = 8,
                                            .window_bytes = 4 * block,
                                            .align = 4,
                                            .kernels = kernels});
    REQUIRE(made);
    batch = std::move(*made);
    auto attention = cuda::decode_attention<fp16, dim>::make(
        *batch, {.q_heads = q_heads, .most_queries = 4, .split_blocks = 4});
    REQUIRE(attention);
    decode.emplace(std::move(*attention));
    for (void** p : {&queries, &out}) REQUIRE(cudaMalloc(p, 8 * q_heads * dim * sizeof(fp16)) == cudaSuccess);
  }
  device_decode(device_decode&&) = delete;
  ~device_decode() {
    for (void* p : {queries, out}) static_cast<void>(cudaFree(p));
  }

  void add(std::uint32_t tokens) {
    sequences.push_back(opened->make_sequence());
    for (std::uint32_t at = 0; at < tokens; at += 16)
      REQUIRE(e.append(sequences.back(), std::min(16u, tokens - at), layers, 1));
  }
  void assign() {
    std::vector<sequence*> all;
    for (sequence& s : sequences) all.push_back(&s);
    REQUIRE(batch->assign(all));
  }
  // The layers of a step that keeps nothing; `tokens` new ones in each sequence.
  result<void> step(std::uint32_t tokens) {
    const std::vector<std::uint32_t> each(sequences.size(), tokens);
    auto slots = batch->reserve(each, e.stream);
    REQUIRE(slots);
    const layer_group g = opened->layout().groups[0];
    for (std::uint32_t l = 0; l < layers; ++l)
      fake_cuda::launch(e.stream, [=, this, mapping = slots->mapping(l), base = batch->pages()] {
        for (std::size_t s = 0; s < sequences.size(); ++s)
          for (std::uint32_t t = 0; t < tokens; ++t) {
            const auto slot = static_cast<std::size_t>(mapping[s * tokens + t]);
            auto* page = const_cast<std::byte*>(base) + slot / g.tokens * cuda::batch::page_stride;
            for (const bool values : {false, true})
              for (std::uint32_t d = 0; d < dim; ++d) {
                const fp16 x = pattern::element_at(1, l, values, 0, sequences[s].length() + t, d);
                std::memcpy(page + (values ? g.v_offset() : g.k_offset()) +
                                slot % g.tokens * g.token_stride(g.k) + d * sizeof x,
                            &x, sizeof x);
              }
          }
      });
    const auto q = queries_of(tokens);
    for (std::size_t s = 0; s < sequences.size(); ++s)
      REQUIRE(cudaMemcpyAsync(static_cast<fp16*>(queries) + s * q.size(), q.data(), q.size() * sizeof(fp16),
                              cudaMemcpyDefault, e.stream) == cudaSuccess);
    if (before_decode) before_decode();
    result<void> done;
    for (std::uint32_t l = 0; l < layers && done; ++l)
      done = decode->run(l, static_cast<const fp16*>(queries), static_cast<fp16*>(out), e.stream);
    fake_cuda::drain();
    batch->commit(std::vector<std::uint32_t>(sequences.size(), 0));
    return done;
  }
  void settle() {
    fake_cuda::drain();
    while (!ctx.idle()) ctx.poll();
    ctx.poll();
  }
  float mass(std::size_t of, std::uint32_t layer, std::size_t i) {
    return opened->control().record(sequences[of].pages().rows[layer][i].index).mass;
  }

  engine e;
  terrace::context ctx{{.codec_threads = 0}};
  result<type> opened;
  std::vector<sequence> sequences;
  std::unique_ptr<cuda::batch> batch;
  std::optional<cuda::decode_attention<fp16, dim>> decode;
  std::function<void()> before_decode;
  void *queries = nullptr, *out = nullptr;
};

// What a stream on the host tells of the same tokens.
std::vector<std::vector<float>> on_the_host(std::uint32_t context, std::uint32_t tokens) {
  using type = tiered_cache<tier<ram>, attention_weighted>;
  terrace::context ctx{{.codec_threads = 0}};
  auto cache = type::open(ctx, pattern::layout(layers), {.capacity = 400 * block});
  REQUIRE(cache);
  sequence s = cache->make_sequence();
  for (std::uint32_t at = 0; at < context; at += 16)
    REQUIRE(pattern::append(s, std::min(16u, context - at), layers, 1));
  auto r = s.reserve(tokens);
  REQUIRE(r);
  pattern::write(*r, layers, 1);
  const auto q = queries_of(tokens);
  std::vector<float> out(q.size());
  std::vector<std::vector<float>> shares(layers);
  for (std::uint32_t l = 0; l < layers; ++l) {
    REQUIRE(ctx.sync_wait(stream(*cache, s, *r, l, q, out)));
    for (const block_id id : pattern::sealed(s, l))
      shares[l].push_back(cache->control().record(id.index).mass);
  }
  return shares;
}

}  // namespace

TEST_CASE("a policy is told what each block drew on a device, whichever window it came in") {
  const std::uint32_t tokens = GENERATE(1u, 3u);
  const std::size_t hot =
      GENERATE(400u, 48u);  // all in device memory, or most of it through q8_0 in pinned memory
  CAPTURE(tokens, hot);
  constexpr std::uint32_t context = 700;
  const auto want = on_the_host(context, tokens);
  fake_cuda::reset({.seed = hot + tokens});
  {
    device_decode<> d(hot);
    d.add(context);
    d.assign();
    REQUIRE(d.ctx.sync_wait(d.opened->flush()));
    REQUIRE(d.step(tokens));
    d.settle();
    for (std::uint32_t l = 0; l < layers; ++l) {
      REQUIRE(want[l].size() == context / 16);
      double sum = 0;
      for (std::size_t i = 0; i < want[l].size(); ++i) {
        CAPTURE(l, i);
        CHECK(std::abs(d.mass(0, l, i) - want[l][i]) <= 0.03 * want[l][i] + 1e-6);
        sum += d.mass(0, l, i);
      }
      CHECK(sum > 0.5);
      CHECK(sum <= 1.0001);
    }
  }
  CHECK(emulator::take_faults().empty());
  CHECK(fake_cuda::now().device_bytes == 0);
  CHECK(fake_cuda::now().pinned_bytes == 0);
  CHECK(fake_cuda::now().live_events == 0);
}

TEST_CASE("sequences of different lengths are told apart, and so are windows") {
  const std::size_t hot = GENERATE(200u, 36u);
  const double tolerance = hot == 200 ? 0.01 : 0.04;
  CAPTURE(hot);
  const auto longer = on_the_host(300, 1), shorter = on_the_host(90, 1);
  fake_cuda::reset({.seed = 3});
  device_decode<> d(hot);
  d.add(300);
  d.add(90);
  d.assign();
  for (int step = 0; step < 3; ++step) REQUIRE(d.step(1));
  d.settle();
  for (std::uint32_t l = 0; l < layers; ++l) {
    for (std::size_t i = 0; i < longer[l].size(); ++i)
      CHECK(d.mass(0, l, i) == Approx(longer[l][i]).epsilon(tolerance).margin(1e-6));
    for (std::size_t i = 0; i < shorter[l].size(); ++i)
      CHECK(d.mass(1, l, i) == Approx(shorter[l][i]).epsilon(tolerance).margin(1e-6));
  }
  CHECK(emulator::take_faults().empty());
}

TEST_CASE("nobody is told where no policy asks, no kernel is at hand, or other bytes stand in") {
  fake_cuda::reset({.seed = 4});
  SECTION("no policy asks") {
    device_decode<lru> d(100);
    d.add(200);
    d.assign();
    REQUIRE(d.step(1));
    d.settle();
    CHECK(d.mass(0, 0, 0) == 0);
  }
  SECTION("no kernel is at hand") {
    cuda::kernel_set without = cuda::device_kernels();
    without.mass = nullptr;
    device_decode<> d(100, without);
    d.add(200);
    d.assign();
    REQUIRE(d.step(1));
    d.settle();
    CHECK(d.mass(0, 0, 0) == 0);
  }
  SECTION("other bytes stand in") {
    device_decode<> d(100);
    d.add(200);
    d.assign();
    d.batch->stand_in(true);
    REQUIRE(d.step(1));
    d.settle();
    CHECK(d.mass(0, 0, 0) == 0);
    d.batch->stand_in(false);
    REQUIRE(d.step(1));
    d.settle();
    CHECK(d.mass(0, 0, 0) > 0);
  }
}

TEST_CASE(
    "a block that goes before its mass has come, and a report that is under way at the end, are no harm") {
  fake_cuda::reset({.seed = 5});
  {
    device_decode<> d(100);
    d.add(200);
    d.add(120);
    d.assign();
    REQUIRE(d.step(1));
    REQUIRE(d.batch->assign(std::vector<sequence*>{&d.sequences[0]}));
    d.sequences[1].release();
    d.settle();
    CHECK(d.mass(0, 0, 0) > 0);
    d.sequences.pop_back();
    REQUIRE(d.step(1));
  }
  CHECK(emulator::take_faults().empty());
  CHECK(fake_cuda::now().device_bytes == 0);
  CHECK(fake_cuda::now().pinned_bytes == 0);
  CHECK(fake_cuda::now().live_events == 0);
}

TEST_CASE("a call that fails while the mass is asked for ends in a typed error, and leaks nothing") {
  bool failed_once = false;
  for (const char* const call : {"cudaMalloc", "cudaHostAlloc", "cudaMemcpyAsync"})
    for (std::size_t nth = 1; nth <= 12; ++nth) {
      CAPTURE(call, nth);
      fake_cuda::reset({.seed = 6});
      {
        device_decode<> d(100);
        d.add(200);
        d.assign();
        d.before_decode = [&] { fake_cuda::fail_call(call, cudaErrorMemoryAllocation, nth); };
        const auto done = d.step(1);
        failed_once = failed_once || !done;
        d.settle();
      }
      CHECK(fake_cuda::now().device_bytes == 0);
      CHECK(fake_cuda::now().pinned_bytes == 0);
      CHECK(fake_cuda::now().live_events == 0);
    }
  CHECK(failed_once);
  static_cast<void>(emulator::take_faults());
}
