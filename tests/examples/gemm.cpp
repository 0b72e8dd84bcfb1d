#include "attention_runner/gemm.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "attention_runner/elementwise.hpp"
#include "catch.hpp"

using namespace runner;
using terrace::isa;

namespace {

std::vector<isa> sets() {
  std::vector<isa> usable;
  for (const isa set : {isa::portable, isa::avx2, isa::avx512})
    if (set <= terrace::best_isa()) usable.push_back(set);
  return usable;
}
aligned_vector<float> random_floats(std::size_t n, unsigned seed, float scale = 1) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, scale);
  aligned_vector<float> values(n);
  for (float& value : values) value = normal(random);
  return values;
}
struct problem {
  std::size_t rows, depth, columns;
  aligned_vector<float> x = random_floats(rows * depth, 1);
  aligned_vector<float> weights = random_floats(columns * depth, 2);
  packed_matrix packed = packed_matrix(columns, depth);
  problem(std::size_t r, std::size_t d, std::size_t c) : rows(r), depth(d), columns(c) {
    for (std::size_t i = 0; i < columns; ++i)
      packed.set_column(i, std::span(weights).subspan(i * depth, depth));
  }
  aligned_vector<float> run(std::size_t first, std::size_t count, isa set,
                            const parallel_for& parallel = serial_for, store how = store::replace,
                            float before = 0) const {
    aligned_vector<float> y(count * packed.columns(), before);
    gemm({x.data() + first * depth, depth}, count, packed, {y.data(), packed.columns()}, how, parallel, set);
    return y;
  }
};
bool near(double value, double expected) {
  return std::abs(value - expected) <= 1e-5 * std::abs(expected) + 1e-30;
}
bool same_bits(const float* a, const float* b, std::size_t n) {
  return std::memcmp(a, b, n * sizeof(float)) == 0;
}

/// Two threads that take pieces from both ends.
void from_both_ends(std::size_t n, const std::function<void(std::size_t)>& body) {
  std::thread other([&] {
    for (std::size_t i = n / 3; i < n; ++i) body(i);
  });
  for (std::size_t i = n / 3; i-- > 0;) body(i);
  other.join();
}

}  // namespace

TEST_CASE("a product is that of the definition, on every instruction set") {
  for (const auto& [rows, depth, columns] :
       {std::array<std::size_t, 3>{1, 1, 1}, {5, 3, 63}, {13, 257, 65}, {7, 64, 300}}) {
    const problem p(rows, depth, columns);
    for (const isa set : sets()) {
      CAPTURE(rows, depth, columns, name(set));
      const auto y = p.run(0, rows, set), added = p.run(0, rows, set, serial_for, store::add, 2.0f);
      double worst = 0;
      for (std::size_t r = 0; r < rows; ++r) {
        for (std::size_t c = 0; c < p.packed.columns(); ++c) {
          double expected = 0;
          for (std::size_t k = 0; k < depth && c < columns; ++k)
            expected += double{p.x[r * depth + k]} * double{p.weights[c * depth + k]};
          const std::size_t at = r * p.packed.columns() + c;
          worst = std::max(worst, std::abs(double{y[at]} - expected));
          REQUIRE(added[at] == 2.0f + y[at]);
          if (c >= columns) REQUIRE(y[at] == 0);
        }
      }
      CHECK(worst < 1e-6 * static_cast<double>(depth) + 1e-6);
    }
  }
}

TEST_CASE("the bits of a row depend neither on its neighbours nor on the split") {
  const problem p(131, 96, 700);  // several pieces both ways, and rows and panels left over
  for (const isa set : sets()) {
    const auto whole = p.run(0, p.rows, set);
    const auto split = p.run(0, p.rows, set, from_both_ends);
    CHECK(same_bits(whole.data(), split.data(), whole.size()));
    for (std::size_t count = 1; count <= 7; ++count) {
      for (std::size_t first = 0; first + count <= p.rows; first += 11 + count) {
        const auto some = p.run(first, count, set);
        REQUIRE(same_bits(some.data(), whole.data() + first * p.packed.columns(), some.size()));
      }
    }
  }
}

TEST_CASE("both vector kernels fuse, and give the same bits") {
  if (terrace::best_isa() != isa::avx512) return;
  const problem p(9, 200, 130);
  const auto a = p.run(0, 9, isa::avx2), b = p.run(0, 9, isa::avx512);
  CHECK(same_bits(a.data(), b.data(), a.size()));
}

TEST_CASE("a packed column comes back as it was") {
  const problem p(1, 37, 130);
  std::vector<float> column(37);
  for (const std::size_t c : {0u, 63u, 64u, 129u}) {
    p.packed.get_column(c, column);
    CHECK(std::equal(column.begin(), column.end(), p.weights.begin() + static_cast<std::ptrdiff_t>(c * 37)));
  }
}

TEST_CASE("rms_norm is that of the definition") {
  const auto x = random_floats(128, 3, 4), w = random_floats(128, 4);
  aligned_vector<float> padded(x), y(128);
  std::fill(padded.begin() + 100, padded.end(), 0.0f);
  double mean = 0;
  for (std::size_t i = 0; i < 100; ++i) mean += double{padded[i]} * double{padded[i]} / 100;
  for (const isa set : sets()) {
    rms_norm(padded.data(), w.data(), 128, 100, 1e-5, y.data(), set);
    for (std::size_t i = 0; i < 128; ++i)
      REQUIRE(near(double{y[i]}, double{padded[i]} / std::sqrt(mean + 1e-5) * double{w[i]}));
  }
  aligned_vector<float> zero(128);
  rms_norm(zero.data(), w.data(), 128, 100, 1e-5, y.data());
  CHECK(y == zero);
}

TEST_CASE("swiglu is that of the definition, over the whole range, and in place") {
  aligned_vector<float> gate(4096), up(4096), y(4096);
  for (std::size_t i = 0; i < gate.size(); ++i) {
    gate[i] = (static_cast<float>(i) - 2048) * 0.05f;
    up[i] = i % 2 == 0 ? 1.0f : -3.0f;
  }
  gate[0] = -1e30f;
  gate[1] = 1e30f;
  for (const isa set : sets()) {
    swiglu(gate.data(), up.data(), gate.size(), y.data(), set);
    for (std::size_t i = 0; i < gate.size(); ++i) {
      const double g = double{gate[i]}, expected = g / (1 + std::exp(-std::max(g, -87.0))) * double{up[i]};
      REQUIRE(std::isfinite(y[i]));
      REQUIRE(near(double{y[i]}, expected));
    }
    aligned_vector<float> in_place = gate;
    swiglu(in_place.data(), up.data(), gate.size(), in_place.data(), set);
    CHECK(same_bits(in_place.data(), y.data(), y.size()));
  }
}
