#include <algorithm>
#include <numeric>
#include <optional>
#include <random>
#include <vector>

#include "catch.hpp"
#include "pattern.hpp"
#include "terrace/attention/attend_batch.hpp"
#include "terrace/attention/stream.hpp"
#include "terrace/batch.hpp"
#include "terrace/medium/ram.hpp"
#include "terrace/policy/lru.hpp"
#include "terrace/testing/scripted.hpp"
#include "terrace/tiered_cache.hpp"

// Who is in a batch, and what may happen to them while they are.

using namespace terrace;

namespace {

constexpr std::size_t block = pattern::block_bytes;
constexpr std::uint32_t layers = 2, q_heads = 2, dim = 64;

using resident = tiered_cache<tier<ram>, lru>;
using two_tiers = tiered_cache<tier<ram>, tier<ram>, lru>;
using over_script = tiered_cache<tier<ram>, tier<scripted>, lru>;

// Sequences that may end one by one.
struct members {
  std::vector<std::optional<sequence>> all;

  // `tokens` tokens, a block at a time, so that tier 0 need not hold them all.
  void add(sequence s, std::uint32_t tokens) {
    for (std::uint32_t done = 0; done < tokens; done += 16)
      REQUIRE(pattern::append(s, std::min(16u, tokens - done), layers,
                              1 + static_cast<std::uint32_t>(all.size())));
    all.emplace_back(std::move(s));
  }
  std::vector<sequence*> pointers() {
    std::vector<sequence*> each;
    for (auto& s : all) each.push_back(&*s);
    return each;
  }
};

std::vector<std::uint32_t> ones(std::size_t n) { return std::vector<std::uint32_t>(n, 1); }

// The positions of the pages that each member has been given.
using pages_seen = std::vector<std::vector<std::int32_t>>;
void note(const batch_window& w, pages_seen& seen) {
  const page_arrays a = w.arrays();
  seen.resize(w.sequences());
  for (std::size_t i = 0; i < w.sequences(); ++i)
    for (std::int32_t p = a.indptr[i]; p < a.indptr[i + 1]; ++p)
      seen[i].push_back(a.positions[static_cast<std::size_t>(p)]);
}

// The rest of a layer's windows; how many there were.
std::size_t note_rest(context& ctx, batch& b, std::uint32_t layer, pages_seen& seen) {
  for (std::size_t windows = 0;; ++windows) {
    auto window = ctx.sync_wait(b.next(layer));
    REQUIRE(window);
    if (window->empty()) return windows;
    note(*window, seen);
  }
}

errc refusal(context& ctx, batch& b, std::uint32_t layer) {
  auto window = ctx.sync_wait(b.next(layer));
  REQUIRE_FALSE(window);
  return window.error().code;
}

std::vector<float> random_queries(std::size_t tokens, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<float> q(tokens * q_heads * dim);
  for (float& x : q) x = static_cast<float>(static_cast<int>(random() % 2001) - 1000) / 250.0f;
  return q;
}

// Notes how a window came: 1 with a value, 2 with an error.
struct watcher {
  using receiver_concept = ex::receiver_t;
  int* how;
  errc* why;
  void set_value(batch_window) noexcept { *how = 1; }
  void set_error(block_error e) noexcept {
    *how = 2;
    *why = e.code;
  }
  void set_stopped() noexcept { *how = 3; }
  struct env {};
  env get_env() const noexcept { return {}; }
};

}  // namespace

