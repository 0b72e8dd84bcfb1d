// context::parallel_for.
#include "terrace/execution/fork_join.hpp"

#include <atomic>
#include <cstddef>
#include <vector>

#include "catch.hpp"
#include "execution/posting.hpp"
#include "terrace/execution/context.hpp"

using terrace::context;

TEST_CASE("parallel_for calls each index once, whatever the number of threads") {
  const unsigned threads = GENERATE(0u, 1u, 3u);
  context ctx{{.codec_threads = threads}};
  for (const std::size_t n : {0u, 1u, 2u, 3u, 7u, 1000u}) {
    std::vector<std::atomic<int>> calls(n);
    ctx.parallel_for(n, [&](std::size_t i) noexcept { calls[i].fetch_add(1, std::memory_order_relaxed); });
    for (auto& count : calls) REQUIRE(count == 1);
  }
}

TEST_CASE("parallel_for does not wait for a pool that is busy") {
  std::atomic<bool> release{false};
  work blocker([&] { release.wait(false); });
  context ctx{{.codec_threads = 1}};  // ends first, and its thread with it
  ctx.pool().submit(blocker);
  std::size_t sum = 0;  // only the owner can be there, and the sanitizer would say otherwise
  for (int round = 0; round < 10; ++round) ctx.parallel_for(100, [&](std::size_t i) noexcept { sum += i; });
  CHECK(sum == 10 * 4950);
  release = true;
  release.notify_one();
  ctx.parallel_for(0, [](std::size_t) noexcept {});
}

TEST_CASE("parallel_for runs on the pool as well, and inside itself") {
  context ctx{{.codec_threads = 1}};
  std::atomic<int> present{0};
  ctx.parallel_for(2, [&](std::size_t) noexcept {  // both must be inside at once to go on
    present.fetch_add(1);
    present.notify_all();
    for (int seen; (seen = present.load()) < 2;) present.wait(seen);
  });
  CHECK(present == 2);

  std::atomic<int> inner{0};
  ctx.parallel_for(4, [&](std::size_t) noexcept {
    if (ctx.on_owner_thread()) ctx.parallel_for(8, [&](std::size_t) noexcept { inner.fetch_add(1); });
  });
  CHECK(inner % 8 == 0);
  for (int round = 0; round < 500; ++round) {
    std::atomic<std::size_t> sum{0};
    ctx.parallel_for(16, [&](std::size_t i) noexcept { sum.fetch_add(i, std::memory_order_relaxed); });
    REQUIRE(sum == 120);
  }
}
