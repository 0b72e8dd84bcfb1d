#include "terrace/attention/partial_state.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <span>
#include <vector>

#include "catch.hpp"

using namespace terrace;

namespace {

// One row over some keys, straight from the definition and in double.
struct keys {
  std::vector<double> logits;
  std::vector<double> values;

  double lse() const {
    double most = -std::numeric_limits<double>::infinity(), sum = 0;
    for (const double s : logits) most = std::max(most, s);
    for (const double s : logits) sum += std::exp(s - most);
    return most + std::log(sum);
  }
  double output() const {
    double out = 0;
    for (std::size_t i = 0; i < logits.size(); ++i) out += std::exp(logits[i] - lse()) * values[i];
    return out;
  }
};

keys random_keys(std::mt19937& random, int count, double spread) {
  std::normal_distribution<double> normal;
  keys out;
  for (int i = 0; i < count; ++i) {
    out.logits.push_back(spread * normal(random));
    out.values.push_back(normal(random));
  }
  return out;
}

// The same as one row of a state with a single dimension.
partial_state state_of(const keys& of) {
  partial_state state;
  REQUIRE(state.reset(1, 1));
  for (std::size_t i = 0; i < of.logits.size(); ++i) {
    const float value = static_cast<float>(of.values[i]);
    state.merge_row(0, {static_cast<float>(of.logits[i]), 1.0f}, std::span(&value, 1));
  }
  return state;
}

float output_of(const partial_state& state) {
  float out = -1;
  state.finish(std::span(&out, 1));
  return out;
}

bool same_bits(float a, float b) { return std::memcmp(&a, &b, sizeof a) == 0; }

}  // namespace

TEST_CASE("a new state is empty: zeros, and a log-sum-exp of minus infinity") {
  partial_state state;
  REQUIRE(state.reset(3, 16));
  CHECK(state.rows() == 3);
  CHECK(state.dim() == 16);
  std::vector<float> out(48, 7.0f);
  state.finish(std::span(out));
  CHECK(std::all_of(out.begin(), out.end(), [](float x) { return x == 0; }));
  CHECK(row_lse(state, 2) == -std::numeric_limits<float>::infinity());
  CHECK(state.scalars(1).empty());
}

TEST_CASE("merging states is attention over the keys of both") {
  std::mt19937 random(1);
  for (const double spread : {0.01, 1.0, 10.0, 200.0}) {
    for (int round = 0; round < 50; ++round) {
      const keys a = random_keys(random, 1 + round % 7, spread),
                 b = random_keys(random, 1 + round % 3, spread);
      keys both = a;
      both.logits.insert(both.logits.end(), b.logits.begin(), b.logits.end());
      both.values.insert(both.values.end(), b.values.begin(), b.values.end());
      partial_state merged = state_of(a);
      merged.merge(state_of(b));
      const double slack = 1e-6 * std::max(1.0, 4 * spread);
      REQUIRE(std::fabs(output_of(merged) - both.output()) < 4 * slack);
      REQUIRE(std::fabs(row_lse(merged, 0) - both.lse()) < slack);
    }
  }
}

TEST_CASE("merge is commutative and associative to rounding") {
  std::mt19937 random(2);
  for (int round = 0; round < 200; ++round) {
    const keys x = random_keys(random, 3, 5), y = random_keys(random, 3, 5), z = random_keys(random, 3, 5);
    partial_state xy = state_of(x), yx = state_of(y);
    xy.merge(state_of(y));
    yx.merge(state_of(x));
    REQUIRE(same_bits(xy.m(0), yx.m(0)));
    REQUIRE(std::fabs(xy.l(0) - yx.l(0)) <= 1e-6f * xy.l(0));
    REQUIRE(std::fabs(output_of(xy) - output_of(yx)) < 1e-5f);

    partial_state left = std::move(xy), right = state_of(y), first = state_of(x);
    left.merge(state_of(z));
    right.merge(state_of(z));
    first.merge(right);
    REQUIRE(std::fabs(output_of(left) - output_of(first)) < 1e-5f);
    REQUIRE(std::fabs(row_lse(left, 0) - row_lse(first, 0)) < 1e-5f);
  }
}

