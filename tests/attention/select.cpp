#include "terrace/attention/select.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "catch.hpp"

using namespace terrace;

namespace {

struct random_case {
  std::uint32_t dim, blocks;
  float scale;
  std::vector<std::vector<float>> keys, values;  // of a block: [token][dim]; one number a token
  std::vector<float> query;
  key_summaries summaries;

  explicit random_case(std::mt19937& random)
      : dim(1 + static_cast<std::uint32_t>(random() % 16)),
        blocks(1 + static_cast<std::uint32_t>(random() % 12)),
        scale(random() % 8 == 0 ? 20.0f : 1.0f / std::sqrt(static_cast<float>(dim))),
        query(dim),
        summaries(dim) {
    std::normal_distribution<float> normal;
    for (float& q : query) q = 2 * normal(random);
    for (std::uint32_t b = 0; b < blocks; ++b) {
      const float spread = 0.1f + 0.2f * static_cast<float>(random() % 8);
      std::vector<float> center(dim), block;
      for (float& c : center) c = 2 * normal(random);
      values.emplace_back();
      for (std::size_t t = 0; t <= random() % 8; ++t) {
        for (std::uint32_t d = 0; d < dim; ++d) block.push_back(center[d] + spread * normal(random));
        values.back().push_back(normal(random));
      }
      block.resize(values.back().size() * dim);
      summaries.add<float>(block);
      keys.push_back(std::move(block));
    }
  }
  double logit(std::uint32_t b, std::size_t t) const {
    double sum = 0;
    for (std::uint32_t d = 0; d < dim; ++d)
      sum += double{scale} * double{query[d]} * double{keys[b][t * dim + d]};
    return sum;
  }
  // The share of the mass of what is not among `read`, and how far the output is off.
  std::pair<double, double> truth(const std::vector<std::uint32_t>& read) const {
    double most = -1e300;
    for (std::uint32_t b = 0; b < blocks; ++b)
      for (std::size_t t = 0; t < values[b].size(); ++t) most = std::max(most, logit(b, t));
    double all = 0, of_all = 0, part = 0, of_part = 0;
    for (std::uint32_t b = 0; b < blocks; ++b)
      for (std::size_t t = 0; t < values[b].size(); ++t) {
        const double e = std::exp(logit(b, t) - most);
        all += e;
        of_all += e * double{values[b][t]};
        if (!std::binary_search(read.begin(), read.end(), b)) continue;
        part += e;
        of_part += e * double{values[b][t]};
      }
    return {1 - part / all, part == 0 ? 0 : std::abs(of_all / all - of_part / part)};
  }
  double largest_value() const {
    double most = 0;
    for (const auto& block : values)
      for (const float v : block) most = std::max(most, std::abs(double{v}));
    return most;
  }
};

constexpr double rounding = 1e-9;

}  // namespace

TEST_CASE("key_summaries: every logit lies within the bounds, which are sharp for one key") {
  std::mt19937 random(1);
  for (int n = 0; n < 200; ++n) {
    const random_case c(random);
    for (std::uint32_t b = 0; b < c.blocks; ++b) {
      const auto bounds = c.summaries.bounds(b, c.query, c.scale);
      for (std::size_t t = 0; t < c.values[b].size(); ++t) {
        CHECK(c.logit(b, t) <= bounds.high + rounding);
        CHECK(c.logit(b, t) >= bounds.low - rounding);
      }
      if (c.values[b].size() == 1) CHECK(std::abs(bounds.high - bounds.low) < rounding);
    }
  }
}

TEST_CASE(
    "certified: in 10,000 random cases no more is missed, and the output is no farther off, than was "
    "proven") {
  std::mt19937 random(2);
  std::size_t read = 0, blocks = 0;
  for (int n = 0; n < 10000; ++n) {
    const random_case c(random);
    const double eps = std::pow(10.0, -static_cast<double>(random() % 6)) / 2;
    const block_selection s = certified{eps}(c.summaries, c.query, c.scale);
    const auto [missed, off] = c.truth(s.blocks);
    REQUIRE(s.missed <= eps);
    REQUIRE(missed <= s.missed + rounding);
    REQUIRE(off <= 2 * s.missed * c.largest_value() + rounding);
    read += s.blocks.size();
    blocks += c.blocks;
  }
  CHECK(read < blocks);  // and something is gained
}

TEST_CASE("certified: eps of 0 reads everything, eps of 1 nothing") {
  std::mt19937 random(3);
  const random_case c(random);
  CHECK(certified{0}(c.summaries, c.query, 0.01f).blocks.size() == c.blocks);
  CHECK(certified{1}(c.summaries, c.query, c.scale).blocks.empty());
  const key_summaries none(4);
  CHECK(certified{0.1}(none, std::vector<float>(4), 1).missed == 0);
}

TEST_CASE("top_k: reads k blocks, says truly what may be missed, and finds a needle") {
  std::mt19937 random(4);
  for (int n = 0; n < 10000; ++n) {
    const random_case c(random);
    const std::size_t k = random() % 14;
    const block_selection s = top_k{k}(c.summaries, c.query, c.scale);
    REQUIRE(s.blocks.size() == std::min<std::size_t>(k, c.blocks));
    REQUIRE(c.truth(s.blocks).first <= s.missed + rounding);
  }
  key_summaries keys(2);
  for (int b = 0; b < 9; ++b) keys.add<float>(std::vector<float>{0.1f, b == 6 ? 9.0f : 0.2f, 0, 0});
  CHECK(top_k{1}(keys, std::vector<float>{0, 1}, 1).blocks == std::vector<std::uint32_t>{6});
  CHECK(top_k{1}(keys, std::vector<float>{0, -1}, 1).blocks != std::vector<std::uint32_t>{6});
}

