// The whole cache with its first tier in device memory: the engine's kernels write and read blocks on a stream of
// theirs, and nobody waits for them.
#include <algorithm>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "catch.hpp"
#include "engine.hpp"
#include "pattern.hpp"
#include "terrace/attention/stream.hpp"
#include "terrace/codec/q8_0.hpp"
#include "terrace/cuda/batch.hpp"
#include "terrace/cuda/pinned_ram.hpp"
#include "terrace/cuda/vram.hpp"
#include "terrace/execution/sync_wait.hpp"
#include "terrace/medium/nvme.hpp"
#include "terrace/policy/lru.hpp"
#include "terrace/testing/medium_conformance.hpp"
#include "terrace/tiered_cache.hpp"

using namespace terrace;

namespace {

constexpr std::size_t block = pattern::block_bytes;
using lossless = tiered_cache<tier<vram>, tier<pinned_ram>, tier<nvme>, lru>;
using through_codecs = tiered_cache<tier<vram>, tier<pinned_ram, q8_0>, tier<nvme, q8_0>, lru>;

}  // namespace

TEMPLATE_TEST_CASE("media of the CUDA side keep their contract", "", vram, pinned_ram) {
  for (std::uint64_t seed = 1; seed <= 3; ++seed) {
    fake_cuda::reset({.seed = seed});
    context ctx{{.codec_threads = 0}};
    for (const std::size_t capacity : {64_KiB, 1_MiB}) {
      auto medium = TestType::open(ctx, {.capacity = capacity});
      REQUIRE(medium);
      const auto violated = medium_conformance(ctx, **medium);
      INFO(violated.value_or(""));
      CHECK_FALSE(violated);
    }
  }
  CHECK(fake_cuda::now().device_bytes == 0);
  CHECK(fake_cuda::now().pinned_bytes == 0);
}

TEST_CASE("blocks leave device memory and come back, while kernels run late") {
  for (std::uint64_t seed = 1; seed <= 12; ++seed) {
    CAPTURE(seed);
    fake_cuda::reset({.seed = seed});
    {
      engine e;
      context ctx{{.codec_threads = static_cast<unsigned>(seed % 2)}};
      auto cache = lossless::open(ctx, pattern::layout(), {.capacity = 24 * block, .stream = e.stream},
                                  {.capacity = 32 * block}, {.capacity = 256 * block});
      REQUIRE(cache);
      sequence s = cache->make_sequence();
      for (int i = 0; i < 60; ++i) REQUIRE(e.append(s, 16, 2, 7));
      std::mt19937_64 random(seed);
      for (int i = 0; i < 300; ++i) {
        const std::uint32_t row = random() % 2;
        const auto ids = pattern::sealed(s, row);
        const std::size_t first = random() % (ids.size() - 3);
        auto held = ctx.sync_wait(cache->acquire(std::span(ids).subspan(first, 4)));
        REQUIRE(held);
        for (std::size_t b = 0; b < 4; ++b) {
          CHECK((*held)[b].tier == 0);
          e.check(cache->layout(), (*held)[b].data, row, first + b, 7);
        }
        held->release();  // the kernels have not run
      }
      fake_cuda::drain();
      CHECK(e.looked_at == 1200);
      CHECK(e.wrong == 0);
      CHECK(cache->stats().tiers[1].loads > 0);
      CHECK(cache->stats().tiers[2].loads > 0);
    }
    CHECK(fake_cuda::now().device_bytes == 0);
    CHECK(fake_cuda::now().live_streams == 0);
    CHECK(fake_cuda::now().live_events == 0);
  }
}

