#include "terrace/cuda/merge.cuh"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "catch.hpp"
#include "cuda_emulated/emulator.hpp"
#include "terrace/attention/partial_state.hpp"

using namespace terrace;

namespace {

constexpr float nan_value = std::numeric_limits<float>::quiet_NaN();

// Splits of rows with logits of all sizes, some of them empty: those have NaN for output.
struct random_splits {
  random_splits(std::uint32_t n, std::uint32_t s, std::uint32_t d, unsigned seed)
      : rows(n), splits(s), dim(d), scalars(n * s), o(n * s * d) {
    std::mt19937 random(seed);
    std::uniform_real_distribution<float> uniform(-1, 1);
    for (std::size_t i = 0; i < scalars.size(); ++i) {
      const bool empty = random() % 4 == 0 || i < splits;  // row 0 sees nothing
      scalars[i] =
          empty ? softmax_row{} : softmax_row{uniform(random) * 100, 1 + std::fabs(uniform(random)) * 50};
      for (std::size_t k = 0; k < dim; ++k) o[i * dim + k] = empty ? nan_value : uniform(random);
    }
  }
  cuda::split_states view() { return {scalars.data(), o.data(), splits}; }
  // What the host makes of it, into `state`.
  void merge_into(partial_state& state) const {
    for (std::size_t i = 0; i < scalars.size(); ++i)
      state.merge_row(i / splits, scalars[i], std::span(o).subspan(i * dim, dim));
  }

  std::uint32_t rows, splits, dim;
  std::vector<softmax_row> scalars;
  std::vector<float> o;
};

struct device_state {
  device_state(std::uint32_t rows, std::uint32_t dim)
      : scalars(rows, softmax_row{5, nan_value}), o(rows * dim) {}
  cuda::row_states view() { return {scalars.data(), o.data()}; }
  std::vector<softmax_row> scalars;
  std::vector<float> o;
};

bool same(const partial_state& host, const device_state& device) {
  for (std::size_t r = 0; r < host.rows(); ++r) {
    const softmax_row row = host.scalars(r);
    if (std::memcmp(&row, &device.scalars[r], sizeof row) != 0) return false;
    if (std::memcmp(host.o(r).data(), device.o.data() + r * host.dim(), host.dim() * sizeof(float)) != 0)
      return false;
  }
  return true;
}

}  // namespace

TEST_CASE("splits and windows merge in order, to the bits of the host") {
  for (const std::uint32_t dim : {16u, 128u, 200u}) {
    random_splits first(7, 5, dim, 1), second(7, 3, dim, 2);
    partial_state host;
    REQUIRE(host.reset(7, dim));
    device_state device(7, dim);
    first.merge_into(host);
    REQUIRE(cuda::merge<float>(first.view(), 7, dim, device.view(), {}, nullptr, true));
    CHECK(same(host, device));
    second.merge_into(host);
    REQUIRE(cuda::merge<float>(second.view(), 7, dim, device.view(), {}, nullptr));
    CHECK(same(host, device));
    CHECK(emulator::take_faults().empty());
  }
}

TEMPLATE_TEST_CASE("the last merge finishes the rows", "", float, fp16, bf16) {
  random_splits splits(6, 4, 96, 3);
  partial_state host;
  REQUIRE(host.reset(6, 96));
  splits.merge_into(host);
  std::vector<TestType> expected(6 * 96), out(6 * 96);
  std::vector<float> lse(6);
  host.finish(std::span<TestType>(expected));
  REQUIRE(cuda::merge<TestType>(splits.view(), 6, 96, {}, {.o = out.data(), .lse = lse.data()}, nullptr));
  CHECK(std::memcmp(expected.data(), out.data(), out.size() * sizeof(TestType)) == 0);
  for (std::size_t r = 0; r < 6; ++r) CHECK(lse[r] == row_lse(host, r));
  CHECK(lse[0] == no_logit);
  for (std::size_t d = 0; d < 96; ++d) CHECK(to_float(out[d]) == 0);
}

TEST_CASE("a state without splits stays as it is, on every machine") {
  random_splits splits(3, 2, 64, 4);
  emulator::on_each_machine([&] {
    partial_state host;
    REQUIRE(host.reset(3, 64));
    splits.merge_into(host);
    device_state device(3, 64);
    REQUIRE(cuda::merge<float>(splits.view(), 3, 64, device.view(), {}, nullptr, true));
    REQUIRE(cuda::merge<float>({}, 3, 64, device.view(), {}, nullptr));
    CHECK(same(host, device));
  });
  CHECK(!cuda::merge<float>({}, 3, 0, {}, {}, nullptr));
  CHECK(cuda::merge<float>({}, 0, 64, {}, {}, nullptr));
}
