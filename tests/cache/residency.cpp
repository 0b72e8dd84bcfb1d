// Which copies lookups find: those that can be read, of the block that the id names, and no other.
#include "terrace/cache/residency.hpp"

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <random>
#include <type_traits>
#include <vector>

#include "catch.hpp"

using namespace terrace;
using state = block_copy::state;

namespace {

constexpr extent somewhere{.offset = 1u << 20, .bytes = 4096, .node = 7};

bool found(const residency& blocks, block_id id, std::size_t t, extent where) {
  const copy_place* const place = blocks.find_place(id, t);
  return place != nullptr && place->offset == where.offset && blocks.where(id.index, t) == where;
}

}  // namespace

TEST_CASE("a copy is found while it can be read, and not before or after") {
  residency blocks(3);
  const std::uint32_t block = blocks.create();
  const block_id id = blocks.id_of(block);
  for (std::size_t t = 0; t < 3; ++t) {
    CHECK(blocks.find_place(id, t) == nullptr);
    blocks.add_copy(block, t, {.offset = 1, .bytes = 2, .node = 3});
    CHECK(blocks.find_place(id, t) == nullptr);
    blocks.move_copy(block, t, somewhere);
    CHECK(blocks.find_place(id, t) == nullptr);
    CHECK(blocks.where(block, t) == somewhere);
    blocks.set_readable(block, t, state::resident);
    CHECK(found(blocks, id, t, somewhere));
    blocks.set_readable(block, t, state::leaving);
    CHECK(found(blocks, id, t, somewhere));
    blocks.set_readable(block, t, state::resident);  // it could not leave
    CHECK(found(blocks, id, t, somewhere));
    for (std::size_t other = t + 1; other < 3; ++other) CHECK(blocks.find_place(id, other) == nullptr);
  }
  blocks.remove_copy(block, 1);
  CHECK(found(blocks, id, 0, somewhere));
  CHECK(blocks.find_place(id, 1) == nullptr);
  CHECK(found(blocks, id, 2, somewhere));
}

TEST_CASE("the id of a block that is gone finds nothing of the one that has its index") {
  residency blocks(2);
  const std::uint32_t block = blocks.create();
  const block_id gone = blocks.id_of(block);
  for (std::size_t t = 0; t < 2; ++t) {
    blocks.add_copy(block, t, somewhere);
    blocks.set_readable(block, t, state::resident);
    blocks.remove_copy(block, t);
  }
  blocks.recycle(block);
  CHECK(blocks.find(gone) == nullptr);
  REQUIRE(blocks.create() == block);
  const block_id id = blocks.id_of(block);
  for (std::size_t t = 0; t < 2; ++t) {
    CHECK(blocks.find_place(id, t) == nullptr);
    blocks.add_copy(block, t, somewhere);
    blocks.set_readable(block, t, state::resident);
    CHECK(blocks.find_place(gone, t) == nullptr);
    CHECK(found(blocks, id, t, somewhere));
  }
  CHECK(blocks.find(gone) == nullptr);
  CHECK(blocks.find(id) == &blocks[block]);
}

TEST_CASE("an id that no block has had finds nothing") {
  residency blocks(1);
  CHECK(blocks.find_place({}, 0) == nullptr);
  CHECK(blocks.find_place({0, 0}, 0) == nullptr);
  const std::uint32_t block = blocks.create();
  for (const std::uint32_t generation : {0u, 1u, 0xfffffffeu}) {
    CHECK(blocks.find_place({block, generation}, 0) == nullptr);
    CHECK(blocks.find_place({block_id::no_index, generation}, 0) == nullptr);
  }
  blocks.add_copy(block, 0, somewhere);
  blocks.set_readable(block, 0, state::resident);
  CHECK(blocks.find_place({block, blocks.id_of(block).generation + 1}, 0) == nullptr);
  CHECK(blocks.find_place({block + 1, 0}, 0) == nullptr);
  CHECK(blocks.find_place({}, 0) == nullptr);
}

