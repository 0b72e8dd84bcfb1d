// Prefixes that a later cache finds again under their names.
#include <cstdint>
#include <span>
#include <vector>

#include "catch.hpp"
#include "medium/sandbox.hpp"
#include "pattern.hpp"
#include "terrace/medium/nvme.hpp"
#include "terrace/named_prefix.hpp"
#include "terrace/policy/lru.hpp"
#include "terrace/tiered_cache.hpp"

using namespace terrace;

namespace {

constexpr std::size_t slot = pattern::block_bytes;
constexpr std::uint32_t layers = 2, chunk = 32;
using ladder = tiered_cache<tier<ram>, tier<nvme>, lru>;

// Two groups with blocks of different sizes: a chunk is two blocks of the first and one of the second.
kv_layout two_groups() {
  return {.groups = {{.first_layer = 0, .layers = 1, .tokens = 16, .k = {1, 64}, .v = {1, 64}},
                     {.first_layer = 1, .layers = 1, .tokens = 32, .k = {1, 64}, .v = {1, 64}}}};
}

std::vector<block_key> keys(std::size_t chunks, std::uint64_t text = 1) {
  std::vector<block_key> all;
  for (std::size_t c = 0; c < chunks; ++c) all.push_back({.low = c, .high = text});
  return all;
}

struct kept_cache {
  explicit kept_cache(const sandbox::folder& f)
      : opened(ladder::open(ctx, two_groups(), {.capacity = 64 * slot},
                            {.capacity = 256 * slot, .path = f / "kv", .keep = true})) {
    REQUIRE(opened);
  }
  kept_cache(kept_cache&&) = delete;
  ladder& cache() { return *opened; }

  std::uint64_t adopted(std::span<const block_key> names, std::uint32_t tag) {
    sequence s = cache().make_sequence();
    const auto tokens = adopt_named_prefix(cache(), s, names);
    REQUIRE(tokens);
    CHECK(s.length() == *tokens);
    CHECK(holds(s, tag));
    CHECK(match_named_prefix(cache(), names) == *tokens);
    return *tokens;
  }
  // Whether every sealed block can be read, and has what `tag` writes there.
  bool holds(const sequence& s, std::uint32_t tag) {
    for (std::uint32_t row = 0; row < s.pages().rows.size(); ++row) {
      const std::vector<block_id> ids = pattern::sealed(s, row);
      for (std::size_t i = 0; i < ids.size(); ++i) {
        const auto held = ctx.sync_wait(cache().acquire({&ids[i], 1}));
        const layer_group& g = cache().layout().groups[row];
        if (!held || !pattern::holds(g, (*held)[0].data, row, i, tag, g.tokens)) return false;
      }
    }
    return true;
  }

  context ctx;
  result<ladder> opened;
};

}  // namespace

TEST_CASE("named prefixes: a later cache begins with what an earlier one has flushed") {
  const sandbox::folder f;
  {
    kept_cache first(f);
    sequence s = first.cache().make_sequence();
    REQUIRE(pattern::append(s, 5 * chunk + 20, layers, 7));
    CHECK(first.adopted(keys(5), 7) == 0);
    CHECK(name_prefix(first.cache(), s, keys(6)).value() == 5 * chunk);  // the sixth is not whole
    CHECK(name_prefix(first.cache(), s, keys(6)).value() == 5 * chunk);  // again: nothing changes
    REQUIRE(first.ctx.sync_wait(first.cache().flush()));
  }
  kept_cache later(f);
  CHECK(later.adopted(keys(6), 7) == 5 * chunk);
  CHECK(later.adopted(keys(3), 7) == 3 * chunk);
  CHECK(later.adopted(keys(6, 2), 7) == 0);  // another text
  auto other = keys(5);
  other[2].low = 99;  // the same text up to here
  CHECK(later.adopted(other, 7) == 2 * chunk);

  // It goes on where the prefix ends, and the chunk that is new gets its name.
  sequence s = later.cache().make_sequence();
  REQUIRE(adopt_named_prefix(later.cache(), s, keys(6)).value() == 5 * chunk);
  REQUIRE(pattern::append(s, chunk, layers, 7));
  CHECK(later.holds(s, 7));
  CHECK(name_prefix(later.cache(), s, keys(6)).value() == 6 * chunk);
  CHECK(later.adopted(keys(6), 7) == 6 * chunk);
}

TEST_CASE("named prefixes: two sequences with one text have one set of blocks under its names") {
  const sandbox::folder f;
  kept_cache kept(f);
  sequence a = kept.cache().make_sequence(), b = kept.cache().make_sequence();
  REQUIRE(pattern::append(a, 2 * chunk, layers, 7));
  REQUIRE(pattern::append(b, 3 * chunk, layers, 7));
  REQUIRE(name_prefix(kept.cache(), a, keys(2)).value() == 2 * chunk);
  REQUIRE(name_prefix(kept.cache(), b, keys(3)).value() == 3 * chunk);
  sequence c = kept.cache().make_sequence();
  REQUIRE(adopt_named_prefix(kept.cache(), c, keys(3)).value() == 3 * chunk);
  CHECK(c.pages().rows[0][3] == a.pages().rows[0][3]);
  CHECK(c.pages().rows[0][4] == b.pages().rows[0][4]);
}

TEST_CASE("named prefixes: what is forgotten is not found, and its room is free") {
  const sandbox::folder f;
  {
    kept_cache kept(f);
    {
      sequence s = kept.cache().make_sequence();
      REQUIRE(pattern::append(s, 4 * chunk, layers, 7));
      REQUIRE(name_prefix(kept.cache(), s, keys(4)).value() == 4 * chunk);
    }
    const auto all = keys(4);
    forget_prefix(kept.cache(), std::span(all).subspan(1));
    forget_prefix(kept.cache(), keys(2, 5));  // nobody has these
    REQUIRE(kept.ctx.sync_wait(kept.cache().flush()));
    CHECK(kept.cache().stats().blocks == 3);
  }
  kept_cache later(f);
  CHECK(later.adopted(keys(4), 7) == chunk);
  CHECK(later.cache().stats().blocks == 3);
}

TEST_CASE("named prefixes: a sequence that has forgotten blocks is named up to there") {
  const sandbox::folder f;
  kept_cache kept(f);
  sequence s = kept.cache().make_sequence();
  REQUIRE(pattern::append(s, 4 * chunk, layers, 7));
  s.forget(2 * chunk, 3 * chunk);
  CHECK(name_prefix(kept.cache(), s, keys(4)).value() == 2 * chunk);
  CHECK(kept.adopted(keys(4), 7) == 2 * chunk);
}

TEST_CASE("named prefixes: a block has one name, and a key of zeros is none") {
  const sandbox::folder f;
  kept_cache kept(f);
  sequence s = kept.cache().make_sequence();
  REQUIRE(pattern::append(s, 2 * chunk, layers, 7));
  REQUIRE(name_prefix(kept.cache(), s, keys(1)).value() == chunk);
  const auto named = name_prefix(kept.cache(), s, keys(2, 3));
  REQUIRE_FALSE(named);
  CHECK(named.error().code == errc::invalid_argument);
  CHECK(kept.adopted(keys(2), 7) == chunk);  // as it was
}
