// Lost blocks that are computed anew, and copies that the engine itself finds damaged.
#include <span>
#include <vector>

#include "small_cache.hpp"
#include "terrace/prefix_index.hpp"

using namespace terrace;

namespace {

// Four slots, and sixteen blocks below; all of them saved.
struct fixture : small_cache<> {
  fixture() : small_cache<>(6, 64) {
    REQUIRE(append(16));
    REQUIRE(ctx.sync_wait(cache().flush()));
    REQUIRE_FALSE(in_tier_0(0));
  }
  void lose(std::size_t block) {
    script.flip_reads = 1;
    REQUIRE_FALSE(read(block));
    REQUIRE(copy(block, 1) == block_copy::state::absent);
  }
};

}  // namespace

TEST_CASE("a lost block that is computed anew is as it was, under its id, and is stored again") {
  fixture f;
  f.lose(3);
  const sequence fork = f.cache().fork(*f.tokens);
  {
    auto anew = f.cache().restore(f.ids()[3]);
    REQUIRE(anew);
    CHECK(anew->id() == f.ids()[3]);
    REQUIRE(anew->data().size() == pattern::block_bytes);
    f.write(anew->data(), 3);
    CHECK(f.cache().stats().pins == 1);
    std::move(*anew).complete();
  }
  CHECK(f.in_tier_0(3));
  REQUIRE(f.ctx.sync_wait(f.cache().flush()));
  CHECK(f.cache().stats().pins == 0);
  CHECK(f.copy(3, 1) == block_copy::state::resident);
  for (std::size_t i = 0; i < 16; ++i) CHECK(f.read(i));  // it leaves tier 0, and comes back from below
  CHECK(f.read(3));
  CHECK(pattern::sealed(fork, 0)[3] == f.ids()[3]);
}

TEST_CASE("one that is given up stays lost, and its slot is free again") {
  fixture f;
  f.lose(3);
  const std::size_t before = f.cache().stats().tiers[0].resident_bytes;
  { REQUIRE(f.cache().restore(f.ids()[3])); }
  CHECK(f.cache().stats().tiers[0].resident_bytes <= before);
  CHECK(f.cache().stats().pins == 0);
  CHECK_FALSE(f.read(3));
  REQUIRE(f.append(8));
}

TEST_CASE("an acquire of a block that is being computed anew waits for it") {
  fixture f;
  f.lose(3);
  const auto ids = f.ids();
  struct receiver {
    using receiver_concept = ex::receiver_t;
    int* state;
    void set_value(lease held) noexcept { *state = held[0].data != nullptr ? 1 : 2; }
    void set_error(block_error e) noexcept { *state = e.lost.size() == 1 ? 3 : 4; }
    void set_stopped() noexcept { *state = 5; }
    ex::env<> get_env() const noexcept { return {}; }
  };
  int state = 0;
  auto waits = ex::connect(f.cache().acquire(std::span(ids).subspan(3, 1)), receiver{&state});
  auto anew = f.cache().restore(ids[3]);
  REQUIRE(anew);
  ex::start(waits);
  f.settle();
  CHECK(state == 0);
  SECTION("completed") {
    f.write(anew->data(), 3);
    std::move(*anew).complete();
    f.settle();
    CHECK(state == 1);
    CHECK(f.read(3));
  }
  SECTION("given up") {
    { const restoration ended(std::move(*anew)); }
    f.settle();
    CHECK(state == 3);
  }
  CHECK(f.cache().stats().pins == 0);
}

TEST_CASE("what is not lost cannot be restored; the last reference may go meanwhile") {
  fixture f;
  const auto ids = f.ids();
  REQUIRE(f.read(0));
  CHECK(f.cache().restore(ids[0]).error().code == errc::invalid_argument);  // in tier 0
  CHECK(f.cache().restore({99999, 0}).error().code == errc::invalid_argument);
  f.lose(3);
  auto anew = f.cache().restore(ids[3]);
  REQUIRE(anew);
  CHECK(f.cache().restore(ids[3]).error().code == errc::invalid_argument);  // somebody is at it
  f.tokens->release();
  CHECK(f.cache().stats().blocks == 1);
  std::move(*anew).complete();
  CHECK(f.cache().stats().blocks == 0);
  CHECK(f.cache().stats().tiers[0].resident_bytes == 0);
}

TEST_CASE("without a slot there is no room to compute anything anew") {
  fixture f;
  f.lose(3);
  const auto ids = f.ids();
  auto held = f.ctx.sync_wait(f.cache().acquire(std::span(ids).subspan(6, 6)));
  REQUIRE(held);
  CHECK(f.cache().restore(ids[3]).error().code == errc::out_of_capacity);
  held->release();
  CHECK(f.cache().restore(ids[3]));
}

TEST_CASE("a copy that is reported damaged is never served again") {
  fixture f;
  const auto ids = f.ids();
  REQUIRE(f.cache().report_damaged(ids[2], 1));
  CHECK(f.cache().stats().tiers[1].lost == 1);
  const unsigned reads = f.script.reads;
  CHECK_FALSE(f.read(2));
  CHECK(f.script.reads == reads);
  CHECK(f.cache().report_damaged(ids[2], 1).error().code == errc::invalid_argument);
  CHECK(f.cache().report_damaged(ids[1], 0).error().code == errc::invalid_argument);
  CHECK(f.cache().report_damaged(ids[1], 9).error().code == errc::invalid_argument);
  // Where tier 0 has the block too, it is stored again.
  REQUIRE(f.read(5));
  REQUIRE(f.cache().report_damaged(ids[5], 1));
  REQUIRE(f.ctx.sync_wait(f.cache().flush()));
  CHECK(f.copy(5, 1) == block_copy::state::resident);
  // And while it is read it cannot be given up.
  f.script.hold = true;
  CHECK(f.cache().prefetch(std::span(ids).subspan(7, 1)) == 1);
  f.ctx.poll();
  CHECK(f.cache().report_damaged(ids[7], 1).error().code == errc::unavailable);
  f.settle();
}

TEST_CASE("a cached block whose only copy is reported damaged is gone, and the index is told") {
  fixture f;
  prefix_index prefixes(f.cache());
  const auto ids = f.ids();
  const std::vector<token_id> text(f.tokens->length(), 5);
  REQUIRE(prefixes.insert(*f.tokens, text) == text.size());
  f.tokens->release();
  REQUIRE(f.cache().stats().blocks == 16);
  REQUIRE_FALSE(f.cache().control().copy(ids[2].index, 0).present());
  REQUIRE(f.cache().report_damaged(ids[2], 1));
  CHECK(f.cache().stats().blocks == 15);
  CHECK(prefixes.stats().expired == 1);
  CHECK(prefixes.match(text) == 2 * prefixes.chunk_tokens());
}
