// Time in which somebody looked: whoever was away is not late, and whoever looks at all is told in the end.
#include "terrace/execution/watched_clock.hpp"

#include <chrono>

#include "catch.hpp"

using namespace terrace;
using namespace std::chrono_literals;

namespace {

constexpr watched_clock::real_clock::time_point start{std::chrono::hours(1)};

watched_clock begun(watched_clock::duration patience) {
  watched_clock clock(patience);
  clock.begin(start);
  return clock;
}

}  // namespace

TEST_CASE("looks that are close together count in full") {
  watched_clock clock = begun(100ms);
  for (int i = 1; i <= 50; ++i) CHECK(clock.look(start + i * 3ms) == i * 3ms);
}

TEST_CASE("a long gap counts for a quarter of the patience") {
  watched_clock clock = begun(100ms);
  CHECK(clock.look(start + 1h) == 25ms + 1ns);
  CHECK(clock.look(start + 1h + 5ms) == 30ms + 1ns);
}

TEST_CASE("what passed before begin() does not count") {
  watched_clock clock = begun(100ms);
  clock.look(start + 10ms);
  clock.begin(start + 20ms);
  CHECK(clock.now() == 10ms);
  CHECK(clock.look(start + 21ms) == 11ms);
}

TEST_CASE("who looks when told to has waited for the patience, no longer") {
  for (const watched_clock::duration patience : {watched_clock::duration(10s), watched_clock::duration(3ns),
                                                 watched_clock::duration(1ns), watched_clock::duration(0)}) {
    watched_clock clock = begun(patience);
    const auto due = clock.now() + clock.patience();
    auto at = start;
    int looks = 0;
    while (clock.look(at) < due && ++looks < 10) at = clock.next_look(due);
    CHECK(at == start + patience);
    CHECK(looks <= 4);
  }
}

TEST_CASE("a clock that went back counts for nothing") {
  watched_clock clock = begun(100ms);
  clock.look(start + 10ms);
  CHECK(clock.look(start + 5ms) == 10ms);
}