TEST_CASE("requests come and go between steps: one may end as soon as assign names others") {
  context ctx{{.codec_threads = 0}};
  auto cache =
      two_tiers::open(ctx, pattern::layout(layers), {.capacity = 24 * block}, {.capacity = 400 * block});
  REQUIRE(cache);
  batch b(*cache, {.sequences = 3, .window_bytes = 2 * block});
  members m;
  for (std::uint32_t i = 0; i < 12; ++i) m.add(cache->make_sequence(), 20 + 7 * i);
  const auto all = m.pointers();
  for (std::size_t step = 0; step + 3 <= all.size(); ++step) {
    const bool writes = step % 3 == 0;
    REQUIRE(b.assign(std::span(all).subspan(step, 3)));
    if (step != 0) m.all[step - 1].reset();
    if (writes) REQUIRE(b.reserve(ones(3)));
    for (std::uint32_t layer = 0; layer < layers; ++layer) {
      pages_seen seen;
      note_rest(ctx, b, layer, seen);
      for (std::size_t i = 0; i < 3; ++i) CHECK(seen[i].size() == (b.tokens(i) + 15) / 16);
    }
    if (writes)
      b.commit(ones(3));
    else
      REQUIRE(ctx.sync_wait(b.next(0)));  // the others come and go in the middle of a layer
  }
  // The last three end before the batch does.
  REQUIRE(b.assign({}));
  m.all.clear();
  CHECK(ctx.sync_wait(b.next(0))->empty());
  REQUIRE(ctx.sync_wait(cache->flush()));
  CHECK(cache->stats().blocks == 0);
}

TEST_CASE("a member that is dropped between windows leaves the others what they would have had") {
  const bool forks = GENERATE(false, true), reserved = GENERATE(false, true);
  context ctx{{.codec_threads = 0}};
  auto cache = resident::open(ctx, pattern::layout(layers), {.capacity = 128 * block});
  REQUIRE(cache);
  members m;
  for (std::uint32_t i = 0; i < 6; ++i)
    m.add(forks && i % 3 != 0 ? cache->fork(*m.all[i - 1]) : cache->make_sequence(),
          16 * (5 - i % 3) + 4 * i);
  const std::size_t blocks = cache->stats().blocks;
  bool more = true;
  for (std::size_t taken = 0; more; ++taken)
    for (std::size_t dropped = 0; dropped < m.all.size(); ++dropped) {
      batch b(*cache, {.sequences = 6, .window_bytes = block});  // four blocks a window
      REQUIRE(b.assign(m.pointers()));
      if (reserved) REQUIRE(b.reserve(ones(6)));
      std::vector<std::vector<std::int32_t>> want(6);
      for (std::size_t i = 0; i < 6; ++i) {
        want[i].resize((b.tokens(i) + 15) / 16);
        for (std::size_t p = 0; p < want[i].size(); ++p) want[i][p] = static_cast<std::int32_t>(16 * p);
      }
      pages_seen seen(6);
      for (std::size_t n = 0; n < taken; ++n) note(*ctx.sync_wait(b.next(1)), seen);
      const auto before = seen[dropped];
      REQUIRE(b.drop(dropped));
      more = note_rest(ctx, b, 1, seen) > 1;
      CHECK(seen[dropped] == before);
      seen[dropped] = want[dropped];
      CHECK(seen == want);
      // Nor has it any in the next layer.
      pages_seen next(6);
      note_rest(ctx, b, 0, next);
      CHECK(next[dropped].empty());
      next[dropped] = want[dropped];
      CHECK(next == want);
      if (reserved) b.commit(std::vector<std::uint32_t>(6, 0));
    }
  CHECK(cache->stats().blocks == blocks);
}

