#include "terrace/medium/space.hpp"

#include <algorithm>
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
