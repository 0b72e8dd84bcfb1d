#include "terrace/prefix_index.hpp"

#include <numeric>
#include <random>
#include <vector>

#include "cache/small_cache.hpp"
#include "catch.hpp"

using namespace terrace;

namespace {

using text = std::vector<token_id>;

text random_text(std::size_t tokens, std::uint32_t seed) {
  std::mt19937 random(seed);
  text all(tokens);
  for (token_id& t : all) t = static_cast<token_id>(random() % 50000);
  return all;
}

// Everything collides with everything.
struct no_hash {
  std::uint64_t operator()(std::uint64_t, std::span<const token_id>) const noexcept { return 7; }
};

// Two rows; the second group's blocks are twice as long as the first one's.
kv_layout uneven_layout() {
  return {.groups = {{.first_layer = 0, .layers = 1, .tokens = 16, .k = {1, 64}, .v = {1, 64}},
                     {.first_layer = 1, .layers = 1, .tokens = 32, .k = {1, 64}, .v = {1, 64}}}};
}

struct shared_cache {
  using type = tiered_cache<tier<ram>, tier<scripted>, lru>;
  explicit shared_cache(std::size_t slots = 64, std::size_t below = 4096,
                        kv_layout layout = pattern::layout(1), inclusion how = inclusion::inclusive)
      : opened(type::open(ctx, std::move(layout), {.capacity = slots * pattern::block_bytes},
                          {.capacity = below * pattern::block_bytes, .script = &script}, {},
                          {.transfers = {.inclusions = {inclusion::automatic, how}}})) {
    REQUIRE(opened);
  }
  type& cache() { return *opened; }
  cache_stats stats() { return opened->stats(); }
  /// Lets everything that is on its way arrive.
  void settle() {
    while (script.in_flight != 0 || !ctx.idle()) {
      script.release_all();
      ctx.poll();
    }
  }

  // A request: what is known is adopted, the rest is computed; both are then what `tag` writes.
  template <class Index>
  std::uint64_t run(Index& index, sequence& s, const text& tokens, std::uint32_t tag,
                    std::uint64_t tenant = 0) {
    const std::uint64_t known = index.adopt(s, tokens, tenant);
    const std::uint32_t layers = cache().layout().layers();
    for (std::uint64_t at = known; at < tokens.size(); at += 16)
      REQUIRE(pattern::append(s, static_cast<std::uint32_t>(std::min<std::uint64_t>(16, tokens.size() - at)),
                              layers, tag));
    index.insert(s, tokens, tenant);
    return known;
  }
  bool right(const sequence& s, std::uint32_t tag) {
    for (std::uint32_t row = 0; row < s.pages().rows.size(); ++row) {
      const std::vector<block_id> ids = pattern::sealed(s, row);
      for (std::size_t i = 0; i < ids.size(); ++i) {
        auto held = ctx.sync_wait(cache().acquire({&ids[i], 1}));
        const layer_group& g = s.pages().group(row);
        if (!held || !pattern::holds(g, (*held)[0].data, row, i, tag, g.tokens)) return false;
      }
    }
    return true;
  }

  context ctx{{.codec_threads = 0}};
  medium_script script;
  result<type> opened;
};

}  // namespace

TEST_CASE("prefix_index: 64 requests with a common prefix of 8192 tokens hold it once") {
  shared_cache c(64);
  const text common = random_text(8192, 1);
  prefix_index index(c.cache(), {.chunks = 2048});
  std::vector<sequence> requests;
  for (std::uint32_t n = 0; n < 64; ++n) {
    text own = common;
    const text rest = random_text(32, 100 + n);
    own.insert(own.end(), rest.begin(), rest.end());
    requests.push_back(c.cache().make_sequence());
    CHECK(c.run(index, requests.back(), own, 5) == (n == 0 ? 0 : 8192));
    CHECK(requests.back().length() == 8192 + 32);
  }
  CHECK(c.stats().blocks == 512 + 64 * 2);
  CHECK(c.right(requests[63], 5));
  const prefix_index_stats s = index.stats();
  CHECK(s.adopted_tokens == 63 * 8192);
  CHECK(s.chunks == 512 + 64 * 2);
  CHECK(s.memory_bytes <= 2048 * (prefix_index::overhead_bytes + 16 * 4 + 8 + 8));

  const std::uint64_t written = c.stats().tiers[1].stores;
  sequence fork = c.cache().fork(requests[0]);
  CHECK(c.stats().blocks == 512 + 64 * 2);  // and a fork copies nothing
  CHECK(c.stats().tiers[1].stores == written);
}

