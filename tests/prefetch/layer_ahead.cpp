#include "terrace/prefetch/layer_ahead.hpp"

#include <array>

#include "catch.hpp"

using namespace terrace;

TEST_CASE("layer_ahead asks for the front of the next row, and wraps into the next step") {
  layer_ahead p({.blocks = 4});
  std::array<prefetch_wish, 2> out;
  CHECK(p.suggest(out) == 0);
  p.observe({.sequence = 1, .row = 0, .rows = 3, .blocks = 10, .step = 5});
  REQUIRE(p.suggest(out) == 1);
  CHECK(out[0].row == 1);
  CHECK(out[0].first == 0);
  CHECK(out[0].blocks == 4);
  CHECK(out[0].at_step == 5);
  p.observe({.sequence = 1, .row = 2, .rows = 3, .blocks = 2, .step = 5});
  REQUIRE(p.suggest(out) == 1);
  CHECK(out[0].row == 0);
  CHECK(out[0].blocks == 2);
  CHECK(out[0].at_step == 6);
  CHECK(p.suggest({}) == 0);
}

TEST_CASE("any_prefetcher holds a prefetcher or none") {
  any_prefetcher none;
  std::array<prefetch_wish, 1> out;
  none.observe({});
  CHECK(none.suggest(out) == 0);
  CHECK(none.name() == "none");
  any_prefetcher some = layer_ahead{};
  some.observe({.rows = 2, .blocks = 3});
  CHECK(some.suggest(out) == 1);
  CHECK(some.name() == "layer_ahead");
}
