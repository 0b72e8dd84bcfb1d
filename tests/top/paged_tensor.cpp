#include "terrace/paged_tensor.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include "catch.hpp"
#include "terrace/execution/sync_wait.hpp"
#include "terrace/medium/ram.hpp"
#include "terrace/policy/lru.hpp"
#include "terrace/tiered_cache.hpp"
#include "top/paged_tensor_fixture.hpp"

using namespace terrace;
using namespace tensor_test;

namespace {
using resident = tiered_cache<tier<ram>, lru>;
}

TEST_CASE("a tensor is cut into pages, the last one shorter") {
  context ctx;
  auto cache = resident::open(ctx, tensors_only(), {.capacity = 16 * page});
  REQUIRE(cache);
  auto t = paged_tensor<fp16>::make(*cache, 3 * page_values + 5);
  REQUIRE(t);
  STATIC_REQUIRE_FALSE(std::is_copy_constructible_v<paged_tensor<fp16>>);
  CHECK(t->size() == 3 * page_values + 5);
  CHECK(t->pages() == 4);
  CHECK(t->page_elements() == page_values);
  CHECK(t->page_size(0) == page_values);
  CHECK(t->page_size(3) == 5);
  CHECK(cache->stats().blocks == 0);  // nothing is written, and nothing takes room

  auto nothing = paged_tensor<fp16>::make(*cache, 0);
  REQUIRE(nothing);
  CHECK(nothing->pages() == 0);
  CHECK(nothing->store({}));
  CHECK(nothing->read({}));
}

TEST_CASE("a page is written, sealed, read, and written again as a new block") {
  context ctx;
  auto cache = resident::open(ctx, tensors_only(), {.capacity = 16 * page});
  REQUIRE(cache);
  auto t = paged_tensor<fp16>::make(*cache, page_values + 7);
  REQUIRE(t);
  const auto first = values(7, 1), second = values(7, 2);

  CHECK_FALSE(t->written(1));
  CHECK(ctx.sync_wait(t->page(1)).error().code == errc::invalid_argument);
  CHECK(ctx.sync_wait(t->page(2)).error().code == errc::invalid_argument);
  CHECK(t->write(2).error().code == errc::invalid_argument);

  auto open = t->write(1);
  REQUIRE(open);
  REQUIRE(open->size() == 7);
  std::ranges::copy(first, open->begin());
  CHECK(ctx.sync_wait(t->page(1)).error().code == errc::invalid_argument);  // not before it is sealed
  CHECK(t->write(1)->data() == open->data());
  t->seal(1);
  auto old = ctx.sync_wait(t->page(1));
  REQUIRE(old);
  CHECK(equal(old->values(), first));
  CHECK((*old)[0].quality.exact());

  open = t->write(1);
  REQUIRE(open);
  std::ranges::copy(second, open->begin());
  CHECK(equal(ctx.sync_wait(t->page(1))->values(), first));
  t->seal(1);
  CHECK(equal(ctx.sync_wait(t->page(1))->values(), second));
  CHECK(equal(old->values(), first));  // a lease goes on holding what it was given
  CHECK(cache->stats().blocks == 2);
  old->release();
  CHECK(old->values().empty());
  CHECK(cache->stats().blocks == 1);

  open = t->write(1);
  REQUIRE(open);
  std::ranges::copy(first, open->begin());
  t->discard(1);
  CHECK(equal(ctx.sync_wait(t->page(1))->values(), second));
  CHECK(cache->stats().blocks == 1);
  CHECK(cache->stats().pins == 0);
}

TEST_CASE("a sender of a page reads what the page was when it was asked for") {
  context ctx;
  auto cache = resident::open(ctx, tensors_only(), {.capacity = 16 * page});
  REQUIRE(cache);
  auto t = paged_tensor<fp16>::make(*cache, 4);
  REQUIRE(t);
  auto never = t->page(0);
  REQUIRE(t->store(values(4, 1)));
  CHECK_FALSE(ctx.sync_wait(never));
  auto before = t->page(0);
  REQUIRE(t->store(values(4, 2)));
  CHECK(ctx.sync_wait(before).error().code == errc::lost);  // that block is gone
  CHECK(equal(ctx.sync_wait(t->page(0))->values(), values(4, 2)));
}

TEST_CASE("each type of element has its pages, and the group that wastes least is taken") {
  context ctx;
  const std::unique_ptr<std::byte, decltype(&std::free)> memory(
      static_cast<std::byte*>(std::aligned_alloc(4096, 64 * page)), &std::free);
  std::memset(memory.get(), 0x7f, 64 * page);
  auto cache = resident::open(ctx,
                              {{tensor_pages(element::fp16, 4096), tensor_pages(element::fp16, 256),
                                tensor_pages(element::fp32, 512)}},
                              {.memory = {memory.get(), 64 * page}});
  REQUIRE(cache);
  CHECK(paged_tensor<fp16>::make(*cache, 3 * 4096)->page_elements() == 4096);
  CHECK(paged_tensor<fp16>::make(*cache, 300)->page_elements() == 256);
  CHECK(paged_tensor<fp16>::make(*cache, 4095)->page_elements() == 4096);
  CHECK(paged_tensor<float>::make(*cache, 1)->page_elements() == 512);
  CHECK(paged_tensor<bf16>::make(*cache, 1).error().code == errc::invalid_argument);
  auto t = paged_tensor<float>::make(*cache, 700);
  std::vector<float> in(700), out(700);
  for (std::size_t i = 0; i < in.size(); ++i) in[i] = static_cast<float>(i);
  REQUIRE(t->store(in));
  REQUIRE(t->read(out));
  CHECK(in == out);
  // Behind the end of the last page are zeros, whatever the slot held before.
  const auto last = ctx.sync_wait(t->page(1));
  REQUIRE(last);
  CHECK(last->values().size() == 188);
  CHECK(*(last->values().data() + 511) == 0);
}

TEST_CASE("a memory scope names the cache of new tensors, and scopes nest") {
  context ctx;
  auto a = resident::open(ctx, tensors_only(), {.capacity = 8 * page});
  auto b = resident::open(ctx, tensors_only(), {.capacity = 8 * page});
  REQUIRE(a);
  REQUIRE(b);
  CHECK(paged_tensor<fp16>::make(10).error().code == errc::invalid_argument);
  const auto store_one = [] {
    auto t = paged_tensor<fp16>::make(10);
    REQUIRE(t);
    REQUIRE(t->store(values(10, 1)));
    return std::move(*t);
  };
  {
    memory_scope outer(*a);
    const auto in_a = store_one();
    {
      memory_scope inner(*b);
      const auto in_b = store_one(), too = store_one();
      CHECK(a->stats().blocks == 1);
      CHECK(b->stats().blocks == 2);
    }
    const auto back_in_a = store_one();
    CHECK(a->stats().blocks == 2);
    CHECK(memory_scope::current() == &a->control());
  }
  CHECK(memory_scope::current() == nullptr);
  CHECK(a->stats().blocks == 0);
}
