// Requests that wait: their open blocks leave tier 0 as others do, and come back; and cuts that do not block.
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "small_cache.hpp"
#include "terrace/batch.hpp"
#include "terrace/codec/q8_0.hpp"
#include "two_groups.hpp"
#include "watcher.hpp"

using namespace terrace;

namespace {

// Reads the tokens that a sequence has, its open block included; `tag` is what was written.
bool right(small_cache<>& f, sequence& s, std::uint32_t tag) {
  const layer_group& g = f.cache().layout().groups[0];
  const auto& row = s.pages().rows[0];
  for (std::size_t i = 0; i < row.size(); ++i) {
    const auto tokens = static_cast<std::uint32_t>(std::min<std::uint64_t>(16, s.length() - 16 * i));
    if (f.cache().control().record(row[i].index).now == block_record::phase::open) {
      if (!pattern::holds(g, f.cache().control().open_data(row[i].index), 0, i, tag, tokens)) return false;
      continue;
    }
    auto held = f.ctx.sync_wait(f.cache().acquire(std::span(&row[i], 1)));
    if (!held || !pattern::holds(g, (*held)[0].data, 0, i, tag, tokens)) return false;
  }
  return true;
}

}  // namespace

TEST_CASE("a request that waits leaves tier 0 wholly, and goes on as if it had not") {
  small_cache<> f(6, 64);
  REQUIRE(f.append(2));
  REQUIRE(pattern::append(*f.tokens, 5, 1, 1));
  f.settle();
  CHECK(f.cache().stats().pins == 1);
  const auto blocks = f.tokens->suspend();
  REQUIRE(blocks);
  CHECK(*blocks == 1);
  CHECK(f.tokens->suspended());
  REQUIRE(f.ctx.sync_wait(f.cache().flush()));
  CHECK(f.cache().stats().pins == 0);
  sequence other = f.cache().make_sequence();
  REQUIRE(other.reserve(6 * 16));  // all of tier 0 is for somebody else
  CHECK(f.copy(0, 0) == block_copy::state::absent);

  CHECK(f.tokens->length() == 37);
  CHECK(f.tokens->reserve(1).error().code == errc::invalid_argument);
  CHECK(f.ctx.sync_wait(f.tokens->reserve_async(1)).error().code == errc::invalid_argument);
  CHECK(f.tokens->suspend());  // once more is no mistake
  REQUIRE(f.ctx.sync_wait(f.tokens->resume()));
  CHECK_FALSE(f.tokens->suspended());
  CHECK(f.tokens->length() == 37);
  CHECK(right(f, *f.tokens, 1));
  REQUIRE(pattern::append(*f.tokens, 20, 1, 1));
  CHECK(right(f, *f.tokens, 1));
  REQUIRE(f.ctx.sync_wait(f.tokens->resume()));  // nothing was suspended
  CHECK(f.tokens->length() == 57);
  f.tokens.reset();
  f.settle();
  CHECK(f.cache().stats().blocks == 0);
}

TEST_CASE("one that ends with whole blocks has nothing to suspend, and one that is reserved cannot be") {
  small_cache<> f(6, 64);
  REQUIRE(f.append(2));
  CHECK(*f.tokens->suspend() == 0);
  CHECK_FALSE(f.tokens->suspended());
  auto room = f.tokens->reserve(1);
  REQUIRE(room);
  CHECK(f.tokens->suspend().error().code == errc::invalid_argument);
  CHECK(f.ctx.sync_wait(f.tokens->resume()).error().code == errc::invalid_argument);
  CHECK(f.ctx.sync_wait(f.tokens->truncate_async(3)).error().code == errc::invalid_argument);
}

