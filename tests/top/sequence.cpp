#include "terrace/sequence.hpp"

#include "catch.hpp"
#include "pattern.hpp"
#include "terrace/execution/sync_wait.hpp"
#include "terrace/medium/ram.hpp"
#include "terrace/policy/lru.hpp"
#include "terrace/testing/scripted.hpp"
#include "terrace/tiered_cache.hpp"

using namespace terrace;

namespace {

using two_tiers = tiered_cache<tier<ram>, tier<ram>, lru>;

struct fixture {
  context ctx;
  result<two_tiers> cache = two_tiers::open(ctx, pattern::layout(), {.capacity = 64 * pattern::block_bytes},
                                            {.capacity = 256 * pattern::block_bytes});

  // Every sealed block of every layer holds what was written.
  bool right(const sequence& s, std::uint32_t tag) {
    for (std::uint32_t row = 0; row < 2; ++row) {
      const auto ids = pattern::sealed(s, row);
      auto held = ctx.sync_wait(cache->acquire(ids));
      if (!held) return false;
      for (std::size_t i = 0; i < ids.size(); ++i)
        if (!pattern::holds(cache->layout().groups[0], (*held)[i].data, row, i, tag, 16)) return false;
    }
    return true;
  }
};

}  // namespace

TEST_CASE("tokens that are not committed vanish") {
  fixture f;
  sequence s = f.cache->make_sequence();
  {
    auto r = s.reserve(40);
    REQUIRE(r);
    CHECK(r->tokens() == 40);
    CHECK(f.cache->stats().blocks == 6);
  }
  CHECK(s.length() == 0);
  CHECK(f.cache->stats().blocks == 0);
  CHECK(f.cache->stats().pins == 0);
  auto r = s.reserve(40);
  REQUIRE(r);
  pattern::write(*r, 2, 1);
  s.commit(std::move(*r), 17);
  CHECK(s.length() == 17);
  CHECK(s.pages().sealed(0) == 1);
  CHECK(s.pages().rows[0].size() == 2);
  CHECK(f.right(s, 1));
}

TEST_CASE("what a sequence cannot do while a reservation is open it refuses, and is as it was") {
  fixture f;
  sequence s = f.cache->make_sequence(), other = f.cache->make_sequence();
  REQUIRE(pattern::append(s, 40, 2, 1));
  REQUIRE(pattern::append(other, 32, 2, 1));
  std::vector<block_id> shared = pattern::sealed(other, 0);
  for (const block_id id : pattern::sealed(other, 1)) shared.push_back(id);
  auto r = s.reserve(8);
  REQUIRE(r);
  pattern::write(*r, 2, 1);
  const auto blocks = f.cache->stats().blocks;
  CHECK(s.reserve(1).error().code == errc::invalid_argument);
  CHECK(s.truncate(16).error().code == errc::invalid_argument);
  CHECK(s.append_shared(32, shared).error().code == errc::invalid_argument);
  CHECK(f.cache->stats().blocks == blocks);
  s.commit(std::move(*r), 8);
  CHECK(s.length() == 48);
  CHECK(f.right(s, 1));
  CHECK(s.append_shared(32, shared));
}

TEST_CASE("a block seals when a commit fills it, and only then") {
  fixture f;
  sequence s = f.cache->make_sequence();
  for (int i = 0; i < 15; ++i) REQUIRE(pattern::append(s, 1, 2, 3));
  CHECK(s.pages().sealed(0) == 0);
  auto r = s.reserve(1);
  REQUIRE(r);
  CHECK(s.pages().sealed(0) == 0);
  pattern::write(*r, 2, 3);
  s.commit(std::move(*r), 1);
  CHECK(s.pages().sealed(0) == 1);
  CHECK(f.right(s, 3));
}

