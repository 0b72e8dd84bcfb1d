#include "terrace/prefetch/attention_pattern.hpp"

#include <array>
#include <vector>

#include "catch.hpp"

using namespace terrace;

namespace {

row_use use_of(std::uint32_t sequence, std::uint32_t row, std::uint64_t step) {
  return {.sequence = sequence, .row = row, .rows = 2, .blocks = 10, .step = step};
}

}  // namespace

TEST_CASE("attention_pattern asks for what drew most of the mass, neighbours together, the best first") {
  attention_pattern p({.blocks = 4});
  std::array<prefetch_wish, 8> out;
  p.observe(use_of(1, 0, 1));
  CHECK(p.suggest(out) == 0);  // nothing is known
  p.attended(use_of(1, 1, 1), std::vector<float>{0.1f, 0, 0.2f, 0.3f, 0, 0, 0.05f, 0, 0, 0.35f});
  p.observe(use_of(1, 0, 2));
  REQUIRE(p.suggest(out) == 3);
  CHECK((out[0].row == 1 && out[0].first == 9 && out[0].blocks == 1 && out[0].at_step == 2));
  CHECK((out[1].first == 2 && out[1].blocks == 2));
  CHECK((out[2].first == 0 && out[2].blocks == 1));
  CHECK(p.suggest(std::span(out).first(1)) == 1);
  CHECK(out[0].first == 9);
  p.observe(use_of(1, 1, 2));
  CHECK(p.suggest(out) == 0);  // row 0 was not attended yet
  p.observe(use_of(2, 0, 2));
  CHECK(p.suggest(out) == 0);  // nor was this sequence
}

TEST_CASE("attention_pattern forgets what attention has turned away from") {
  attention_pattern p({.blocks = 1, .decay = 0.5f});
  std::array<prefetch_wish, 2> out;
  const auto asked_first = [&] {
    p.observe(use_of(1, 0, 1));
    REQUIRE(p.suggest(out) == 1);
    return out[0].first;
  };
  p.attended(use_of(1, 1, 1), std::vector<float>{0.9f, 0, 0.1f, 0});
  CHECK(asked_first() == 0);
  p.attended(use_of(1, 1, 2), std::vector<float>{0.3f, 0, 0.7f, 0});
  CHECK(asked_first() == 0);
  p.attended(use_of(1, 1, 3), std::vector<float>{0, 0, 1, 0});
  CHECK(asked_first() == 2);
}

TEST_CASE("attention_pattern: a row that takes another one's place inherits nothing") {
  attention_pattern p({.blocks = 2, .rows = 1});
  std::array<prefetch_wish, 2> out;
  p.attended(use_of(1, 1, 1), std::vector<float>{1, 0, 0});
  p.attended(use_of(2, 1, 1), std::vector<float>{0, 0, 1});
  p.observe(use_of(1, 0, 2));
  CHECK(p.suggest(out) == 0);
  p.observe(use_of(2, 0, 2));
  REQUIRE(p.suggest(out) == 1);
  CHECK((out[0].first == 2 && out[0].blocks == 1));
}

TEST_CASE(
    "attention_pattern: of a selection it asks for what was read in the last steps, and for no more than "
    "that") {
  attention_pattern p({.blocks = 3, .decay = 0.5f, .least = 0.7f});
  std::array<prefetch_wish, 4> out;
  const auto read = [&](const std::vector<float>& shares) {
    row_use use = use_of(1, 1, 1);
    use.selected = true;
    p.attended(use, shares);
    p.observe(use_of(1, 0, 1));
    return p.suggest(out);
  };
  CHECK(read({0.01f, 0, 0.99f, 0, 0}) == 0);  // once is too little
  REQUIRE(read({0.01f, 0.98f, 0.01f, 0, 0}) == 2);
  CHECK((out[0].first == 0 && out[0].blocks == 1));  // however little it draws
  CHECK((out[1].first == 2 && out[1].blocks == 1));
  CHECK(read({0.9f, 0.1f, 0, 0, 0}) == 1);
  CHECK((out[0].first == 0 && out[0].blocks == 2));
  CHECK(read({0.2f, 0.2f, 0.2f, 0.2f, 0.2f}) == 1);  // 0 and 1; 2 was left out once
  CHECK((out[0].first == 0 && out[0].blocks == 2));
  CHECK(read({0.2f, 0.2f, 0.2f, 0.2f, 0.2f}) == 1);
  CHECK((out[0].first == 0 && out[0].blocks == 3));  // no more than `blocks`
  CHECK(read({1, 0, 0, 0, 0}) == 1);
  CHECK((out[0].first == 0 && out[0].blocks == 1));  // no more than were read
}