TEST_CASE("more requests wait than tier 0 has slots, and each goes on") {
  small_cache<> f(4, 64);
  std::vector<sequence> requests;
  for (std::uint32_t i = 0; i < 20; ++i) {
    requests.push_back(f.cache().make_sequence());
    REQUIRE(pattern::append(requests.back(), 3 + i % 5, 1, i));
    REQUIRE(requests.back().suspend());
  }
  for (std::uint32_t round = 0; round < 2; ++round)
    for (std::uint32_t i = 0; i < 20; ++i) {
      REQUIRE(f.ctx.sync_wait(requests[i].resume()));
      CHECK(right(f, requests[i], i));
      REQUIRE(pattern::append(requests[i], 4, 1, i));
      REQUIRE(requests[i].suspend());
    }
  for (std::uint32_t i = 0; i < 20; ++i) {
    CHECK(requests[i].length() == 11 + i % 5);
    REQUIRE(f.ctx.sync_wait(requests[i].resume()));
    CHECK(right(f, requests[i], i));
    REQUIRE(requests[i].suspend());
  }
}

TEST_CASE("an open block that a fork shares stays, and forks of one that waits go on by themselves") {
  small_cache<> f(8, 64);
  REQUIRE(pattern::append(*f.tokens, 21, 1, 1));
  {
    sequence fork = f.cache().fork(*f.tokens);
    CHECK(*f.tokens->suspend() == 0);
    CHECK(f.tokens->suspended());
    REQUIRE(pattern::append(fork, 4, 1, 1));  // a copy of its own from here
    CHECK(right(f, fork, 1));
    REQUIRE(f.ctx.sync_wait(f.tokens->resume()));
    CHECK(right(f, *f.tokens, 1));
  }
  CHECK(*f.tokens->suspend() == 1);
  sequence fork = f.cache().fork(*f.tokens);
  CHECK(fork.suspended());
  REQUIRE(f.ctx.sync_wait(fork.resume()));
  REQUIRE(pattern::append(fork, 30, 1, 1));
  CHECK(right(f, fork, 1));
  REQUIRE(f.ctx.sync_wait(f.tokens->resume()));
  REQUIRE(pattern::append(*f.tokens, 2, 1, 1));
  CHECK(right(f, *f.tokens, 1));
  f.tokens->release();
  CHECK_FALSE(f.tokens->suspended());
}

TEST_CASE("a request that waits may be cut, and what it does not need is not brought") {
  small_cache<> f(6, 64);
  REQUIRE(pattern::append(*f.tokens, 45, 1, 1));
  REQUIRE(f.tokens->suspend());
  REQUIRE(f.ctx.sync_wait(f.cache().flush()));
  sequence other = f.cache().make_sequence();
  { REQUIRE(other.reserve(6 * 16)); }
  REQUIRE(f.tokens->truncate(40));
  CHECK_FALSE(f.tokens->suspended());
  CHECK(right(f, *f.tokens, 1));
  REQUIRE(f.tokens->suspend());
  REQUIRE(f.ctx.sync_wait(f.cache().flush()));
  { REQUIRE(other.reserve(6 * 16)); }
  const unsigned reads = f.script.reads;
  REQUIRE(f.tokens->truncate(32));
  CHECK_FALSE(f.tokens->suspended());
  CHECK(f.script.reads == reads);
  CHECK(f.tokens->pages().rows[0].size() == 2);
  REQUIRE(pattern::append(*f.tokens, 3, 1, 1));
  CHECK(right(f, *f.tokens, 1));
}

TEST_CASE("one whose block is lost says so, stays suspended, and can be cut to what is left") {
  small_cache<> f(6, 64);
  REQUIRE(pattern::append(*f.tokens, 40, 1, 1));
  const block_id tail = f.tokens->pages().rows[0][2];
  REQUIRE(f.tokens->suspend());
  REQUIRE(f.ctx.sync_wait(f.cache().flush()));
  sequence other = f.cache().make_sequence();
  { REQUIRE(other.reserve(6 * 16)); }
  f.script.flip_reads = 1;
  auto done = f.ctx.sync_wait(f.tokens->resume());
  REQUIRE_FALSE(done);
  CHECK(done.error().code == errc::lost);
  REQUIRE(done.error().lost.size() == 1);
  CHECK(done.error().lost[0].id == tail);
  CHECK(f.tokens->suspended());
  CHECK(f.tokens->length() == 40);
  REQUIRE(f.tokens->truncate(32));
  REQUIRE(pattern::append(*f.tokens, 8, 1, 1));
  CHECK(right(f, *f.tokens, 1));
}