TEST_CASE("a fork shares blocks and copies the open tail when either writes") {
  fixture f;
  sequence a = f.cache->make_sequence();
  REQUIRE(pattern::append(a, 24, 2, 5));
  const auto before = f.cache->stats().blocks;
  sequence b = f.cache->fork(a);
  CHECK(f.cache->stats().blocks == before);
  CHECK(b.length() == 24);
  // Both go on from the same tail, with different tokens.
  auto ra = a.reserve(8);
  REQUIRE(ra);
  pattern::write(*ra, 2, 5);
  a.commit(std::move(*ra), 8);
  REQUIRE(pattern::append(b, 8, 2, 6));
  CHECK(f.cache->stats().blocks == before + 2);
  CHECK(f.right(a, 5));
  const auto ids = pattern::sealed(b, 1);
  REQUIRE(ids.size() == 2);
  auto held = f.ctx.sync_wait(f.cache->acquire(ids));
  REQUIRE(held);
  const layer_group& g = f.cache->layout().groups[0];
  CHECK(pattern::holds(g, (*held)[1].data, 1, 1, 5, 8));  // the shared half
  CHECK_FALSE(pattern::holds(g, (*held)[1].data, 1, 1, 5, 9));
  held->release();
  // The blocks outlive the sequence that made them.
  a.release();
  held = f.ctx.sync_wait(f.cache->acquire(std::span(ids).first(1)));
  REQUIRE(held);
  CHECK(pattern::holds(g, (*held)[0].data, 1, 0, 5, 16));
}

TEST_CASE("a fork that reserves and keeps nothing shares its tail as before") {
  context ctx;
  auto cache =
      tiered_cache<tier<ram>, lru>::open(ctx, pattern::layout(), {.capacity = 6 * pattern::block_bytes});
  REQUIRE(cache);
  sequence a = cache->make_sequence();
  REQUIRE(pattern::append(a, 8, 2, 5));
  sequence b = cache->fork(a);
  CHECK(cache->stats().blocks == 2);
  {
    auto r = b.reserve(4);
    REQUIRE(r);
    CHECK(cache->stats().blocks == 4);
    pattern::write(*r, 2, 6);
  }
  CHECK(cache->stats().blocks == 2);
  CHECK(b.pages().rows[0].back() == a.pages().rows[0].back());
  CHECK_FALSE(b.reserve(40));  // the copies of both tails fit, the blocks behind them do not
  CHECK(cache->stats().blocks == 2);
  CHECK(cache->stats().pins == 2);
  CHECK(b.pages().rows[1].back() == a.pages().rows[1].back());

  // Both write at once, one keeps: the other one's tokens are what they were.
  auto ra = a.reserve(8), rb = b.reserve(8);
  REQUIRE(ra);
  REQUIRE(rb);
  pattern::write(*rb, 2, 6);
  b.commit(std::move(*rb), 8);
  pattern::write(*ra, 2, 7);
  a.commit(std::move(*ra), 0);
  CHECK(cache->stats().blocks == 4);
  auto again = a.reserve(8);
  REQUIRE(again);
  CHECK(cache->stats().blocks == 4);  // nobody else has the tail any more
  pattern::write(*again, 2, 5);
  a.commit(std::move(*again), 8);
  auto held = ctx.sync_wait(cache->acquire(pattern::sealed(a, 1)));
  REQUIRE(held);
  CHECK(pattern::holds(cache->layout().groups[0], (*held)[0].data, 1, 0, 5, 16));
}

TEST_CASE("truncating into a sealed block copies the part that stays") {
  fixture f;
  sequence s = f.cache->make_sequence();
  REQUIRE(pattern::append(s, 50, 2, 7));
  REQUIRE(s.truncate(20));
  CHECK(s.length() == 20);
  CHECK(s.pages().sealed(0) == 1);
  CHECK(s.pages().rows[0].size() == 2);
  // Going on writes behind the 20 tokens, and the first four of the second block are still there.
  REQUIRE(pattern::append(s, 12, 2, 7));
  CHECK(f.right(s, 7));
  REQUIRE(s.truncate(16));
  CHECK(s.pages().rows[0].size() == 1);
  CHECK_FALSE(s.truncate(17));
  REQUIRE(s.truncate(0));
  REQUIRE(f.ctx.sync_wait(f.cache->flush()));  // what is being written behind goes when that has ended
  CHECK(f.cache->stats().blocks == 0);
}

