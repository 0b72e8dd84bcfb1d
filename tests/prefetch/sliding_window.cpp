#include "terrace/prefetch/sliding_window.hpp"

#include <array>

#include "catch.hpp"

using namespace terrace;

TEST_CASE(
    "sliding_window asks for the end of the next row, then for its sinks, and wraps into the next step") {
  sliding_window p({.blocks = 4, .sinks = 2});
  std::array<prefetch_wish, 4> out;
  CHECK(p.suggest(out) == 0);
  p.observe({.row = 1, .rows = 3, .blocks = 10, .step = 5});
  REQUIRE(p.suggest(out) == 2);
  CHECK((out[0].row == 2 && out[0].first == 6 && out[0].blocks == 4 && out[0].at_step == 5));
  CHECK((out[1].row == 2 && out[1].first == 0 && out[1].blocks == 2 && out[1].at_step == 5));
  p.observe({.row = 2, .rows = 3, .blocks = 5, .step = 5});
  REQUIRE(p.suggest(out) == 2);
  CHECK((out[0].row == 0 && out[0].first == 1 && out[0].blocks == 4 && out[0].at_step == 6));
  CHECK(out[1].blocks == 1);  // nothing twice
  CHECK(p.suggest(std::span(out).first(1)) == 1);
  p.observe({.row = 0, .rows = 3, .blocks = 3, .step = 6});
  CHECK(p.suggest(out) == 1);
}
