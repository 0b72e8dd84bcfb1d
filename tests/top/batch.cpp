#include "terrace/batch.hpp"

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "catch.hpp"
#include "pattern.hpp"
#include "top/batch_fixture.hpp"

using namespace terrace;
using namespace batch_test;

TEST_CASE("what a batch cannot take it refuses, and is as it was") {
  context ctx;
  auto cache = resident::open(ctx, pattern::layout(layers), {.capacity = 64 * block});
  auto stranger = resident::open(ctx, pattern::layout(layers), {.capacity = 8 * block});
  REQUIRE(cache);
  REQUIRE(stranger);
  STATIC_REQUIRE_FALSE(std::is_copy_constructible_v<batch_window>);
  sequence a = cache->make_sequence(), c = cache->make_sequence(), d = cache->make_sequence();
  sequence elsewhere = stranger->make_sequence();
  batch b(*cache, {.sequences = 2, .pages = 2});
  const auto code = [](const result<void>& r) { return r ? errc{} : r.error().code; };
  const auto refused = [&](std::vector<sequence*> all) {
    const auto assigned = b.assign(all);
    return !assigned && assigned.error().code == errc::invalid_argument;
  };
  CHECK(refused({&a, &c, &d}));
  CHECK(refused({&a, &a}));
  CHECK(refused({&a, &elsewhere}));
  CHECK(refused({nullptr}));
  CHECK(b.size() == 0);
  REQUIRE(b.assign(std::vector<sequence*>{&a, &c}));
  CHECK(code(b.reserve(ones(1))) == errc::invalid_argument);
  CHECK(code(b.reserve(std::vector<std::uint32_t>{16, 17})) == errc::invalid_argument);  // three open pages
  CHECK(b.new_tokens(0) == 0);
  REQUIRE(b.reserve(std::vector<std::uint32_t>{16, 1}));
  CHECK(refused({&d}));
  CHECK(code(b.reserve(ones(2))) == errc::invalid_argument);
  CHECK(ctx.sync_wait(b.next(layers)).error().code == errc::invalid_argument);

  // One window at a time.
  auto window = ctx.sync_wait(b.next(0));
  REQUIRE(window);
  CHECK_FALSE(window->empty());
  CHECK(ctx.sync_wait(b.next(0)).error().code == errc::invalid_argument);
  CHECK(ctx.sync_wait(b.next(1)).error().code == errc::invalid_argument);
  window->release();
  CHECK(window->empty());
  CHECK(ctx.sync_wait(b.next(0))->empty());
  CHECK_FALSE(ctx.sync_wait(b.next(0))->empty());  // begun anew

  requests r;
  r.make_tiles();
  CHECK(code(load(b, 0, queries(17, 1), r.queries, r.states)) == errc::invalid_argument);
  r.queries = std::vector<query_tile>(2);
  r.states = std::vector<partial_state>(2);
  CHECK(code(load(b, 0, std::vector<float>(17 * dim + 1), r.queries, r.states)) == errc::invalid_argument);
  CHECK(code(load(b, layers, queries(17, 1), r.queries, r.states)) == errc::invalid_argument);
  CHECK(load(b, 0, queries(17, 1), r.queries, r.states));
  std::vector<float> small(5);
  CHECK(code(finish(r.states, small)) == errc::invalid_argument);
  b.commit(std::vector<std::uint32_t>{16, 0});
  CHECK(a.length() == 16);
  CHECK(c.length() == 0);
}

TEST_CASE("a batch without sequences or tokens has no windows") {
  context ctx;
  auto cache = resident::open(ctx, pattern::layout(layers), {.capacity = 16 * block});
  REQUIRE(cache);
  batch b(*cache);
  CHECK(ctx.sync_wait(b.next(0))->empty());
  sequence s = cache->make_sequence();
  REQUIRE(b.assign(std::vector<sequence*>{&s}));
  CHECK(ctx.sync_wait(b.next(1))->empty());
  REQUIRE(b.reserve(std::vector<std::uint32_t>{0}));
  CHECK(ctx.sync_wait(b.next(0))->empty());
  b.commit(std::vector<std::uint32_t>{0});
}

TEST_CASE("a batch reserves for all or for none") {
  context ctx;
  auto cache = resident::open(ctx, pattern::layout(layers), {.capacity = 12 * block});
  REQUIRE(cache);
  requests r;
  for (std::uint32_t i = 0; i < 3; ++i) {
    r.sequences.push_back(cache->make_sequence());
    grow(r.sequences[i], 16, 1 + i);
  }
  batch b(*cache);
  REQUIRE(b.assign(r.pointers()));
  const auto before = cache->stats();
  const auto reserved = b.reserve(std::vector<std::uint32_t>{16, 16, 33});  // 2 + 2 + 6 of 6 blocks
  REQUIRE_FALSE(reserved);
  CHECK(reserved.error().code == errc::out_of_capacity);
  CHECK(cache->stats().blocks == before.blocks);
  CHECK(cache->stats().pins == before.pins);
  for (std::size_t i = 0; i < 3; ++i) {
    CHECK(b.new_tokens(i) == 0);
    CHECK(r.sequences[i].length() == 16);
  }
  REQUIRE(b.reserve(std::vector<std::uint32_t>{16, 16, 16}));
  write_all(b, 1);
  b.commit(std::vector<std::uint32_t>{16, 3, 0});
  CHECK(r.sequences[0].length() == 32);
  CHECK(r.sequences[1].length() == 19);
  CHECK(r.sequences[2].length() == 16);
  CHECK(cache->stats().blocks == before.blocks + 4);
}

TEST_CASE("forks with a common open tail share it again where a batch has no room for all") {
  context ctx;
  auto cache = resident::open(ctx, pattern::layout(layers), {.capacity = 12 * block});
  REQUIRE(cache);
  requests r;
  r.sequences.push_back(cache->make_sequence());
  REQUIRE(pattern::append(r.sequences[0], 20, layers, 1));
  for (int i = 0; i < 7; ++i) r.sequences.push_back(cache->fork(r.sequences[0]));
  batch b(*cache);
  REQUIRE(b.assign(r.pointers()));
  const auto before = cache->stats();
  CHECK(before.blocks == 4);
  CHECK(b.reserve(ones(8)).error().code == errc::out_of_capacity);  // 16 copies
  CHECK(cache->stats().blocks == before.blocks);
  CHECK(cache->stats().pins == before.pins);
  // So there is room for as many as fit.
  REQUIRE(b.reserve(std::vector<std::uint32_t>{1, 1, 1, 1, 0, 0, 0, 0}));
  write_all(b, 1);
  b.commit(std::vector<std::uint32_t>{1, 0, 1, 1, 0, 0, 0, 0});
  CHECK(cache->stats().blocks == before.blocks + 6);
  CHECK(r.sequences[1].length() == 20);
}
