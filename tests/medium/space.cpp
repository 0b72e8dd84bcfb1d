#include "terrace/medium/space.hpp"

#include <algorithm>
#include <optional>
#include <random>
#include <vector>

#include "catch.hpp"

using namespace terrace;

namespace {
bool overlap(const extent& a, const extent& b) {
  return a.offset < b.offset + b.bytes && b.offset < a.offset + a.bytes;
}
}  // namespace

TEST_CASE("a space gives what fits and nothing else") {
  space s(16_KiB, 4096);
  REQUIRE(s.capacity() == 16_KiB);
  CHECK_FALSE(s.reserve(0));
  CHECK_FALSE(s.reserve(16_KiB + 1));
  const auto all = s.reserve(16_KiB);
  REQUIRE(all);
  CHECK(s.used() == 16_KiB);
  CHECK_FALSE(s.reserve(1));
  s.release(*all);
  CHECK(s.used() == 0);
  CHECK(s.reserve(16_KiB));
}

TEST_CASE("a space smaller than its granule gives nothing") {
  space s(100, 4096);
  CHECK(s.capacity() == 0);
  CHECK_FALSE(s.reserve(1));
}

TEST_CASE("neighbours that are free become one run, in any order of release") {
  std::vector<int> order{0, 1, 2, 3};
  do {
    space s(4 * 512, 512);
    std::vector<extent> runs;
    for (int i = 0; i < 4; ++i) runs.push_back(*s.reserve(512));
    for (const int i : order) s.release(runs[static_cast<std::size_t>(i)]);
    CHECK(s.reserve(4 * 512));
  } while (std::next_permutation(order.begin(), order.end()));
}

TEST_CASE("random reservations never overlap, and everything comes back") {
  for (unsigned seed = 0; seed < 20; ++seed) {
    CAPTURE(seed);
    std::mt19937 random(seed);
    space s(1_MiB, 512);
    std::vector<extent> held;
    for (int i = 0; i < 3000; ++i) {
      if (held.empty() || random() % 5 < 3) {
        const std::size_t bytes = 1 + random() % (random() % 10 == 0 ? 200000 : 9000);
        const auto e = s.reserve(bytes);
        if (!e) continue;
        REQUIRE(e->bytes == bytes);
        REQUIRE(e->offset % 512 == 0);
        REQUIRE(e->offset + e->bytes <= s.capacity());
        for (const extent& other : held) REQUIRE_FALSE(overlap(*e, other));
        held.push_back(*e);
      } else {
        const std::size_t at = random() % held.size();
        s.release(held[at]);
        held.erase(held.begin() + static_cast<std::ptrdiff_t>(at));
      }
      std::size_t used = 0;
      for (const extent& e : held) used += s.rounded(e.bytes);
      REQUIRE(s.used() == used);
    }
    for (const extent& e : held) s.release(e);
    CHECK(s.reserve(1_MiB));
  }
}

TEST_CASE("a full space of equal blocks is used to the last one") {
  space s(1000 * 4096, 4096);
  std::vector<extent> held;
  while (const auto e = s.reserve(4096)) held.push_back(*e);
  CHECK(held.size() == 1000);
}

TEST_CASE("a capacity that is raised appends room, and joins it to what was free at the end") {
  space s(2 * 4096, 4096);
  const auto first = s.reserve(4096);
  s.resize(4 * 4096 + 1);
  CHECK(s.capacity() == 4 * 4096);
  CHECK_FALSE(s.reserve(4 * 4096));
  const auto rest = s.reserve(3 * 4096);
  REQUIRE(rest);
  s.resize(5 * 4096);
  CHECK(s.reserve(4096));  // behind a run that is in use
  s.release(*rest);
  s.release(*first);
  CHECK(s.reserve(4 * 4096));
}

TEST_CASE("what is in use and what is handed out never need more than the capacity together") {
  space s(8 * 4096, 4096);
  std::vector<extent> held;
  for (int i = 0; i < 8; ++i) held.push_back(*s.reserve(4096));
  s.resize(3 * 4096);
  CHECK(s.used() == 8 * 4096);
  CHECK(s.overhang() == 8 * 4096);
  CHECK(s.limit() == 0);
  for (std::size_t i = 3; i < 7; ++i) {
    s.release(held[i]);
    CHECK_FALSE(s.reserve(1));
  }
  CHECK(s.used() == 4 * 4096);
  s.release(held[0]);
  CHECK_FALSE(s.reserve(1));  // as much is used as there may be
  CHECK(s.limit() == 0);      // two runs of it would have stood in the way of the third
  s.release(held[1]);
  CHECK(s.overhang() == 2 * 4096);
  const auto again = s.reserve(4096);
  REQUIRE(again);
  CHECK(again->offset == 0);
  s.release(held[7]);
  CHECK(s.overhang() == 0);
  CHECK(s.limit() == 3 * 4096);
  CHECK(s.reserve(4096));
  CHECK_FALSE(s.reserve(1));
}