TEST_CASE("a resume that tier 0 can never hold is refused before anything leaves it") {
  context ctx{{.codec_threads = 0}};
  medium_script script;
  using two = tiered_cache<tier<ram>, tier<scripted>, lru>;
  auto cache = two::open(ctx, pattern::layout(8), {.capacity = 8 * pattern::block_bytes},
                         {.capacity = 64 * pattern::block_bytes, .script = &script});
  REQUIRE(cache);
  sequence s = cache->make_sequence();
  REQUIRE(pattern::append(s, 5, 8, 1));  // an open block in each of eight rows: all of tier 0
  REQUIRE(*s.suspend() == 8);
  REQUIRE(ctx.sync_wait(cache->flush()));
  sequence other = cache->make_sequence();
  REQUIRE(pattern::append(other, 16, 8, 2));  // in their place
  REQUIRE(ctx.sync_wait(cache->flush()));
  const unsigned reads = script.reads;
  const auto refused = ctx.sync_wait(s.resume());
  REQUIRE_FALSE(refused);
  CHECK(refused.error().code == errc::out_of_capacity);
  CHECK(s.suspended());
  CHECK(s.length() == 5);
  CHECK(script.reads == reads);
  for (std::uint32_t row = 0; row < 8; ++row) {
    const block_id kept = pattern::sealed(other, row)[0];
    CHECK(cache->control().copy(kept.index, 0).now() == block_copy::state::resident);
  }
  REQUIRE(s.truncate(0));
}

TEST_CASE("a cut waits for a device and for room, and nobody blocks") {
  small_cache<> f(6, 64);
  REQUIRE(f.append(8));
  REQUIRE(f.ctx.sync_wait(f.cache().flush()));
  sequence other = f.cache().make_sequence();
  f.script.hold = true;
  REQUIRE(pattern::append(other, 5 * 16, 1, 3));  // all but one slot are on their way down
  ending how = ending::none;
  auto operation = f.tokens->truncate_async(20).connect(watcher{&how, {}});
  operation.start();
  for (int i = 0; i < 10; ++i) f.ctx.poll();
  CHECK(how == ending::none);
  CHECK(f.tokens->length() == 128);
  CHECK(f.tokens->reserve(1).error().code == errc::invalid_argument);
  f.script.hold = false;
  f.settle();
  CHECK(how == ending::value);
  CHECK(f.tokens->length() == 20);
  CHECK(f.tokens->pages().rows[0].size() == 2);
  CHECK(right(f, *f.tokens, 1));
  CHECK(right(f, other, 3));
}

TEST_CASE("a batch does not look at one that waits") {
  small_cache<> f(6, 64);
  REQUIRE(pattern::append(*f.tokens, 20, 1, 1));
  batch pages(f.cache());
  sequence* const members[] = {&*f.tokens};
  REQUIRE(pages.assign(members));
  REQUIRE(f.tokens->suspend());
  CHECK(f.ctx.sync_wait(pages.next(0)).error().code == errc::invalid_argument);
  const std::vector<std::uint32_t> one{1};
  CHECK(pages.reserve(one).error().code == errc::invalid_argument);
  REQUIRE(f.ctx.sync_wait(f.tokens->resume()));
  auto window = f.ctx.sync_wait(pages.next(0));
  REQUIRE(window);
  CHECK_FALSE(window->empty());
}