TEST_CASE("a request that has lost a block is dropped and ends, and the others' bits are as ever") {
  context ctx{{.codec_threads = 0}};
  medium_script script;
  auto cache = over_script::open(ctx, pattern::layout(layers), {.capacity = 24 * block},
                                 {.capacity = 200 * block, .script = &script});
  REQUIRE(cache);
  members m;
  for (std::uint32_t i = 0; i < 3; ++i) m.add(cache->make_sequence(), 8 * 16 + 3);
  REQUIRE(ctx.sync_wait(cache->flush()));
  for (const block_id id : pattern::sealed(*m.all[2], 1)) REQUIRE(ctx.sync_wait(cache->acquire({&id, 1})));
  for (const block_id id : pattern::sealed(*m.all[0], 1)) REQUIRE(ctx.sync_wait(cache->acquire({&id, 1})));
  const block_id bad = m.all[1]->pages().rows[0][5];
  script.flip_reads = 1;
  REQUIRE_FALSE(ctx.sync_wait(cache->acquire({&bad, 1})));

  batch b(*cache, {.sequences = 3, .window_bytes = 2 * block, .look_ahead = false});
  REQUIRE(b.assign(m.pointers()));
  REQUIRE(b.reserve(ones(3)));
  for (std::size_t i = 0; i < 3; ++i)
    pattern::write(b.reserved(i), layers, 1 + static_cast<std::uint32_t>(i));
  const auto q = random_queries(3, 5);
  std::vector<query_tile> tiles(3);
  std::vector<partial_state> states(3);
  std::vector<float> out(q.size()), want(q.size());
  const std::size_t each = q.size() / 3;
  const auto part = [&](auto& of, std::size_t i) { return std::span(of).subspan(i * each, each); };
  const auto check = [&](std::size_t i, std::uint32_t layer) {
    REQUIRE(ctx.sync_wait(stream(*cache, *m.all[i], b.reserved(i), layer, part(q, i), part(want, i))));
    return std::ranges::equal(part(out, i), part(want, i));
  };

  REQUIRE(load(b, 0, q, tiles, states));
  bool dropped = false;
  for (;;) {
    auto window = ctx.sync_wait(b.next(0));
    if (!window) {
      REQUIRE_FALSE(dropped);
      REQUIRE(window.error().lost.size() == 1);
      CHECK(window.error().lost[0].id == bad);
      window.error().rest.release();
      REQUIRE(b.drop(1));
      m.all[1].reset();
      dropped = true;
      continue;
    }
    if (window->empty()) break;
    attend(*window, tiles, states);
  }
  REQUIRE(dropped);
  REQUIRE(finish(states, out));
  CHECK(check(0, 0));
  CHECK(check(2, 0));

  // In the next layer it has no tokens: queries are those of the two others.
  std::vector<float> of_two(part(q, 0).begin(), part(q, 0).end());
  of_two.insert(of_two.end(), part(q, 2).begin(), part(q, 2).end());
  REQUIRE(load(b, 1, of_two, tiles, states));
  CHECK(states[1].rows() == 0);
  while (auto window = ctx.sync_wait(b.next(1))) {
    if (window->empty()) break;
    attend(*window, tiles, states);
  }
  REQUIRE(finish(states, of_two));
  std::ranges::copy(std::span(of_two).first(each), part(out, 0).begin());
  std::ranges::copy(std::span(of_two).last(each), part(out, 2).begin());
  CHECK(check(0, 1));
  CHECK(check(2, 1));

  CHECK(b.size() == 3);
  CHECK(b.tokens(1) == 0);
  b.commit(std::vector<std::uint32_t>{1, 0, 1});
  CHECK(m.all[0]->length() == 8 * 16 + 4);
  CHECK(m.all[2]->length() == 8 * 16 + 4);
  CHECK(b.reserve(ones(3)).error().code == errc::invalid_argument);
  REQUIRE(b.reserve(std::vector<std::uint32_t>{1, 0, 1}));
  b.commit(std::vector<std::uint32_t>{0, 0, 0});
}

TEST_CASE("who cannot be dropped is not, and a batch may drop all that it has") {
  context ctx;
  auto cache = resident::open(ctx, pattern::layout(layers), {.capacity = 64 * block});
  REQUIRE(cache);
  members m;
  for (std::uint32_t i = 0; i < 2; ++i) m.add(cache->make_sequence(), 70);
  batch b(*cache, {.sequences = 2, .window_bytes = block});
  const auto refused = [&](std::size_t i) {
    const result<void> r = b.drop(i);
    return !r && r.error().code == errc::invalid_argument;
  };
  CHECK(refused(0));
  REQUIRE(b.assign(m.pointers()));
  REQUIRE(b.reserve(ones(2)));
  {
    auto window = ctx.sync_wait(b.next(0));
    REQUIRE(window);
    CHECK(refused(0));
  }
  CHECK(refused(2));
  REQUIRE(b.drop(0));
  CHECK(refused(0));
  CHECK(b.new_tokens(0) == 0);
  CHECK(b.new_tokens(1) == 1);
  REQUIRE(b.drop(1));
  m.all.clear();
  CHECK(ctx.sync_wait(b.next(0))->empty());
  CHECK(ctx.sync_wait(b.next(1))->empty());
  b.commit(std::vector<std::uint32_t>{0, 0});
  m.add(cache->make_sequence(), 5);
  REQUIRE(b.assign(m.pointers()));
  CHECK(b.size() == 1);
  CHECK(b.tokens(0) == 5);
}