TEST_CASE("what is read in any case is read first, and what it has counts") {
  std::mt19937 random(5);
  std::size_t without = 0, with = 0;
  for (int n = 0; n < 2000; ++n) {
    const random_case c(random);
    const std::uint32_t newest = random() % 4;
    const std::size_t k = random() % 5;
    const block_selection top = top_k{k}(c.summaries, c.query, c.scale, {.newest = newest});
    REQUIRE(top.blocks.size() == std::min<std::size_t>(std::max<std::size_t>(k, newest), c.blocks));
    for (std::uint32_t b = c.blocks - std::min(newest, c.blocks); b < c.blocks; ++b)
      REQUIRE(std::binary_search(top.blocks.begin(), top.blocks.end(), b));
    REQUIRE(c.truth(top.blocks).first <= top.missed + rounding);

    // The last block is now being written: it is no block any more, and read in any case.
    key_summaries sealed(c.dim);
    for (std::uint32_t b = 0; b + 1 < c.blocks; ++b) sealed.add<float>(c.keys[b]);
    const always_read open{.log_mass = log_mass<float>(c.keys.back(), c.query, c.scale)};
    block_selection s = certified{0.01}(sealed, c.query, c.scale, open);
    with += s.blocks.size();
    without += certified{0.01}(sealed, c.query, c.scale).blocks.size();
    s.blocks.push_back(c.blocks - 1);
    REQUIRE(s.missed <= 0.01);
    REQUIRE(c.truth(s.blocks).first <= s.missed + rounding);
  }
  CHECK(with < without);
}

TEST_CASE("log_mass: the logarithm of a sum of exponentials, of any size, in any element type") {
  CHECK(log_mass<float>({}, std::vector<float>{1, 2}, 1) == -std::numeric_limits<double>::infinity());
  const std::vector<float> keys{3, 0, 1, 0, 2, 0};
  const double want = std::log(std::exp(3.0) + std::exp(1.0) + std::exp(2.0));
  CHECK(log_mass<float>(keys, std::vector<float>{1, 5}, 1) == Approx(want));
  CHECK(log_mass<float>(keys, std::vector<float>{1000, 0}, 1) == Approx(3000));
  CHECK(log_mass<float>(keys, std::vector<float>{-1000, 0}, 1) == Approx(-1000));
  std::vector<fp16> halves;
  for (const float k : keys) halves.push_back(to_fp16(k));
  CHECK(log_mass<fp16>(halves, std::vector<float>{2, 5}, 0.5f) == Approx(want));
}

TEST_CASE("key_summaries: bytes grow with blocks and channels, and halves are summarised as they are") {
  key_summaries keys(3);
  CHECK(keys.bytes() == 0);
  keys.add<fp16>(std::vector{to_fp16(1), to_fp16(2), to_fp16(3), to_fp16(-1), to_fp16(5), to_fp16(3)});
  CHECK(keys.bytes() == 3 * 8 + 8);
  CHECK(keys.tokens(0) == 2);
  CHECK(keys.bounds(0, std::vector<float>{1, 0, 0}, 1).low == Approx(-1));
  CHECK(keys.bounds(0, std::vector<float>{0, -1, 0}, 1).low == Approx(-5));
  CHECK(keys.bounds(0, std::vector<float>{0, 0, 2}, 1).high == Approx(6));
  // Eight keys at a distance of 1 from the origin, in a box whose corners are 2 away: the ball is tighter.
  key_summaries cross(4);
  std::vector<float> points;
  for (int d = 0; d < 8; ++d)
    for (int e = 0; e < 4; ++e) points.push_back(d / 2 != e ? 0.0f : d % 2 == 0 ? 1.0f : -1.0f);
  cross.add<float>(points);
  CHECK(cross.bounds(0, std::vector<float>{1, 1, 1, 1}, 1).high == Approx(2));
  CHECK(cross.bounds(0, std::vector<float>{1, 1, 1, 1}, 1).low == Approx(-2));
  CHECK(cross.bounds(0, std::vector<float>{3, 0, 0, 0}, 1).high == Approx(3));
}

TEST_CASE("key_summaries: keys or a query that are not finite bound nothing, and nothing is called proven") {
  constexpr float inf = std::numeric_limits<float>::infinity();
  key_summaries keys(2);
  keys.add<float>(std::vector<float>{0, 1, 0, 1});
  keys.add<float>(std::vector<float>{inf, 0, 0, 50});
  const std::vector<float> query{-1, 1};
  const auto chosen = certified{0.01}(keys, query, 1.0f, {});
  CHECK(std::find(chosen.blocks.begin(), chosen.blocks.end(), 1u) != chosen.blocks.end());
  CHECK(top_k{1}(keys, query, 1.0f, {}).blocks == std::vector<std::uint32_t>{1});
  for (const float bad : {inf, -inf, std::numeric_limits<float>::quiet_NaN()}) {
    key_summaries plain(1);
    plain.add<float>(std::vector<float>{1});
    plain.add<float>(std::vector<float>{2});
    CHECK(certified{0.01}(plain, std::vector<float>{bad}, 1.0f, {}).blocks.size() == 2);
  }
}