TEST_CASE("a context through q8_0 in pinned memory reads as it does on the host") {
  fake_cuda::reset({.seed = 5});
  using on_host = tiered_cache<tier<ram>, tier<ram, q8_0>, tier<nvme, q8_0>, lru>;
  context ctx{{.codec_threads = 1}};
  auto host = on_host::open(ctx, pattern::layout(), {.capacity = 64 * block}, {.capacity = 32 * block},
                            {.capacity = 256 * block});
  engine e;
  auto device = through_codecs::open(ctx, pattern::layout(), {.capacity = 64 * block, .stream = e.stream},
                                     {.capacity = 32 * block}, {.capacity = 256 * block});
  REQUIRE(host);
  REQUIRE(device);
  sequence a = host->make_sequence(), b = device->make_sequence();
  for (int i = 0; i < 60; ++i) {
    REQUIRE(pattern::append(a, 16, 2, 3));
    REQUIRE(e.append(b, 16, 2, 3));
  }
  for (std::uint32_t row = 0; row < 2; ++row) {
    const auto on_a = pattern::sealed(a, row), on_b = pattern::sealed(b, row);
    for (std::size_t i = 0; i < 20; ++i) {  // the oldest have been below
      auto from_a = ctx.sync_wait(host->acquire(std::span(on_a).subspan(i, 1)));
      auto from_b = ctx.sync_wait(device->acquire(std::span(on_b).subspan(i, 1)));
      REQUIRE(from_a);
      REQUIRE(from_b);
      CHECK((*from_a)[0].quality == (*from_b)[0].quality);
      const fake_cuda::device_access access;
      CHECK(std::memcmp((*from_a)[0].data, (*from_b)[0].data, block) == 0);
    }
  }
}

TEST_CASE("forks copy their tail, and cuts the part that stays, on the device") {
  fake_cuda::reset({.seed = 9});
  engine e;
  context ctx{{.codec_threads = 0}};
  auto cache = lossless::open(ctx, pattern::layout(), {.capacity = 24 * block, .stream = e.stream},
                              {.capacity = 64 * block}, {.capacity = 64 * block});
  REQUIRE(cache);
  sequence s = cache->make_sequence();
  REQUIRE(e.append(s, 40, 2, 1));
  sequence fork = cache->fork(s);
  REQUIRE(e.append(fork, 8, 2, 1));  // fills the third block, a copy
  REQUIRE(e.append(s, 4, 2, 2));
  const auto ids = pattern::sealed(fork, 0);
  REQUIRE(ids.size() == 3);
  {
    auto held = ctx.sync_wait(cache->acquire(ids));
    REQUIRE(held);
    for (std::size_t i = 0; i < 3; ++i) e.check(cache->layout(), (*held)[i].data, 0, i, 1);
  }
  REQUIRE(fork.truncate(37));
  REQUIRE(e.append(fork, 11, 2, 1));
  {
    auto held = ctx.sync_wait(cache->acquire(pattern::sealed(fork, 1)));
    REQUIRE(held);
    e.check(cache->layout(), (*held)[2].data, 1, 2, 1);
  }
  fake_cuda::drain();
  CHECK(e.looked_at == 4);
  CHECK(e.wrong == 0);
}

TEST_CASE("an open page is copied after what a batch's stream wrote into it, whatever stream its tier has") {
  for (std::uint64_t seed = 1; seed < 20; ++seed) {
    fake_cuda::reset({.seed = seed});
    engine e;
    context ctx{{.codec_threads = 0}};
    auto cache = lossless::open(ctx, pattern::layout(), {.capacity = 64 * block}, {.capacity = 64 * block},
                                {.capacity = 64 * block});
    REQUIRE(cache);
    auto batch = cuda::batch::make(*cache, {.sequences = 2, .window_bytes = block});
    REQUIRE(batch);
    sequence s = cache->make_sequence();
    REQUIRE(e.append(s, 8, 2, 1));  // half a page
    sequence fork = cache->fork(s);
    sequence* const all[] = {&fork};
    REQUIRE((*batch)->assign(all));
    REQUIRE((*batch)->reserve(std::vector<std::uint32_t>{1}, e.stream));
    int wrong = 0;
    while (auto w = (*batch)->next(0, e.stream))
      fake_cuda::launch(e.stream, [&wrong, indices = w->indices(), g = cache->layout().groups[0],
                                   pages = static_cast<const std::byte*>(w->pages())] {
        if (!pattern::holds(g, pages + std::size_t(indices[0]) * cuda::batch::page_stride, 0, 0, 1, 8))
          ++wrong;
      });
    fake_cuda::drain();
    CHECK(wrong == 0);
    (*batch)->commit(std::vector<std::uint32_t>{0});
  }
}

