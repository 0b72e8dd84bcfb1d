// In steady state a decode allocates nothing: not for a block, not for a transfer, not for a step. Every allocation of
// the program is counted, of all its threads.
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <utility>
#include <vector>

#include "catch.hpp"
#include "terrace/codec/q8_0.hpp"
#include "terrace/medium/nvme.hpp"
#include "terrace/terrace.hpp"

namespace {

std::atomic<std::uint64_t> allocations{0};

// Not inlined: g++ would say that free is the wrong end for what operator new gave.
[[gnu::noinline]] void* counted(std::size_t size, std::size_t alignment) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  void* const p = alignment > alignof(std::max_align_t)
                      ? std::aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment)
                      : std::malloc(size != 0 ? size : 1);
  if (p == nullptr) std::abort();
  return p;
}

[[gnu::noinline]] void given_back(void* p) noexcept { std::free(p); }

}  // namespace

void* operator new(std::size_t size) { return counted(size, 0); }
void* operator new[](std::size_t size) { return counted(size, 0); }
void* operator new(std::size_t size, std::align_val_t a) {
  return counted(size, static_cast<std::size_t>(a));
}
void* operator new[](std::size_t size, std::align_val_t a) {
  return counted(size, static_cast<std::size_t>(a));
}
void* operator new(std::size_t size, const std::nothrow_t&) noexcept { return counted(size, 0); }
void* operator new[](std::size_t size, const std::nothrow_t&) noexcept { return counted(size, 0); }
void* operator new(std::size_t size, std::align_val_t a, const std::nothrow_t&) noexcept {
  return counted(size, static_cast<std::size_t>(a));
}
void* operator new[](std::size_t size, std::align_val_t a, const std::nothrow_t&) noexcept {
  return counted(size, static_cast<std::size_t>(a));
}
void operator delete(void* p) noexcept { given_back(p); }
void operator delete[](void* p) noexcept { given_back(p); }
void operator delete(void* p, std::size_t) noexcept { given_back(p); }
void operator delete[](void* p, std::size_t) noexcept { given_back(p); }
void operator delete(void* p, std::align_val_t) noexcept { given_back(p); }
void operator delete[](void* p, std::align_val_t) noexcept { given_back(p); }
void operator delete(void* p, std::size_t, std::align_val_t) noexcept { given_back(p); }
void operator delete[](void* p, std::size_t, std::align_val_t) noexcept { given_back(p); }
void operator delete(void* p, const std::nothrow_t&) noexcept { given_back(p); }
void operator delete[](void* p, const std::nothrow_t&) noexcept { given_back(p); }
void operator delete(void* p, std::align_val_t, const std::nothrow_t&) noexcept { given_back(p); }
void operator delete[](void* p, std::align_val_t, const std::nothrow_t&) noexcept { given_back(p); }

using namespace terrace;

namespace {

constexpr std::uint32_t layers = 4, heads = 1, dim = 64, tokens = 16, blocks_a_layer = 32;
constexpr std::uint32_t blocks = layers * blocks_a_layer;

// Allocations in `steps` decode steps, each of which streams all blocks, after twice as many that were not counted.
template <class Cache>
std::uint64_t in_steady_state(context& ctx, Cache& cache, std::uint64_t steps) {
  sequence text = cache.make_sequence();
  for (std::uint32_t n = 0; n <= blocks_a_layer; ++n) {
    const std::uint32_t count = n == blocks_a_layer ? 1 : tokens;
    auto filled = text.reserve(count);
    REQUIRE(filled);
    text.commit(std::move(*filled), count);
  }
  const std::vector<float> query(dim);
  std::vector<float> out(dim);
  std::uint64_t before = 0, loads = 0;
  for (std::uint64_t step = 1; step <= 3 * steps; ++step) {
    if (step == 2 * steps + 1) {
      loads = cache.stats().tiers[1].loads + cache.stats().tiers[2].loads;
      before = allocations.load();
    }
    cache.advance_step(step);
    auto token = text.reserve(1);
    REQUIRE(token);
    for (std::uint32_t layer = 0; layer < layers; ++layer) {
      auto done = ctx.sync_wait(stream(cache, text, *token, layer, query, out));
      REQUIRE(done);
    }
  }
  const std::uint64_t counted = allocations.load() - before;
  const cache_stats after = cache.stats();
  REQUIRE(before > 0);  // or nothing was counted
  REQUIRE(after.tiers[1].loads + after.tiers[2].loads - loads > steps * blocks / 2);
  return counted;
}

}  // namespace

TEMPLATE_TEST_CASE("a decode over three tiers allocates nothing in steady state", "", lru, step_aware) {
  context ctx{{.codec_threads = 1}};
  const kv_layout layout{{{.layers = layers, .tokens = tokens, .k = {heads, dim}, .v = {heads, dim}}}};
  const std::size_t block = layout.largest_block();
  auto cache = tiered_cache<tier<ram>, tier<ram, q8_0>, tier<nvme>, TestType>::open(
      ctx, layout, {.capacity = blocks / 4 * block}, {.capacity = blocks / 8 * block},
      {.capacity = 2 * blocks * block});
  REQUIRE(cache);
  cache->use(layer_ahead({.blocks = 8}));
  CHECK(in_steady_state(ctx, *cache, 20) == 0);
}
