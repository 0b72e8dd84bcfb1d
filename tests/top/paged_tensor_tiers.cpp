// Tensors that are larger than tier 0: they come back from other tiers, which fill up, fail and lose.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "catch.hpp"
#include "pattern.hpp"
#include "terrace/codec/q8_0.hpp"
#include "terrace/execution/sync_wait.hpp"
#include "terrace/medium/nvme.hpp"
#include "terrace/medium/ram.hpp"
#include "terrace/paged_tensor.hpp"
#include "terrace/policy/lru.hpp"
#include "terrace/policy/step_aware.hpp"
#include "terrace/testing/scripted.hpp"
#include "terrace/tiered_cache.hpp"
#include "top/paged_tensor_fixture.hpp"
#include "watcher.hpp"

using namespace terrace;
using namespace tensor_test;

namespace {

using to_disk = tiered_cache<tier<ram>, tier<nvme>, lru>;
using lossy = tiered_cache<tier<ram>, tier<ram, q8_0>, lru>;
using over_script = tiered_cache<tier<ram>, tier<scripted>, lru>;

kv_layout kv_and_tensors() {
  kv_layout layout = pattern::layout(2);
  layout.groups.push_back(tensor_pages(element::fp16, page_values));
  return layout;
}

// Lets transfers that nobody waits for come to their end.
template <class Cache>
void settle(context& ctx, Cache& cache) {
  static_cast<void>(ctx.sync_wait(cache.flush()));
}

}  // namespace

TEST_CASE("a tensor ten times larger than tier 0 comes back bit for bit from disk") {
  context ctx;
  auto cache = to_disk::open(ctx, tensors_only(), {.capacity = 8 * page}, {.capacity = 200 * page});
  REQUIRE(cache);
  auto t = paged_tensor<fp16>::make(*cache, 80 * page_values + 1);
  REQUIRE(t);
  auto want = values(t->size(), 3);
  // Every bit pattern, NaN among them.
  for (std::size_t i = 0; i < 65536; ++i) want[i] = {static_cast<std::uint16_t>(i)};
  REQUIRE(t->store(want));
  std::vector<fp16> got(t->size());
  for (int round = 0; round < 2; ++round) {
    std::ranges::fill(got, fp16{});
    REQUIRE(t->read(got));
    CHECK(equal(got, want));
  }
  const cache_stats s = cache->stats();
  CHECK(s.tiers[1].loads >= 2 * (81 - 8));
  CHECK(s.prefetch.used > 0);
  CHECK(s.hot_bytes_peak <= 8 * page);
  CHECK(s.pins == 0);

  // Pages in any order.
  for (const std::size_t i : std::vector<std::size_t>{80, 3, 41, 3, 0}) {
    auto held = ctx.sync_wait(t->page(i));
    REQUIRE(held);
    CHECK(equal(held->values(), std::span(want).subspan(i * page_values, t->page_size(i))));
  }
}

TEST_CASE("whole tensors are visited page by page, and refused where a page is missing") {
  context ctx;
  auto cache = to_disk::open(ctx, tensors_only(), {.capacity = 4 * page}, {.capacity = 64 * page});
  REQUIRE(cache);
  auto t = paged_tensor<fp16>::make(*cache, 10 * page_values);
  REQUIRE(t);
  const auto want = values(t->size(), 4);
  for (std::size_t i = 0; i < 9; ++i) {
    auto open = t->write(i);
    REQUIRE(open);
    std::ranges::copy(std::span(want).subspan(i * page_values, page_values), open->begin());
    t->seal(i);
  }
  std::size_t calls = 0;
  const auto count = [&](std::size_t, std::span<const fp16>) { ++calls; };
  auto visited = t->for_each_page(count);
  REQUIRE_FALSE(visited);
  CHECK(visited.error().code == errc::invalid_argument);
  CHECK(calls == 0);

  auto open = t->write(9);
  REQUIRE(open);
  std::ranges::copy(std::span(want).last(page_values), open->begin());
  t->seal(9);
  bool right = true;
  REQUIRE(t->for_each_page([&](std::size_t i, std::span<const fp16> v) {
    right = right && i == calls++ && equal(v, std::span(want).subspan(i * page_values, page_values));
  }));
  CHECK(right);
  CHECK(calls == 10);

  std::vector<fp16> small(t->size() - 1);
  CHECK(t->read(small).error().code == errc::invalid_argument);
  CHECK(t->store(small).error().code == errc::invalid_argument);
}