TEST_CASE("what cannot be, in one sentence") {
  fake_cuda::reset({.memory = 1_MiB});
  context ctx{{.codec_threads = 0}};
  SECTION("more than the device has; nothing is left behind") {
    auto cache =
        lossless::open(ctx, pattern::layout(), {.capacity = 2_MiB}, {.capacity = 1_MiB}, {.capacity = 1_MiB});
    REQUIRE(!cache);
    CHECK(cache.error().code == errc::out_of_memory);
    CHECK(cache.error().message() == "a CUDA device has no memory for a vram tier: out of memory");
    CHECK(fake_cuda::now().device_bytes == 0);
  }
  SECTION("attention on the host over device memory") {
    auto cache = lossless::open(ctx, pattern::layout(), {.capacity = 512_KiB}, {.capacity = 1_MiB},
                                {.capacity = 1_MiB});
    REQUIRE(cache);
    sequence s = cache->make_sequence();
    auto reserved = s.reserve(1);
    REQUIRE(reserved);
    std::vector<float> query(64), out(64);
    auto done = ctx.sync_wait(stream(*cache, s, *reserved, 0, query, out));
    REQUIRE(!done);
    CHECK(done.error().code == errc::invalid_argument);
  }
  SECTION("memory of the engine's own, and its alignment") {
    void* at = nullptr;
    REQUIRE(cudaMalloc(&at, 64_KiB) == cudaSuccess);
    const mutable_bytes own{static_cast<std::byte*>(at), 64_KiB};
    CHECK(vram::open(ctx, {.memory = own.subspan(8)}).error().code == errc::invalid_argument);
    {
      auto medium = vram::open(ctx, {.memory = own});
      REQUIRE(medium);
      CHECK((*medium)->capacity() == 64_KiB);
      CHECK((*medium)->address({}) == own.data());
    }
    CHECK(fake_cuda::now().device_bytes == 64_KiB);
    REQUIRE(cudaFree(at) == cudaSuccess);
  }
}

TEST_CASE("a copy that fails is a block that is lost, and the host tiers keep working") {
  fake_cuda::reset({.seed = 4});
  {
    engine e;
    context ctx{{.codec_threads = 0}};
    auto cache = lossless::open(ctx, pattern::layout(1), {.capacity = 8 * block, .stream = e.stream},
                                {.capacity = 64 * block}, {.capacity = 64 * block});
    REQUIRE(cache);
    sequence s = cache->make_sequence();
    for (int i = 0; i < 30; ++i) REQUIRE(e.append(s, 16, 1, 1));
    REQUIRE(ctx.sync_wait(cache->flush()));
    const auto ids = pattern::sealed(s, 0);
    fake_cuda::fail_call("cudaMemcpyAsync", cudaErrorUnknown);
    auto lost = ctx.sync_wait(cache->acquire(std::span(ids).first(1)));
    REQUIRE(!lost);
    REQUIRE(lost.error().lost.size() == 1);
    CHECK(lost.error().lost[0].cause.code == errc::io_error);
    auto again = ctx.sync_wait(cache->acquire(std::span(ids).first(1)));  // the copy below is still there
    REQUIRE(again);
    e.check(cache->layout(), (*again)[0].data, 0, 0, 1);
    again->release();
    fake_cuda::drain();
    CHECK(e.wrong == 0);

    fake_cuda::fail_work(cudaErrorIllegalAddress);  // from here on nothing works on the device
    CHECK(!ctx.sync_wait(cache->acquire(std::span(ids).subspan(1, 1))));
    CHECK(!ctx.sync_wait(cache->acquire(std::span(ids).subspan(2, 1))));
    CHECK(cache->stats().tiers[1].resident_bytes > 0);
  }
  CHECK(fake_cuda::now().live_streams == 0);
}
