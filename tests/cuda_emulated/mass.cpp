#include "terrace/cuda/mass.cuh"

#include <cmath>
#include <cstdint>
#include <vector>

#include "catch.hpp"
#include "cuda_emulated/emulator.hpp"
#include "cuda_emulated/paged_kv.hpp"
#include "terrace/cuda/attention.cuh"
#include "terrace/cuda/merge.cuh"

using namespace terrace;

namespace {

layer_group group_of(std::uint32_t dim, std::uint32_t tokens) {
  return {.tokens = tokens, .k = {.heads = 2, .dim = dim}, .v = {.heads = 2, .dim = dim}};
}

// Attention, merge and mass by the kernels.
template <std::uint32_t dim, class T>
std::vector<float> shares_of(paged_kv<T>& kv) {
  cuda::attention_args args = kv.args(2);
  const std::size_t entries = kv.pointers.size();
  std::vector<softmax_row> tiles(entries * cuda::tiles_of(args.page) * args.queries.most * kv.q_heads,
                                 {1e30f, 1e30f});
  args.tiles.rows = tiles.data();
  std::vector<float> lse(kv.rows()), shares(entries, -1);
  REQUIRE(cuda::attend<T, dim>(args, nullptr));
  REQUIRE(cuda::merge<float>(args.out, static_cast<std::uint32_t>(kv.rows()), dim, {}, {.lse = lse.data()},
                             nullptr));
  REQUIRE(cuda::block_mass(args, lse.data(), static_cast<std::uint32_t>(entries), shares.data(), nullptr));
  CHECK(emulator::take_faults().empty());
  return shares;
}

// The same in double.
template <class T>
std::vector<double> exact_shares(const paged_kv<T>& kv) {
  std::vector<double> shares(kv.pointers.size());
  for (std::size_t s = 0; s < kv.sequences.size(); ++s) {
    const std::int32_t tokens = kv.sequences[s].tokens, queries = kv.sequences[s].queries;
    for (std::int32_t i = 0; i < queries; ++i)
      for (std::uint32_t h = 0; h < kv.q_heads; ++h) {
        std::vector<double> weights;
        double most = -1e300, sum = 0;
        for (std::int32_t t = 0; t < tokens; ++t) {
          weights.push_back(kv.sees(s, i, t) ? kv.logit(s, i, h, t) : -1e300);
          most = std::max(most, weights.back());
        }
        for (double& w : weights) sum += w = std::exp(w - most);
        for (std::int32_t t = 0; t < tokens; ++t)
          shares[static_cast<std::size_t>(kv.indptr[s]) + static_cast<std::uint32_t>(t) / kv.group.tokens] +=
              weights[static_cast<std::size_t>(t)] / sum / (queries * static_cast<double>(kv.q_heads));
      }
  }
  return shares;
}

template <std::uint32_t dim, class T>
void check(const layer_group& group, std::uint32_t q_heads, std::vector<sequence_of> sequences) {
  const auto peaked = [](char which, std::uint32_t head, std::int64_t position, std::uint32_t d) {
    return gaussian_at(which, head, position, d) * (which == 'q' ? 3.0f : 1.0f);
  };
  paged_kv<T> kv(group, q_heads, std::move(sequences), peaked);
  const auto shares = shares_of<dim>(kv);
  const auto exact = exact_shares(kv);
  for (std::size_t e = 0; e < exact.size(); ++e)
    CHECK(static_cast<double>(shares[e]) == Approx(exact[e]).epsilon(1e-4).margin(1e-7));
  for (std::size_t s = 0; s < kv.sequences.size(); ++s) {
    double sum = 0;
    for (std::int32_t e = kv.indptr[s]; e < kv.indptr[s + 1]; ++e)
      sum += double{shares[static_cast<std::size_t>(e)]};
    if (kv.sequences[s].tokens > 0) CHECK(sum == Approx(1).epsilon(1e-4));
  }
}

}  // namespace

TEST_CASE("the share of each block is what it drew of the softmax mass") {
  check<64, fp16>(group_of(64, 48), 8,
                  {{.tokens = 300}, {.tokens = 1}, {.tokens = 0}, {.tokens = 97}, {.tokens = 0}});
  check<64, fp16>(group_of(64, 16), 40, {{.tokens = 60, .queries = 4}, {.tokens = 33, .queries = 2}});
  check<40, float>(group_of(40, 5), 4, {{.tokens = 31, .queries = 2}, {.tokens = 7}});
}

TEST_CASE("blocks that a window hides draw nothing") {
  layer_group group = group_of(64, 16);
  group.keep = {.window = 20, .sinks = 3};
  check<64, fp16>(group, 4, {{.tokens = 200, .queries = 2}});
  paged_kv<fp16> kv(group, 4, {{.tokens = 200}}, gaussian_at);
  const auto shares = shares_of<64>(kv);
  CHECK(shares[0] > 0);
  CHECK(shares[5] == 0);
}

TEST_CASE("blocks of which no query sees a key draw nothing") {
  paged_kv<fp16> kv(group_of(64, 16), 4, {{.tokens = 40, .first_position = 64}, {.tokens = 20}}, gaussian_at);
  kv.query_position[0] = 63;  // before the table begins
  const auto shares = shares_of<64>(kv);
  for (std::size_t e = 0; e < 3; ++e) CHECK(shares[e] == 0);
  CHECK(shares[3] + shares[4] == Approx(1).epsilon(1e-4));
}

TEST_CASE("mass without what it is made of is refused") {
  CHECK(!cuda::block_mass({}, nullptr, 1, nullptr, nullptr));
}