TEST_CASE("prefix_index: what nobody refers to stays, and is found in any tier") {
  shared_cache c(8);
  const text tokens = random_text(40 * 16, 2);
  prefix_index index(c.cache());
  sequence first = c.cache().make_sequence();
  CHECK(c.run(index, first, tokens, 9) == 0);
  first.release();
  CHECK(c.stats().blocks == 40);
  CHECK(index.match(tokens) == 640);
  CHECK(index.match(std::span(tokens).first(47)) == 32);  // whole chunks only
  text other = tokens;
  ++other[100];
  CHECK(index.match(other) == 96);

  sequence second = c.cache().make_sequence();
  CHECK(index.adopt(second, tokens) == 640);
  CHECK(c.right(second, 9));
  CHECK(c.stats().dropped == 0);
  CHECK(second.pages().turn == 1);
}

TEST_CASE("prefix_index: a sequence that goes on after a shared prefix writes to blocks of its own") {
  shared_cache c;
  const text tokens = random_text(64, 3);
  prefix_index index(c.cache());
  sequence first = c.cache().make_sequence();
  c.run(index, first, tokens, 4);
  sequence second = c.cache().make_sequence();
  REQUIRE(index.adopt(second, std::span(tokens).first(63)) == 48);
  REQUIRE(pattern::append(second, 20, 1, 6));
  REQUIRE(second.truncate(40));  // into a shared block: what stays is copied
  REQUIRE(pattern::append(second, 8, 1, 6));
  CHECK(c.right(first, 4));
  sequence third = c.cache().make_sequence();
  CHECK(index.adopt(third, tokens) == 64);
  CHECK(c.right(third, 4));
}

TEST_CASE("prefix_index: room is made by dropping what nobody refers to, never what somebody does") {
  for (const inclusion how : {inclusion::inclusive, inclusion::exclusive}) {
    CAPTURE(static_cast<int>(how));
    shared_cache c(8, 24, pattern::layout(1), how);
    prefix_index index(c.cache());
    const text kept = random_text(8 * 16, 1), idle = random_text(12 * 16, 2);
    sequence a = c.cache().make_sequence(), b = c.cache().make_sequence();
    c.run(index, a, kept, 1);
    c.run(index, b, idle, 2);
    b.release();
    CHECK(c.stats().blocks == 20);
    sequence d = c.cache().make_sequence();
    c.run(index, d, random_text(14 * 16, 3), 3);
    CHECK(c.stats().dropped > 0);
    CHECK(index.match(idle) < idle.size());
    CHECK(c.right(a, 1));
    CHECK(c.right(d, 3));
    CHECK(index.match(kept) == kept.size());
    // The blocks behind one that is gone are let go too, and what is left is right.
    const std::uint64_t left = index.stats().blocks;
    CHECK(left == 8 + 14 + index.match(idle) / 16);
    sequence again = c.cache().make_sequence();
    const std::uint64_t found = index.adopt(again, idle);
    CHECK(found < idle.size());
    CHECK(c.right(again, 2));
  }
}