TEST_CASE(
    "a layout with blocks of several lengths is suspended, resumed and cut, and a sender may be used again") {
  using store = tiered_cache<tier<ram>, tier<scripted>, lru>;
  const kv_layout layout = layout_of_two_groups();
  context ctx{{.codec_threads = 0}};
  medium_script script;
  auto cache = store::open(ctx, layout, {.capacity = 64 * 1024}, {.capacity = 1 << 20, .script = &script});
  REQUIRE(cache);
  sequence s = cache->make_sequence();
  for (const std::uint32_t tokens : {16u, 16u, 12u}) REQUIRE(pattern::append(s, tokens, 5, 1));
  const auto tail_is_right = [&] {
    const std::byte* const data = cache->control().open_data(s.pages().rows[1].back().index);
    const layer_group& g = layout.groups[0];
    for (std::uint64_t t = 32; t < s.length(); ++t) {
      const auto* row = reinterpret_cast<const fp16*>(data + g.v_offset(1) + g.head_stride(g.v) +
                                                      (t - 32) * g.token_stride(g.v));
      if (row[5] != pattern::element_at(1, 3, true, 1, t, 5)) return false;
    }
    return true;
  };
  CHECK(*s.suspend() == 3);
  auto resume = s.resume();
  REQUIRE(ctx.sync_wait(resume));
  CHECK(tail_is_right());
  REQUIRE(pattern::append(s, 2, 5, 1));
  CHECK(*s.suspend() == 3);
  {
    sequence other = cache->make_sequence();
    for (int i = 0; i < 6; ++i) REQUIRE(pattern::append(other, 16, 5, 2));  // all of tier 0, and more
  }
  REQUIRE(ctx.sync_wait(resume));  // to the length that it has now
  CHECK(s.length() == 46);
  CHECK(tail_is_right());
  REQUIRE(s.truncate(40));  // a whole block of one group, and a part of the others'
  CHECK(*s.suspend() == 2);
  REQUIRE(s.truncate(35));
  CHECK(tail_is_right());
  s.release();
}

namespace {

// Block 3 is lost, and the tokens of another sequence are on their way from every slot.
struct lost_and_no_slot : small_cache<> {
  lost_and_no_slot() : small_cache<>(6, 64), filler(cache().make_sequence()) {
    REQUIRE(append(16));
    REQUIRE(ctx.sync_wait(cache().flush()));
    script.flip_reads = 1;
    REQUIRE_FALSE(read(3));
    script.hold = true;
    REQUIRE(pattern::append(filler, 6 * 16, 1, 3));
  }
  sequence filler;
};

}  // namespace

TEST_CASE("a lost block is computed anew in a slot that nobody has blocked for") {
  lost_and_no_slot f;
  const block_id lost = f.ids()[3];

  std::optional<restoration> room;
  const auto restored =
      f.cache().restore_async(lost) | ex::then([&](restoration r) noexcept { room.emplace(std::move(r)); });
  ending how = ending::none;
  auto operation = restored.connect(watcher{&how, {}});
  operation.start();
  CHECK(how == ending::none);
  f.script.hold = false;
  f.settle();
  REQUIRE(how == ending::value);
  f.write(room->data(), 3);
  std::move(*room).complete();
  CHECK(f.read(3));
  CHECK(f.ctx.sync_wait(f.cache().restore_async(lost)).error().code == errc::invalid_argument);
}

TEST_CASE("who waits to compute a block anew is told when somebody else has") {
  lost_and_no_slot f;
  const block_id lost = f.ids()[3];
  ending first = ending::none, second = ending::none;
  std::optional<restoration> room;
  const auto keep = ex::then([&](restoration r) noexcept { room.emplace(std::move(r)); });
  auto one = (f.cache().restore_async(lost) | keep).connect(watcher{&first, {}});
  auto other = (f.cache().restore_async(lost) | keep).connect(watcher{&second, {}});
  one.start();
  other.start();
  f.script.hold = false;
  f.settle();
  CHECK(first == ending::value);
  CHECK(second == ending::error);
}