TEST_CASE("forgetting lets whole sealed blocks go") {
  fixture f;
  sequence s = f.cache->make_sequence();
  REQUIRE(pattern::append(s, 70, 2, 9));
  s.forget(0, 40);
  CHECK_FALSE(s.pages().rows[0][0].valid());
  CHECK_FALSE(s.pages().rows[1][1].valid());
  CHECK(s.pages().rows[0][2].valid());
  s.forget(0, 1000);  // the open tail stays
  CHECK(s.pages().rows[0][4].valid());
  CHECK(s.length() == 70);
  s.release();
  REQUIRE(f.ctx.sync_wait(f.cache->flush()));
  CHECK(f.cache->stats().blocks == 0);
}

TEST_CASE("everything comes back when sequences end") {
  fixture f;
  for (std::uint32_t i = 0; i < 10; ++i) {
    sequence s = f.cache->make_sequence();
    REQUIRE(pattern::append(s, 100 + i, 2, i));
    sequence t = f.cache->fork(s);
    REQUIRE(pattern::append(t, 30, 2, i));
  }
  REQUIRE(f.ctx.sync_wait(f.cache->flush()));
  const cache_stats end = f.cache->stats();
  CHECK(end.blocks == 0);
  CHECK(end.pins == 0);
  CHECK(end.tiers[0].resident_bytes == 0);
  CHECK(end.tiers[1].resident_bytes == 0);
}

TEST_CASE("out_of_capacity shows at once, and nothing has changed") {
  context ctx;
  auto cache =
      tiered_cache<tier<ram>, lru>::open(ctx, pattern::layout(), {.capacity = 4 * pattern::block_bytes});
  REQUIRE(cache);
  sequence s = cache->make_sequence();
  REQUIRE(pattern::append(s, 30, 2, 1));
  auto r = s.reserve(3);  // a third block for each of two layers, and there are none
  REQUIRE_FALSE(r);
  CHECK(r.error().code == errc::out_of_capacity);
  CHECK(s.length() == 30);
  CHECK(cache->stats().blocks == 4);
  REQUIRE(pattern::append(s, 2, 2, 1));
}

TEST_CASE("append_shared takes all blocks or none, and only those that are what they are said to be") {
  fixture f;
  sequence first = f.cache->make_sequence(), s = f.cache->make_sequence();
  REQUIRE(pattern::append(first, 40, 2, 7));
  const auto row = [](const sequence& of, std::size_t r) -> const auto& { return of.pages().rows[r]; };
  std::vector<block_id> good;  // two sealed blocks of each row
  for (std::size_t r = 0; r < 2; ++r)
    good.insert(good.end(), row(first, r).begin(), row(first, r).begin() + 2);
  const auto refs = [&] {
    std::uint32_t sum = 0;
    for (const block_id id : good) sum += f.cache->control().record(id.index).refs;
    return sum;
  };
  const std::uint32_t before = refs();
  const auto refuses = [&](errc why, std::uint64_t tokens, std::span<const block_id> blocks) {
    const result<void> shared = s.append_shared(tokens, blocks);
    return !shared && shared.error().code == why && s.length() == 0 && refs() == before &&
           row(s, 0).empty() && row(s, 1).empty();
  };
  // Too few, too many, and parts of blocks.
  CHECK(refuses(errc::invalid_argument, 32, std::span(good).first(3)));
  CHECK(refuses(errc::invalid_argument, 32, {}));
  CHECK(refuses(errc::invalid_argument, 16, good));
  CHECK(refuses(errc::invalid_argument, 8, std::span(good).first(2)));
  CHECK(refuses(errc::invalid_argument, ~std::uint64_t{15}, good));
  // Not sealed, of the other row, and no block at all.
  std::vector<block_id> bad = good;
  bad[3] = row(first, 1)[2];
  CHECK(refuses(errc::invalid_argument, 32, bad));
  bad = good;
  std::swap(bad[1], bad[2]);
  CHECK(refuses(errc::invalid_argument, 32, bad));
  bad = good;
  bad[3] = {};
  CHECK(refuses(errc::invalid_argument, 32, bad));
  bad[3] = {1u << 20, 0};
  CHECK(refuses(errc::lost, 32, bad));

  REQUIRE(s.append_shared(32, good));
  CHECK(s.length() == 32);
  CHECK(refs() == before + 4);
  CHECK(f.right(s, 7));
  REQUIRE(pattern::append(s, 8, 2, 7));
  const result<void> behind_a_part = s.append_shared(32, good);
  REQUIRE_FALSE(behind_a_part);
  CHECK(behind_a_part.error().code == errc::invalid_argument);
  CHECK(s.length() == 40);
}