TEST_CASE("prefix_index: a cache full of cached blocks has room for as many referenced ones") {
  for (const inclusion how : {inclusion::inclusive, inclusion::exclusive}) {
    shared_cache c(8, 24, pattern::layout(1), how);
    prefix_index index(c.cache());
    for (std::uint32_t n = 0; n < 20; ++n) {
      CAPTURE(n, static_cast<int>(how));
      sequence s = c.cache().make_sequence();
      c.run(index, s, random_text(20 * 16, n), n);
      CHECK(c.right(s, n));
    }
    index.clear();
    c.settle();
    CHECK(c.stats().pins == 0);
    CHECK(c.stats().blocks == 0);
    for (const tier_stats& t : c.stats().tiers) CHECK(t.resident_bytes == 0);
  }
}

TEST_CASE("prefix_index: equal texts of two tenants share nothing, and a tenant can be forgotten") {
  shared_cache c;
  prefix_index index(c.cache());
  const text tokens = random_text(160, 4);
  sequence a = c.cache().make_sequence(), b = c.cache().make_sequence();
  CHECK(c.run(index, a, tokens, 1, 11) == 0);
  CHECK(index.match(tokens, 12) == 0);
  CHECK(c.run(index, b, tokens, 2, 12) == 0);
  CHECK(c.stats().blocks == 20);
  for (std::size_t i = 0; i < 10; ++i) CHECK(a.pages().rows[0][i] != b.pages().rows[0][i]);
  index.drop_tenant(11);
  CHECK(index.match(tokens, 11) == 0);
  CHECK(index.match(tokens, 12) == 160);
  CHECK(c.right(a, 1));  // the sequence still refers to its blocks
  a.release();
  c.settle();
  CHECK(c.stats().blocks == 10);
}

TEST_CASE("prefix_index: hashes that collide cost time, and nothing else") {
  shared_cache c;
  basic_prefix_index<no_hash> index(c.cache());
  std::vector<sequence> all;
  std::vector<text> texts;
  for (std::uint32_t n = 0; n < 8; ++n) {
    texts.push_back(random_text(64, n / 2));
    if (n % 2 == 1) texts.back()[20] ^= 1u;  // differs in the second chunk
    all.push_back(c.cache().make_sequence());
    CHECK(c.run(index, all.back(), texts.back(), n / 2, n / 4) == (n % 2 == 1 ? 16u : 0u));
  }
  // Equal chunks after unequal ones are no hit.
  text mixed(texts[0].begin(), texts[0].begin() + 16);
  mixed.insert(mixed.end(), texts[2].begin() + 16, texts[2].end());
  CHECK(index.match(mixed, 0) == 16);
  CHECK(index.match(std::span(texts[0]).subspan(16), 0) == 0);
  for (std::uint32_t n = 0; n < 8; ++n) {
    CHECK(index.match(texts[n], n / 4) == 64);
    CHECK(index.match(texts[n], 1 - n / 4) == 0);
    CHECK(c.right(all[n], n / 2));
  }
}

TEST_CASE("prefix_index: a tenant keeps to its quota, and pushes nobody else out") {
  shared_cache c;
  prefix_index index(c.cache(), {.tenant_blocks = 10});
  const text other = random_text(80, 99);
  sequence s = c.cache().make_sequence();
  c.run(index, s, other, 0, 2);
  for (std::uint32_t n = 0; n < 6; ++n) {
    sequence mine = c.cache().make_sequence();
    c.run(index, mine, random_text(64, n), n, 1);
    CHECK(index.stats().blocks <= 10 + 5);
  }
  CHECK(index.match(random_text(64, 5), 1) == 64);  // the newest
  CHECK(index.match(random_text(64, 0), 1) == 0);
  CHECK(index.match(other, 2) == 80);
  CHECK(index.stats().evicted >= 6 * 4 - 10);
  const text longer = random_text(20 * 16, 77);
  sequence mine = c.cache().make_sequence();
  c.run(index, mine, longer, 7, 1);
  CHECK(index.match(longer, 1) == 160);  // as much of it as the quota holds, from its start
}