TEST_CASE("a run that lies across the new capacity goes as a whole") {
  space s(8 * 512, 512);
  const auto low = s.reserve(512);
  const auto across = s.reserve(6 * 512);
  s.resize(7 * 512);
  CHECK(s.overhang() == 0);
  s.resize(4 * 512);
  CHECK(s.overhang() == 7 * 512);
  s.release(*low);
  CHECK_FALSE(s.reserve(1));
  s.release(*across);
  CHECK(s.limit() == 4 * 512);
  CHECK_FALSE(s.reserve(4 * 512 + 1));
  CHECK(s.reserve(4 * 512));
  s.resize(8 * 512);
  CHECK(s.reserve(4 * 512));
}

TEST_CASE("a capacity of nothing, and back") {
  space s(4 * 512, 512);
  const auto one = s.reserve(512);
  s.resize(511);
  CHECK(s.capacity() == 0);
  CHECK_FALSE(s.reserve(1));
  s.release(*one);
  CHECK_FALSE(s.reserve(1));
  s.resize(4 * 512);
  CHECK(s.reserve(4 * 512));
}

TEST_CASE("whatever the capacity becomes, runs stay apart, the books are right and everything comes back") {
  constexpr std::size_t most = 512_KiB;
  for (unsigned seed = 0; seed < 30; ++seed) {
    CAPTURE(seed);
    std::mt19937 random(seed);
    space s(random() % 2 == 0 ? most : most / 7, 512);
    std::vector<extent> held;
    // What a medium does that gives back what is not needed: which granules may be taken.
    std::vector<bool> taken(most / 512);
    const auto give_back = [&](std::size_t offset, std::size_t bytes) {
      std::fill_n(taken.begin() + static_cast<std::ptrdiff_t>(offset / 512), bytes / 512, false);
    };
    for (int i = 0; i < 2000; ++i) {
      const auto dice = random() % 20;
      if (dice == 0) {
        const std::size_t wanted = random() % 4 == 0 ? random() % most : most - random() % (most / 4);
        s.resize(wanted);
        s.for_each_free(s.limit(), give_back);
        REQUIRE(s.capacity() == wanted / 512 * 512);
      } else if (held.empty() || dice < 12) {
        const std::size_t before = s.used();
        const auto e = s.reserve(1 + random() % (random() % 10 == 0 ? 90000 : 9000));
        if (!e) continue;
        REQUIRE(before + s.rounded(e->bytes) <= s.capacity());
        REQUIRE(e->offset + s.rounded(e->bytes) <= s.limit());
        for (const extent& other : held) REQUIRE_FALSE(overlap(*e, other));
        held.push_back(*e);
        std::fill_n(taken.begin() + static_cast<std::ptrdiff_t>(e->offset / 512), s.rounded(e->bytes) / 512,
                    true);
      } else {
        const std::size_t at = random() % held.size();
        if (held[at].offset >= s.limit()) give_back(held[at].offset, s.rounded(held[at].bytes));
        s.release(held[at]);
        held.erase(held.begin() + static_cast<std::ptrdiff_t>(at));
      }
      std::size_t used = 0, beyond = 0, free = 0, end = s.capacity();
      bool reaches_beyond = false;
      for (const extent& e : held) {
        const std::size_t bytes = s.rounded(e.bytes), last = e.offset + bytes;
        used += bytes;
        end = std::max(end, last);
        if (e.offset >= s.limit()) beyond += bytes;
        reaches_beyond = reaches_beyond || last > s.capacity();
      }
      s.for_each_free(0, [&](std::uint64_t offset, std::uint64_t bytes) {
        free += bytes;
        end = std::max<std::size_t>(end, offset + bytes);
      });
      REQUIRE(s.used() == used);
      REQUIRE(s.overhang() == beyond);
      REQUIRE((s.overhang() != 0) == reaches_beyond);
      REQUIRE((reaches_beyond || s.limit() == s.capacity()));
      REQUIRE((s.limit() == 0 || s.limit() + beyond <= s.capacity()));
      const auto all = static_cast<std::size_t>(std::count(taken.begin(), taken.end(), true)) * 512;
      REQUIRE(all <= std::max(s.capacity(), used));
      REQUIRE(used + free == end);  // every byte is in use or in one free run
    }
    for (const extent& e : held) s.release(e);
    CHECK(s.overhang() == 0);
    s.resize(most);
    CHECK(s.reserve(most));
  }
}