TEST_CASE("where the tiers are full a tensor says so at once, and is as it was") {
  context ctx{{.codec_threads = 0}};  // so idle() sees all that is under way
  auto cache = to_disk::open(ctx, tensors_only(), {.capacity = 4 * page}, {.capacity = 10 * page});
  REQUIRE(cache);
  auto t = paged_tensor<fp16>::make(*cache, 8 * page_values);
  REQUIRE(t);
  const auto first = values(t->size(), 5), second = values(t->size(), 6);
  REQUIRE(t->store(first));
  auto again = t->store(second);  // the tiers hold 14 pages, not 16
  REQUIRE_FALSE(again);
  CHECK(again.error().code == errc::out_of_capacity);
  settle(ctx, *cache);
  CHECK(cache->stats().blocks == 8);
  std::vector<fp16> got(t->size());
  REQUIRE(t->read(got));
  CHECK(equal(got, first));

  t->clear();
  CHECK_FALSE(t->written(0));
  REQUIRE(t->store(second));
  REQUIRE(t->read(got));
  CHECK(equal(got, second));

  // A tier 0 that is all pinned.
  auto other = paged_tensor<fp16>::make(*cache, 8 * page_values);
  REQUIRE(other);
  for (std::size_t i = 0; i < 4; ++i) REQUIRE(other->write(i));
  CHECK(other->write(4).error().code == errc::out_of_capacity);
  CHECK(ctx.sync_wait(t->page(0)).error().code == errc::out_of_capacity);
  other->discard(0);
  CHECK(ctx.sync_wait(t->page(0)));
}

TEST_CASE("a tensor that ends or is assigned to returns every block") {
  context ctx{{.codec_threads = 0}};  // so idle() sees all that is under way
  auto cache = to_disk::open(ctx, tensors_only(), {.capacity = 8 * page}, {.capacity = 64 * page});
  REQUIRE(cache);
  const auto want = values(6 * page_values, 7);
  {
    auto a = paged_tensor<fp16>::make(*cache, want.size());
    auto b = paged_tensor<fp16>::make(*cache, want.size());
    REQUIRE(a->store(want));
    REQUIRE(b->store(values(want.size(), 8)));
    REQUIRE(a->write(2));
    paged_tensor<fp16> moved(std::move(*a));
    CHECK(a->pages() == 0);
    CHECK(moved.pages() == 6);
    settle(ctx, *cache);
    CHECK(cache->stats().blocks == 13);
    *b = std::move(moved);
    settle(ctx, *cache);
    CHECK(cache->stats().blocks == 7);
    std::vector<fp16> got(want.size());
    REQUIRE(b->read(got));
    CHECK(equal(got, want));
  }
  settle(ctx, *cache);
  const cache_stats end = cache->stats();
  CHECK(end.blocks == 0);
  CHECK(end.pins == 0);
  CHECK(end.tiers[0].resident_bytes == 0);
  CHECK(end.tiers[1].resident_bytes == 0);
}

TEST_CASE("a page that no tier can give any more is named") {
  context ctx{{.codec_threads = 0}};
  medium_script script;
  auto cache = over_script::open(ctx, tensors_only(), {.capacity = 4 * page},
                                 {.capacity = 64 * page, .script = &script});
  REQUIRE(cache);
  auto t = paged_tensor<fp16>::make(*cache, 12 * page_values);
  REQUIRE(t);
  const auto want = values(t->size(), 9);
  REQUIRE(t->store(want));
  settle(ctx, *cache);
  script.fail_reads = 1;
  std::size_t calls = 0;
  auto visited = t->for_each_page([&](std::size_t, std::span<const fp16>) { ++calls; });
  REQUIRE_FALSE(visited);
  CHECK(visited.error().code == errc::lost);
  REQUIRE(visited.error().lost.size() == 1);
  CHECK(visited.error().lost[0].cause.code == errc::io_error);
  CHECK(calls < 12);

  // Written anew, it is whole again.
  const std::size_t lost = calls;
  auto open = t->write(lost);
  REQUIRE(open);
  std::ranges::copy(std::span(want).subspan(lost * page_values, page_values), open->begin());
  t->seal(lost);
  std::vector<fp16> got(t->size());
  REQUIRE(t->read(got));
  CHECK(equal(got, want));
}