TEST_CASE("an empty state is the identity of merge, bit for bit, whatever lies in its output") {
  std::mt19937 random(3);
  const keys some = random_keys(random, 5, 3);
  const partial_state expected = state_of(some);
  const float garbage = std::numeric_limits<float>::quiet_NaN();

  partial_state before = state_of(some);
  before.merge_row(0, {}, std::span(&garbage, 1));
  partial_state after;
  REQUIRE(after.reset(1, 1));
  after.o(0)[0] = garbage;
  after.merge(expected);
  for (const partial_state* merged : {&before, &after}) {
    CHECK(same_bits(merged->m(0), expected.m(0)));
    CHECK(same_bits(merged->l(0), expected.l(0)));
    CHECK(same_bits(merged->o(0)[0], expected.o(0)[0]));
  }

  partial_state neither;
  REQUIRE(neither.reset(1, 1));
  neither.merge_row(0, {}, std::span(&garbage, 1));
  CHECK(neither.scalars(0).empty());
  CHECK(output_of(neither) == 0);
}

TEST_CASE("logits of any size merge without overflow") {
  for (const float m : {3e38f, -3e38f, 0.0f}) {
    const float one = 1, two = 2;
    partial_state state;
    REQUIRE(state.reset(1, 1));
    state.merge_row(0, {m, 1}, std::span(&one, 1));
    state.merge_row(0, {-3.4e38f, 1}, std::span(&two, 1));
    CHECK(output_of(state) == 1);
    state.merge_row(0, {m, 1}, std::span(&two, 1));
    CHECK(output_of(state) == 1.5f);
  }
}

TEST_CASE("shares of the softmax mass add up to one") {
  std::mt19937 random(4);
  partial_state whole;
  REQUIRE(whole.reset(1, 1));
  std::vector<partial_state> parts;
  for (int i = 0; i < 10; ++i) {
    parts.push_back(state_of(random_keys(random, 4, 6)));
    whole.merge(parts.back());
  }
  double sum = 0;
  for (const partial_state& part : parts) sum += std::exp(row_lse(part, 0) - row_lse(whole, 0));
  CHECK(std::fabs(sum - 1.0) < 1e-5);
}

TEST_CASE("a state that is used again allocates nothing and remembers nothing") {
  partial_state state;
  REQUIRE(state.reset(8, 64));
  const float* const memory = state.o(0).data();
  CHECK(reinterpret_cast<std::uintptr_t>(memory) % 64 == 0);
  state.m(7) = 1;
  state.l(7) = 2;
  state.o(7)[63] = 3;
  REQUIRE(state.reset(4, 96));
  CHECK(state.o(0).data() == memory);
  REQUIRE(state.reset(8, 64));
  CHECK(state.o(0).data() == memory);
  CHECK(state.scalars(7).empty());
  CHECK(state.o(7)[63] == 0);
}

TEST_CASE("a state too large for memory is refused, and the old one stays") {
  partial_state state;
  REQUIRE(state.reset(2, 16));
  state.l(1) = 5;
  CHECK(state.reset(std::numeric_limits<std::size_t>::max() / 8, 64).error().code == errc::out_of_memory);
  CHECK(state.reset(std::size_t{1} << 61, 1).error().code == errc::out_of_memory);
  CHECK(state.rows() == 2);
  CHECK(state.l(1) == 5);
}

TEST_CASE("results are written in any element type") {
  partial_state state;
  REQUIRE(state.reset(2, 80));
  for (std::size_t row = 0; row < 2; ++row) {
    state.m(row) = 0;
    state.l(row) = 2;
    for (std::size_t i = 0; i < 80; ++i) state.o(row)[i] = static_cast<float>(i + row);
  }
  std::array<fp16, 160> half;
  std::array<bf16, 160> brain;
  state.finish(std::span<fp16>(half));
  state.finish(std::span<bf16>(brain));
  for (std::size_t i = 0; i < 160; ++i) {
    const float expected = static_cast<float>(i % 80 + i / 80) / 2;
    REQUIRE(half[i] == to_fp16(expected));
    REQUIRE(brain[i] == to_bf16(expected));
  }
}