TEST_CASE("a member that is changed in the middle of a layer is noticed, not read past its end") {
  context ctx{{.codec_threads = 0}};
  auto cache = resident::open(ctx, pattern::layout(layers), {.capacity = 128 * block});
  REQUIRE(cache);
  members m;
  for (std::uint32_t i = 0; i < 3; ++i) m.add(cache->make_sequence(), 7 * 16 + 3);
  batch b(*cache, {.sequences = 3, .window_bytes = block});
  REQUIRE(b.assign(m.pointers()));
  sequence& s = *m.all[1];
  const auto begin = [&] { REQUIRE_FALSE(ctx.sync_wait(b.next(0))->empty()); };
  const auto noticed = [&] {
    CHECK(refusal(ctx, b, 0) == errc::invalid_argument);
    CHECK(refusal(ctx, b, 0) == errc::invalid_argument);  // and is not forgotten
    const result<void> dropped = b.drop(0);
    CHECK_FALSE(dropped);
    b.rewind();
    pages_seen seen;
    note_rest(ctx, b, 0, seen);
    return seen[1].size() == (s.length() + 15) / 16;
  };
  begin();
  REQUIRE(s.truncate(100));
  CHECK(noticed());
  begin();
  {
    auto room = s.reserve(40);
    REQUIRE(room);
    CHECK(refusal(ctx, b, 0) == errc::invalid_argument);
  }
  CHECK(noticed());
  begin();
  REQUIRE(pattern::append(s, 30, layers, 2));
  CHECK(noticed());
  begin();
  s.forget(0, 32);
  CHECK(refusal(ctx, b, 0) == errc::invalid_argument);
  // Another layer is begun anew in any case.
  pages_seen seen;
  note_rest(ctx, b, 1, seen);
  CHECK(seen[1].size() == (s.length() + 15) / 16 - 2);
  begin();
  s.forget(0, 32);  // they are gone already: nothing changes
  begin();
  b.rewind();
  b.rewind();
  note_rest(ctx, b, 0, seen);
  for (bool last = false; !last;) last = ctx.sync_wait(b.next(0))->last();
  REQUIRE(s.truncate(64));  // nothing more is to come
  CHECK(ctx.sync_wait(b.next(0))->empty());
  begin();
  s.release();
  CHECK(noticed());
}

TEST_CASE("a member's own reservation is not taken for tokens of the batch") {
  context ctx{{.codec_threads = 0}};
  auto cache = resident::open(ctx, pattern::layout(layers), {.capacity = 128 * block});
  REQUIRE(cache);
  members m;
  for (std::uint32_t i = 0; i < 3; ++i) m.add(cache->make_sequence(), 20 + 16 * i);
  batch b(*cache, {.sequences = 3, .window_bytes = 2 * block});
  REQUIRE(b.assign(m.pointers()));
  auto own = m.all[1]->reserve(40);
  REQUIRE(own);
  CHECK(refusal(ctx, b, 0) == errc::invalid_argument);
  const result<void> both = b.reserve(ones(3));
  REQUIRE_FALSE(both);
  CHECK(both.error().code == errc::invalid_argument);
  CHECK(m.all[0]->length() == 20);

  // One that sits a step out may be filled meanwhile.
  REQUIRE(b.reserve(std::vector<std::uint32_t>{1, 0, 1}));
  pages_seen seen;
  note_rest(ctx, b, 0, seen);
  CHECK(seen[0].size() == 2);
  CHECK(seen[1].empty());
  CHECK(seen[2].size() == 4);
  b.commit(std::vector<std::uint32_t>(3, 0));

  pattern::write(*own, layers, 2);
  m.all[1]->commit(std::move(*own), 40);
  seen.clear();
  note_rest(ctx, b, 0, seen);
  CHECK(seen[1].size() == 5);
}