TEST_CASE("prefix_index: when it is full, the tenant with the most chunks gives its oldest") {
  shared_cache c;
  prefix_index index(c.cache(), {.chunks = 12});
  const text small = random_text(32, 1), old = random_text(64, 2), young = random_text(64, 3);
  std::vector<sequence> all;
  const auto run = [&](const text& tokens, std::uint64_t tenant) {
    all.push_back(c.cache().make_sequence());
    c.run(index, all.back(), tokens, 1, tenant);
  };
  run(small, 1);
  run(old, 2);
  run(young, 2);
  run(random_text(64, 4), 3);
  CHECK(index.stats().chunks == 12);
  CHECK(index.match(small, 1) == 32);
  CHECK(index.match(old, 2) == 32);  // from its end
  CHECK(index.match(young, 2) == 64);
}

TEST_CASE("prefix_index: groups whose blocks differ in length are shared by chunks of both") {
  shared_cache c(64, 256, uneven_layout());
  prefix_index index(c.cache());
  CHECK(index.chunk_tokens() == 32);
  const text tokens = random_text(112, 5);
  sequence a = c.cache().make_sequence(), b = c.cache().make_sequence();
  c.run(index, a, tokens, 3);
  CHECK(c.run(index, b, tokens, 3) == 96);
  CHECK(c.right(b, 3));
  for (std::size_t i = 0; i < 6; ++i) CHECK(a.pages().rows[0][i] == b.pages().rows[0][i]);
  for (std::size_t i = 0; i < 3; ++i) CHECK(a.pages().rows[1][i] == b.pages().rows[1][i]);
}

TEST_CASE("prefix_index: blocks that were forgotten are not inserted, those that were lost are replaced") {
  shared_cache c(6);
  prefix_index index(c.cache());
  const text tokens = random_text(160, 6);
  sequence a = c.cache().make_sequence();
  for (int n = 0; n < 10; ++n) REQUIRE(pattern::append(a, 16, 1, 1));
  a.forget(32, 64);
  CHECK(index.insert(a, tokens) == 32);
  CHECK(index.match(tokens) == 32);

  sequence b = c.cache().make_sequence();
  c.run(index, b, tokens, 1);
  CHECK(index.match(tokens) == 160);
}

TEST_CASE("prefix_index: any interleaving leaves every sequence right and every block accounted for") {
  for (const inclusion how : {inclusion::inclusive, inclusion::exclusive}) {
    shared_cache c(12, 40, pattern::layout(1), how);
    basic_prefix_index<no_hash> index(c.cache(), {.chunks = 24, .tenant_blocks = 18});
    std::mt19937 random(3);
    std::vector<std::pair<sequence, std::uint32_t>> live;
    for (int round = 0; round < 600; ++round) {
      const auto kind = static_cast<std::uint32_t>(random() % 4);
      if (random() % 3 != 0 && live.size() < 3) {
        text tokens = random_text(64, kind);
        const text rest = random_text(16 * (random() % 5), 50 + static_cast<std::uint32_t>(random() % 3));
        tokens.insert(tokens.end(), rest.begin(), rest.end());
        live.emplace_back(c.cache().make_sequence(), 1);
        c.run(index, live.back().first, tokens, 1, random() % 2);
      } else if (!live.empty()) {
        const std::size_t at = random() % live.size();
        REQUIRE(c.right(live[at].first, live[at].second));
        live.erase(live.begin() + static_cast<std::ptrdiff_t>(at));
      }
      REQUIRE(index.stats().chunks <= 24);
    }
    live.clear();
    index.clear();
    c.settle();
    CHECK(c.stats().blocks == 0);
    CHECK(c.stats().pins == 0);
    for (const tier_stats& t : c.stats().tiers) CHECK(t.resident_bytes == 0);
  }
}

TEST_CASE("prefix_index: a quota of less than a chunk is one chunk") {
  shared_cache c;
  prefix_index index(c.cache(), {.tenant_blocks = 1});
  sequence s = c.cache().make_sequence();
  const text words = random_text(64, 5);
  c.run(index, s, words, 1, 1);
  CHECK(index.match(words, 1) == 16);
}
