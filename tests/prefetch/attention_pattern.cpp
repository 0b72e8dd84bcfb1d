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

namespace {

// Attention reads a selection of row 1 in each step.
struct selecting {
  attention_pattern p;
  std::array<prefetch_wish, 8> out{};
  std::size_t read(const std::vector<float>& shares) {
    row_use use = use_of(1, 1, 1);
    use.selected = true;
    p.attended(use, shares);
    p.observe(use_of(1, 0, 1));
    return p.suggest(out);
  }
};

}  // namespace

TEST_CASE(
    "attention_pattern: of a selection it asks for what was read in the last steps, and for no more than "
    "that") {
  selecting s{attention_pattern({.blocks = 3, .least = 0.8f})};
  CHECK(s.read({0.01f, 0, 0.99f, 0, 0}) == 0);  // once is too little, as long as nothing is known
  REQUIRE(s.read({0.01f, 0.98f, 0.01f, 0, 0}) == 2);
  CHECK((s.out[0].first == 0 && s.out[0].blocks == 1));  // however little it draws
  CHECK((s.out[1].first == 2 && s.out[1].blocks == 1));
  for (int step = 0; step < 3; ++step) s.read({0.2f, 0.2f, 0.2f, 0.2f, 0.2f});
  REQUIRE(s.read({0.2f, 0.2f, 0.2f, 0.2f, 0.2f}) == 1);
  CHECK((s.out[0].first == 0 && s.out[0].blocks == 3));  // no more than `blocks`
  CHECK(s.read({1, 0, 0, 0, 0}) == 1);
  CHECK((s.out[0].first == 0 && s.out[0].blocks == 1));  // no more than were read
}

TEST_CASE("attention_pattern: of a selection it learns after how many reads a block is read again") {
  // Block 0 is read always. Each of eight others is read `times` times, and then not for as long.
  const auto asked_after = [](int times, float least) {
    selecting s{attention_pattern({.blocks = 8, .least = least})};
    std::vector<std::size_t> asked(
        static_cast<std::size_t>(2 * times));  // in the last round: blocks beside 0
    for (int step = 0; step < 100 * times; ++step) {
      std::vector<float> shares(10, 0.0f);
      shares[0] = 1;
      for (int block = 2; block < 10; ++block)
        shares[static_cast<std::size_t>(block)] = step / times % 2 == 0 ? 0.1f : 0;
      const std::size_t wishes = s.read(shares);
      std::size_t& others = asked[static_cast<std::size_t>(step % (2 * times))] = 0;
      for (const prefetch_wish& wish : std::span(s.out).first(wishes))
        others += wish.blocks - (wish.first == 0 ? 1 : 0);
    }
    return asked;
  };
  // What it asks for after the last of so many reads is in vain. Of three, a third is too much for 0.85; of six, and
  // with block 0 beside them, a sixth is not.
  CHECK(asked_after(3, 0.85f) == std::vector<std::size_t>(6, 0));
  CHECK(asked_after(3, 0.7f) == std::vector<std::size_t>{7, 7, 7, 0, 0, 0});
  CHECK(asked_after(6, 0.85f) == std::vector<std::size_t>{7, 7, 7, 7, 7, 7, 0, 0, 0, 0, 0, 0});
}

TEST_CASE("attention_pattern: without selections nothing is left out") {
  attention_pattern p({.blocks = 4, .least = 1});
  std::array<prefetch_wish, 2> out;
  p.attended(use_of(1, 1, 1), std::vector<float>{0.9f, 0, 0.1f, 0});
  p.observe(use_of(1, 0, 1));
  CHECK(p.suggest(out) == 2);
}