TEST_CASE("nothing is left of a copy that was removed") {
  residency blocks(1);
  const std::uint32_t block = blocks.create();
  block_copy& copy = blocks.add_copy(block, 0, somewhere, {3});
  copy.pins = 2;
  copy.checksum = 5;
  copy.in_policy = copy.durable = copy.known = copy.prefetched = true;
  blocks.remove_copy(block, 0);
  CHECK_FALSE(copy.present());
  CHECK(copy.quality.exact());
  CHECK(copy.pins == 0);
  CHECK(copy.checksum == 0);
  CHECK_FALSE((copy.in_policy || copy.durable || copy.known || copy.prefetched));
  CHECK(blocks.where(block, 0) == extent{});
}

static_assert(!std::is_copy_assignable_v<block_copy>, "nobody but residency gives a copy another state");

TEST_CASE("a prefetched copy is asked for first once") {
  block_copy copy;
  CHECK_FALSE(copy.take_prefetched());
  copy.prefetched = true;
  CHECK(copy.take_prefetched());
  CHECK_FALSE(copy.take_prefetched());
}

// Against what a plain list of all blocks that ever were says.
TEST_CASE("any order of events leaves every id finding its own copies") {
  constexpr std::size_t tiers = 3;
  struct tracked {
    block_id id;
    bool alive = true;
    std::array<state, tiers> now{};
    std::array<extent, tiers> where{};
    std::array<fidelity, tiers> quality{};
  };
  const auto readable = [](state s) { return s == state::resident || s == state::leaving; };
  std::mt19937 random(5);
  const auto any = [&](std::size_t n) { return static_cast<std::uint32_t>(random() % n); };
  const auto any_extent = [&] { return extent{.offset = random(), .bytes = any(4096), .node = any(99)}; };

  residency blocks(tiers);
  std::vector<tracked> all;
  const auto step = [&] {
    if (all.empty() || any(8) == 0) {
      all.push_back({.id = blocks.id_of(blocks.create())});
      return;
    }
    tracked& b = all[all.size() - 1 - any(std::min<std::size_t>(64, all.size()))];  // a young one
    if (!b.alive) return;
    const std::uint32_t i = b.id.index, t = any(tiers);
    if (any(4) == 0) {
      for (std::size_t each = 0; each < tiers; ++each) blocks.remove_copy(i, each);
      blocks.recycle(i);
      b = {.id = b.id, .alive = false};
    } else if (b.now[t] == state::absent) {
      b.now[t] = state::filling;
      b.where[t] = any_extent();
      b.quality[t] = {static_cast<std::uint8_t>(any(3))};
      blocks.add_copy(i, t, b.where[t], b.quality[t]);
    } else if (b.now[t] == state::filling && any(3) == 0) {
      b.where[t] = any_extent();
      blocks.move_copy(i, t, b.where[t]);
    } else if (any(4) == 0) {
      b.now[t] = state::absent;
      blocks.remove_copy(i, t);
    } else {
      b.now[t] = b.now[t] == state::resident ? state::leaving : state::resident;
      blocks.set_readable(i, t, b.now[t]);
    }
  };
  // What is wrong with the block, or nothing.
  const auto wrong = [&](const tracked& b) -> std::optional<std::size_t> {
    if ((blocks.find(b.id) != nullptr) != b.alive) return tiers;
    std::size_t best = tiers;
    for (std::size_t t = 0; t < tiers; ++t) {
      if ((blocks.find_place(b.id, t) != nullptr) != readable(b.now[t])) return t;
      if (readable(b.now[t]) && !found(blocks, b.id, t, b.where[t])) return t;
      if (b.alive && blocks.copy(b.id.index, t).now() != b.now[t]) return t;
      if (b.now[t] != state::absent && blocks.where(b.id.index, t) != b.where[t]) return t;
      if (readable(b.now[t]) && (best == tiers || b.quality[t] > b.quality[best])) best = t;
    }
    if (!b.alive) return std::nullopt;
    if (blocks.best_copy(b.id.index) != best) return best;
    const bool below = readable(b.now[1]) || readable(b.now[2]);
    if (blocks.saved_below(b.id.index, 0) != below) return 0;
    return std::nullopt;
  };
  for (int round = 0; round < 8000; ++round) {
    step();
    if (round % 32 != 0) continue;
    for (const tracked& b : all) REQUIRE_FALSE(wrong(b));
  }
  CHECK(all.size() > 2 * blocks.size());  // indices have been recycled
}