TEST_CASE("append_shared does not take the block of another request for one that is gone") {
  fixture f;
  sequence s = f.cache->make_sequence();
  std::vector<block_id> gone;
  {
    sequence first = f.cache->make_sequence();
    REQUIRE(pattern::append(first, 32, 2, 7));
    REQUIRE(f.ctx.sync_wait(f.cache->flush()));
    for (const auto& row : first.pages().rows) gone.insert(gone.end(), row.begin(), row.end());
  }
  const auto lost = [&] {
    const result<void> shared = s.append_shared(32, gone);
    return !shared && shared.error().code == errc::lost && s.length() == 0;
  };
  CHECK(lost());
  sequence other = f.cache->make_sequence();
  REQUIRE(pattern::append(other, 64, 2, 9));
  REQUIRE(f.cache->control().record(gone[0].index).generation !=
          gone[0].generation);  // somebody else's by now
  CHECK(lost());
  other.release();
  REQUIRE(f.ctx.sync_wait(f.cache->flush()));
  CHECK(f.cache->stats().pins == 0);
  CHECK(f.cache->stats().blocks == 0);
}

TEST_CASE("append_shared takes no block that nobody refers to any more, though a transfer still has it") {
  context ctx{{.codec_threads = 0}};
  medium_script script;
  using scripted_tiers = tiered_cache<tier<ram>, tier<scripted>, lru>;
  auto cache = scripted_tiers::open(ctx, pattern::layout(), {.capacity = 16 * pattern::block_bytes},
                                    {.capacity = 64 * pattern::block_bytes, .script = &script});
  REQUIRE(cache);
  script.hold = true;
  std::vector<block_id> going;
  {
    sequence first = cache->make_sequence();
    REQUIRE(pattern::append(first, 16, 2, 7));
    for (const auto& row : first.pages().rows) going.insert(going.end(), row.begin(), row.end());
  }
  REQUIRE(cache->stats().blocks == 2);  // they are being written behind
  sequence s = cache->make_sequence();
  const result<void> shared = s.append_shared(16, going);
  script.hold = false;
  script.release_all();
  while (!ctx.idle()) ctx.poll();
  REQUIRE_FALSE(shared);
  CHECK(shared.error().code == errc::lost);
  CHECK(cache->stats().blocks == 0);
}

TEST_CASE("a block knows its place, and the block before it, also where it replaces another") {
  fixture f;
  sequence s = f.cache->make_sequence();
  const auto in_place = [&](const sequence& of) {
    for (const auto& row : of.pages().rows)
      for (std::size_t i = 0; i < row.size(); ++i) {
        if (!row[i].valid()) continue;
        const block_record& r = f.cache->control().record(row[i].index);
        if (r.depth != i || r.parent != (i == 0 ? block_id::no_index : row[i - 1].index)) return false;
      }
    return true;
  };
  REQUIRE(pattern::append(s, 40, 2, 7));
  CHECK(in_place(s));
  // Copy on write of a tail that is shared.
  sequence b = f.cache->fork(s);
  REQUIRE(pattern::append(b, 4, 2, 8));
  REQUIRE(b.pages().rows[0][2] != s.pages().rows[0][2]);
  CHECK(in_place(b));
  // A cut within a sealed block, far from the end, and within the first.
  REQUIRE(pattern::append(s, 160, 2, 7));
  REQUIRE(s.truncate(20));
  CHECK(in_place(s));
  REQUIRE(pattern::append(s, 40, 2, 7));
  CHECK(in_place(s));
  REQUIRE(s.truncate(5));
  CHECK(in_place(s));
  // Behind what is forgotten.
  REQUIRE(pattern::append(s, 43, 2, 7));
  s.forget(0, 48);
  REQUIRE(pattern::append(s, 16, 2, 7));
  CHECK(f.cache->control().record(s.pages().rows[0][3].index).parent == block_id::no_index);
  CHECK(f.cache->control().record(s.pages().rows[0][3].index).depth == 3);
}