TEST_CASE("equal blocks use a capacity that was lowered to the last one") {
  std::mt19937 random(5);
  space s(100 * 4096, 4096);
  std::vector<extent> held;
  while (const auto e = s.reserve(3 * 4096)) held.push_back(*e);
  s.resize(50 * 4096);
  std::shuffle(held.begin(), held.end(), random);
  while (held.size() > 10) {
    s.release(held.back());
    held.pop_back();
  }
  while (const auto e = s.reserve(3 * 4096)) held.push_back(*e);
  CHECK(held.size() == 16);
}

TEST_CASE("space: a run can be had at its place, in any order, and only while it is free") {
  space s(64 * 4096, 4096);
  CHECK_FALSE(s.reserve_at(0, 0));
  CHECK_FALSE(s.reserve_at(100, 4096));
  CHECK_FALSE(s.reserve_at(64 * 4096, 1));
  CHECK_FALSE(s.reserve_at(63 * 4096, 4097));
  CHECK_FALSE(s.reserve_at(~std::uint64_t{4095}, 4096));
  const auto middle = s.reserve_at(10 * 4096, 5000), end = s.reserve_at(63 * 4096, 4096),
             begin = s.reserve_at(0, 1);
  REQUIRE((middle && end && begin));
  CHECK(middle->offset == 10 * 4096);
  CHECK(s.used() == 4 * 4096);
  CHECK_FALSE(s.reserve_at(11 * 4096, 4096));
  CHECK_FALSE(s.reserve_at(9 * 4096, 8192));
  CHECK(s.reserve_at(9 * 4096, 4096));
  // The rest is handed out as ever, and all of it.
  std::size_t others = 0;
  while (s.reserve(4096)) ++others;
  CHECK(others == 64 - 5);
  for (const extent e : {*middle, *end, *begin}) s.release(e);
  CHECK(s.reserve(8192)->offset == middle->offset);
}

TEST_CASE("what is read in order lies in order, though it comes in turns") {
  constexpr std::size_t rows = 5, block = 64_KiB;
  space s(256_MiB, 4096);  // orders of 4 MiB: 64 blocks
  std::vector<std::vector<extent>> held(rows);
  for (std::size_t i = 0; i < 100; ++i)
    for (auto& row : held) {
      const auto e = s.reserve_behind(row.empty() ? std::nullopt : std::optional(row.back()), block);
      REQUIRE(e);
      row.push_back(*e);
    }
  for (const auto& row : held) {
    std::size_t breaks = 0;
    for (std::size_t i = 1; i < row.size(); ++i)
      breaks += row[i].offset == row[i - 1].offset + block ? 0u : 1u;
    CHECK(breaks <= 1);
  }
  // What was released in between is taken by who follows there.
  s.release(held[0][10]);
  const auto again = s.reserve_behind(held[0][9], block);
  REQUIRE(again);
  CHECK(again->offset == held[0][9].offset + block);
}

TEST_CASE("order costs no room: all of a space is handed out") {
  for (const std::size_t capacity : {1_MiB, 64_MiB, 100_MiB + 12 * 4096}) {
    space s(capacity, 4096);
    std::vector<std::optional<extent>> last(7);
    std::size_t blocks = 0;
    for (std::size_t row = 0;; row = (row + 1) % last.size(), ++blocks) {
      const auto e = s.reserve_behind(last[row], 8192);
      if (!e) break;
      last[row] = e;
    }
    CHECK(s.used() == capacity / 8192 * 8192);
    CHECK(blocks == capacity / 8192);
  }
}

TEST_CASE("random reservations in order never overlap, stay within the limit, and everything comes back") {
  for (unsigned seed = 0; seed < 20; ++seed) {
    CAPTURE(seed);
    std::mt19937 random(seed);
    space s(1_MiB, 512);
    std::vector<extent> held;
    for (int i = 0; i < 2000; ++i) {
      if (random() % 100 == 0) s.resize((random() % 3 + 1) * 512_KiB);
      if (held.empty() || random() % 5 < 3) {
        const auto before =
            held.empty() || random() % 8 == 0 ? std::nullopt : std::optional(held[random() % held.size()]);
        const std::size_t bytes = 1 + random() % 5000;
        const auto e = s.reserve_behind(before, bytes);
        if (!e) continue;
        REQUIRE(e->offset % 512 == 0);
        REQUIRE(e->offset + s.rounded(bytes) <= s.limit());
        for (const extent& other : held) REQUIRE_FALSE(overlap(*e, other));
        held.push_back(*e);
      } else {
        std::swap(held[random() % held.size()], held.back());
        s.release(held.back());
        held.pop_back();
      }
    }
    s.resize(1_MiB);
    for (const extent& e : held) s.release(e);
    CHECK(s.used() == 0);
    CHECK(s.reserve(1_MiB));
  }
}
