// Lost blocks that are computed anew, and copies that the engine itself finds damaged.
#include <algorithm>
#include <cstddef>
#include <span>
#include <vector>

#include "small_cache.hpp"
#include "terrace/prefix_index.hpp"
#include "two_groups.hpp"

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

TEST_CASE("a lost block is written row by row, or taken from a sequence that has computed it") {
  using store = tiered_cache<tier<ram>, tier<scripted>, lru>;
  const kv_layout layout = layout_of_two_groups();
  context ctx{{.codec_threads = 0}};
  medium_script script;
  auto cache = store::open(ctx, layout, {.capacity = 1 << 20}, {.capacity = 1 << 20, .script = &script});
  REQUIRE(cache);
  sequence s = cache->make_sequence();
  for (int i = 0; i < 4; ++i) REQUIRE(pattern::append(s, 16, 5, 1));
  REQUIRE(ctx.sync_wait(cache->flush()));
  REQUIRE(cache->resize(0, 64 * 1024));
  const auto lose = [&](std::size_t row, std::size_t index) {
    const block_id id = s.pages().rows[row][index];
    for (const auto& other : s.pages().rows)  // what was read last pushes it out
      for (const block_id b : other)
        if (b != id) static_cast<void>(ctx.sync_wait(cache->acquire({&b, 1})));
    script.flip_reads = 1;
    REQUIRE_FALSE(ctx.sync_wait(cache->acquire({&id, 1})));
    return id;
  };
  const auto right = [&](block_id id) {
    const block_range range = *cache->range_of(id);
    auto held = ctx.sync_wait(cache->acquire({&id, 1}));
    if (!held) return false;
    const layer_group& g = cache->layout().groups[range.first_layer < 4 ? 0 : 1];
    for (std::uint32_t layer = 0; layer < range.layers; ++layer)
      for (std::uint32_t h = 0; h < g.k.heads; ++h)
        for (std::uint32_t t = 0; t < g.tokens; ++t)
          for (const bool values : {false, true}) {
            const plane& p = values ? g.v : g.k;
            const auto* row = reinterpret_cast<const fp16*>((*held)[0].data +
                                                            (values ? g.v_offset(layer) : g.k_offset(layer)) +
                                                            h * g.head_stride(p) + t * g.token_stride(p));
            for (std::uint32_t d = 0; d < p.dim; ++d)
              if (row[d] !=
                  pattern::element_at(1, range.first_layer + layer, values, h, range.first_token + t, d))
                return false;
          }
    return true;
  };

  const block_id by_rows = lose(1, 2);  // layers 2 and 3, tokens 32 to 47
  {
    auto anew = cache->restore(by_rows);
    REQUIRE(anew);
    CHECK(anew->range() == block_range{.first_layer = 2, .layers = 2, .first_token = 32, .tokens = 16});
    for (const std::uint32_t layer : {2u, 3u})
      for (const bool values : {false, true}) {
        const plane_rows rows = values ? anew->v(layer) : anew->k(layer);
        CHECK(rows.tokens() == 16);
        for (std::uint32_t t = 0; t < rows.tokens(); ++t)
          for (std::uint32_t h = 0; h < rows.heads(); ++h) {
            const auto row = rows.row<fp16>(t, h);
            for (std::uint32_t d = 0; d < rows.dim(); ++d)
              row[d] = pattern::element_at(1, layer, values, h, 32 + t, d);
          }
      }
    std::move(*anew).complete();
  }
  CHECK(right(by_rows));

  const block_id computed = lose(2, 5);  // layer 4, tokens 40 to 47
  {
    auto past = cache->fork(s, 32);
    REQUIRE(past);
    auto room = past->reserve(16);
    REQUIRE(room);
    pattern::write(*room, 5, 1);
    auto anew = cache->restore(computed);
    REQUIRE(anew);
    REQUIRE(room->copy_to(*anew));
    std::move(*anew).complete();
  }
  CHECK(right(computed));

  const block_id other = lose(0, 1);
  auto past = cache->fork(s, 0);
  auto room = past->reserve(31);  // one token short of it
  REQUIRE(room);
  auto anew = cache->restore(other);
  REQUIRE(anew);
  CHECK(room->copy_to(*anew).error().code == errc::invalid_argument);
  auto elsewhere = store::open(ctx, layout, {.capacity = 1 << 20}, {.capacity = 1 << 20, .script = &script});
  sequence stranger = elsewhere->make_sequence();
  auto foreign = stranger.reserve(48);
  REQUIRE(foreign);
  CHECK(foreign->copy_to(*anew).error().code == errc::invalid_argument);
}

TEST_CASE("what is computed anew takes the place of a copy that could have been read") {
  fixture f;
  auto anew = f.cache().restore(f.ids()[3]);
  REQUIRE(anew);
  f.write(anew->data(), 5);
  const std::vector<std::byte> written(anew->data().begin(), anew->data().end());
  std::move(*anew).complete();
  REQUIRE(f.ctx.sync_wait(f.cache().flush()));
  for (std::size_t i = 6; i < 16; ++i) REQUIRE(f.read(i));
  REQUIRE_FALSE(f.in_tier_0(3));
  const auto ids = f.ids();
  const auto held = f.ctx.sync_wait(f.cache().acquire(std::span(ids).subspan(3, 1)));
  REQUIRE(held);
  CHECK(std::equal(written.begin(), written.end(), (*held)[0].data));
}