TEST_CASE("what can never fit into tier 0 is refused before anything leaves it") {
  context ctx{{.codec_threads = 0}};
  auto cache = two_tiers::open(ctx, pattern::layout(), {.capacity = 16 * pattern::block_bytes},
                               {.capacity = 64 * pattern::block_bytes});
  REQUIRE(cache);
  sequence s = cache->make_sequence();
  REQUIRE(pattern::append(s, 24 + 64, 2, 1));  // 5 sealed blocks and an open one in each row
  REQUIRE(ctx.sync_wait(cache->flush()));
  const auto resident = [&] { return cache->stats().tiers[0].resident_bytes; };
  const std::size_t before = resident();
  REQUIRE(before == 12 * pattern::block_bytes);
  const auto refused = [&](auto&& r) { return !r && r.error().code == errc::out_of_capacity; };
  CHECK(refused(s.reserve(1 << 20)));
  CHECK(refused(s.reserve(8 + 7 * 16 + 1)));  // 9 open blocks in each row, where 8 fit
  CHECK(refused(cache->control().borrow(17 * pattern::block_bytes)));
  CHECK(resident() == before);
  CHECK(s.length() == 88);
  CHECK(s.reserve(8 + 7 * 16));  // that is all of tier 0
}

TEST_CASE("one group of layers forgets and is hinted at, and the others are as they were") {
  context ctx;
  const kv_layout layout{
      {{.first_layer = 0, .layers = 2, .tokens = 16, .k = {1, 64}, .v = {1, 64}},
       {.first_layer = 2, .layers = 2, .tokens = 16, .k = {1, 64}, .v = {1, 64}, .keep = {.window = 32}}}};
  auto cache = tiered_cache<tier<ram>, lru>::open(ctx, layout, {.capacity = 128 * pattern::block_bytes});
  REQUIRE(cache);
  sequence s = cache->make_sequence();
  REQUIRE(pattern::append(s, 100, 4, 1));
  CHECK(s.hint(0, 96, hint::hot(), 1).blocks == 12);
  s.forget(0, 64, 1);
  for (std::size_t row = 0; row < 4; ++row)
    for (std::size_t i = 0; i < 6; ++i) CHECK(s.pages().rows[row][i].valid() == (row < 2 || i >= 4));
  const auto place = cache->range_of(s.pages().rows[3][5]);
  CHECK(place == block_range{.first_layer = 3, .layers = 1, .first_token = 80, .tokens = 16});
  CHECK(cache->range_of({}) == std::nullopt);
}

TEST_CASE("a part of a sequence is shared in whole blocks, while a reservation is open too") {
  fixture f;
  sequence s = f.cache->make_sequence();
  REQUIRE(pattern::append(s, 40, 2, 7));
  auto open = s.reserve(30);
  REQUIRE(open);
  auto part = f.cache->fork(s, 32);
  REQUIRE(part);
  CHECK(part->length() == 32);
  CHECK(part->number() != s.number());
  for (std::size_t row = 0; row < 2; ++row) {
    REQUIRE(part->pages().rows[row].size() == 2);
    for (std::size_t i = 0; i < 2; ++i) CHECK(part->pages().rows[row][i] == s.pages().rows[row][i]);
    CHECK(f.cache->control().record(s.pages().rows[row][1].index).refs == 2);
  }
  REQUIRE(pattern::append(*part, 8, 2, 7));                            // it goes on by itself
  CHECK(f.cache->fork(s, 33).error().code == errc::invalid_argument);  // within a block
  CHECK(f.cache->fork(s, 48).error().code == errc::invalid_argument);  // more than was committed
  { reservation end = std::move(*open); }
  s.release();
  CHECK(part->length() == 40);
  CHECK(f.cache->fork(*part, 0)->length() == 0);

  part->forget(0, 16);  // what is forgotten is so in both
  const auto later = f.cache->fork(*part, 32);
  REQUIRE(later);
  CHECK_FALSE(later->pages().rows[0][0].valid());
  CHECK(later->pages().rows[0][1] == part->pages().rows[0][1]);
}