TEST_CASE("a page that is being waited for can be given up") {
  context ctx{{.codec_threads = 0}};
  medium_script script;
  auto cache = over_script::open(ctx, tensors_only(), {.capacity = 2 * page},
                                 {.capacity = 64 * page, .script = &script});
  REQUIRE(cache);
  auto t = paged_tensor<fp16>::make(*cache, 6 * page_values);
  REQUIRE(t);
  REQUIRE(t->store(values(t->size(), 9)));
  settle(ctx, *cache);

  ending how{};
  ex::inplace_stop_source stop;
  script.hold = true;
  auto operation = t->page(0).connect(watcher{&how, stop.get_token()});
  ex::start(operation);
  CHECK(how == ending::none);
  stop.request_stop();
  ctx.poll();
  CHECK(how == ending::stopped);
  script.hold = false;
  script.release_all();
  while (!ctx.idle()) ctx.poll();
  CHECK(cache->stats().pins == 0);
}

TEST_CASE("tensors and KV live in one cache") {
  context ctx{{.codec_threads = 0}};  // so idle() sees all that is under way
  auto cache = tiered_cache<tier<ram>, tier<ram>, tier<nvme>, step_aware>::open(
      ctx, kv_and_tensors(), {.capacity = 16 * page}, {.capacity = 20 * page}, {.capacity = 400 * page});
  REQUIRE(cache);
  sequence s = cache->make_sequence();
  CHECK(s.pages().rows.size() == 2);  // none for the tensors
  std::vector<paged_tensor<fp16>> tensors;
  constexpr std::size_t size = 10 * page_values + 3;
  const layer_group& g = cache->layout().groups[0];
  for (std::uint32_t round = 0; round < 8; ++round) {
    cache->advance_step(round + 1);
    REQUIRE(pattern::append(s, 40, 2, 11));
    auto t = paged_tensor<fp16>::make(*cache, size);
    REQUIRE(t);
    REQUIRE(t->store(values(size, round)));
    tensors.push_back(std::move(*t));
    if (round % 3 == 2) REQUIRE(tensors[1].store(values(size, 1)));  // written again
    if (round == 5) tensors[2] = std::move(tensors.back()), tensors.pop_back();
  }
  settle(ctx, *cache);
  for (std::uint32_t i = 0; i < tensors.size(); ++i) {
    const std::uint32_t tag = i == 2 ? 5 : (i < 5 ? i : i + 1);
    std::vector<fp16> got(size);
    REQUIRE(tensors[i].read(got));
    CHECK(equal(got, values(size, tag)));
  }
  for (std::uint32_t row = 0; row < 2; ++row) {
    const auto ids = pattern::sealed(s, row);
    REQUIRE(ids.size() == 20);
    for (std::size_t i = 0; i < ids.size(); ++i) {
      auto held = ctx.sync_wait(cache->acquire(std::span(ids).subspan(i, 1)));
      REQUIRE(held);
      CHECK(pattern::holds(g, (*held)[0].data, row, i, 11, 16));
    }
  }
  CHECK(cache->stats().tiers[2].loads > 0);
}

TEST_CASE("lossy tiers lose the same once, and a lease says so") {
  context ctx;
  // q8_0 takes pages of multiples of 32 elements only.
  auto odd = lossy::open(ctx, {{tensor_pages(element::fp16, 2040)}}, {.capacity = 32 * page},
                         {.capacity = 32 * page});
  REQUIRE_FALSE(odd);
  CHECK(odd.error().code == errc::invalid_argument);

  auto cache = lossy::open(ctx, kv_and_tensors(), {.capacity = 12 * page}, {.capacity = 64 * page});
  REQUIRE(cache);
  auto t = paged_tensor<fp16>::make(*cache, 40 * page_values + 31);
  REQUIRE(t);
  const auto want = values(t->size(), 12);
  REQUIRE(t->store(want));
  std::vector<fp16> got(t->size()), again(t->size());
  REQUIRE(t->read(got));
  float worst = 0;
  for (std::size_t i = 0; i < got.size(); ++i)
    worst = std::max(worst, std::abs(to_float(got[i]) - to_float(want[i])));
  CHECK(worst > 0);
  CHECK(worst < 1.0f / 240);  // half a code, where the largest magnitude is 1
  REQUIRE(t->read(again));
  const auto held = ctx.sync_wait(t->page(0));
  REQUIRE(held);
  CHECK((*held)[0].quality == fidelity{q8_0::loss});
  // Pages that stayed in tier 0 so far may be exact the first time; from the second time on nothing changes.
  REQUIRE(t->read(got));
  CHECK(equal(got, again));
}