TEST_CASE("a member that is changed while a window is on its way is noticed when that comes") {
  context ctx{{.codec_threads = 0}};
  medium_script script;
  auto cache = over_script::open(ctx, pattern::layout(layers), {.capacity = 16 * block},
                                 {.capacity = 200 * block, .script = &script});
  REQUIRE(cache);
  members m;
  for (std::uint32_t i = 0; i < 2; ++i) m.add(cache->make_sequence(), 10 * 16);
  REQUIRE(ctx.sync_wait(cache->flush()));
  for (const block_id id : pattern::sealed(*m.all[0], 1)) REQUIRE(ctx.sync_wait(cache->acquire({&id, 1})));
  while (!ctx.idle()) ctx.poll();
  const auto pins = cache->stats().pins;
  batch b(*cache, {.sequences = 2, .window_bytes = 2 * block});
  REQUIRE(b.assign(m.pointers()));
  int how = 0;
  errc why{};
  script.hold = true;
  auto operation = b.next(0).connect(watcher{&how, &why});
  ex::start(operation);
  REQUIRE(how == 0);
  REQUIRE(m.all[0]->truncate(32));
  script.hold = false;
  script.release_all();
  while (!ctx.idle()) ctx.poll();
  CHECK(how == 2);
  CHECK(why == errc::invalid_argument);
  CHECK(cache->stats().pins == pins);
  b.rewind();
  pages_seen seen;
  note_rest(ctx, b, 0, seen);
  CHECK(seen[0].size() == 2);
  CHECK(seen[1].size() == 10);
}

TEST_CASE("what a batch can never have room for is refused before anything leaves tier 0") {
  context ctx{{.codec_threads = 0}};
  auto cache =
      two_tiers::open(ctx, pattern::layout(layers), {.capacity = 16 * block}, {.capacity = 64 * block});
  REQUIRE(cache);
  members m;
  for (std::uint32_t i = 0; i < 3; ++i) m.add(cache->make_sequence(), 32);
  REQUIRE(ctx.sync_wait(cache->flush()));
  batch b(*cache, {.sequences = 3});
  REQUIRE(b.assign(m.pointers()));
  const std::size_t before = cache->stats().tiers[0].resident_bytes;
  REQUIRE(before == 12 * block);
  const auto refused =
      b.reserve(std::vector<std::uint32_t>{48, 48, 33});  // 18 blocks, at most 6 for each alone
  REQUIRE_FALSE(refused);
  CHECK(refused.error().code == errc::out_of_capacity);
  CHECK(cache->stats().tiers[0].resident_bytes == before);
  REQUIRE(b.reserve(std::vector<std::uint32_t>{48, 48, 32}));  // all of tier 0
  b.commit(std::vector<std::uint32_t>{0, 0, 0});
}

TEST_CASE("forks with a common open tail share it again where there is no room for the copies and the tail") {
  context ctx;
  auto cache = resident::open(ctx, pattern::layout(layers), {.capacity = 12 * block});
  REQUIRE(cache);
  members m;
  m.add(cache->make_sequence(), 20);
  for (int i = 0; i < 4; ++i) m.add(cache->fork(*m.all[0]), 0);
  batch b(*cache, {.sequences = 5});
  REQUIRE(b.assign(m.pointers()));
  const auto before = cache->stats();
  CHECK(before.blocks == 4);
  CHECK(b.reserve(ones(5)).error().code == errc::out_of_capacity);  // 10 copies, where 8 fit
  CHECK(cache->stats().blocks == before.blocks);
  CHECK(cache->stats().pins == before.pins);
  for (std::size_t i = 1; i < 5; ++i)
    CHECK(m.all[i]->pages().rows[1].back() == m.all[0]->pages().rows[1].back());
}
