#include "terrace/attention/select.hpp"

#include <algorithm>
#include <cmath>
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
