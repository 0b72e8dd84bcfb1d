#include "attention_runner/synthetic_kv.hpp"

#include <cmath>
#include <set>
#include <vector>

#include "attention_runner/reference_attention.hpp"
#include "catch.hpp"
#include "terrace/attention/attend.hpp"

using namespace runner;
using plane = synthetic_kv::plane;

namespace {
constexpr model_shape small{"", 2, 4, 2, 64};
}  // namespace

TEST_CASE("the same place has the same numbers, another place has others") {
  const synthetic_kv one(small), again(small), other(small, 2);
  std::set<const float*> places;
  for (std::uint32_t layer = 0; layer < 2; ++layer)
    for (std::uint32_t head = 0; head < 2; ++head)
      for (std::uint64_t token = 0; token < 100; ++token)
        for (const plane p : {plane::k, plane::v})
          for (std::uint32_t sequence = 0; sequence < 2; ++sequence) {
            const auto row = one.values(p, layer, head, token, sequence);
            const auto same = again.values(p, layer, head, token, sequence);
            places.insert(row.data());
            CHECK(std::equal(row.begin(), row.end(), same.begin()));
            const auto half = one.row(p, layer, head, token, sequence);
            for (std::size_t d = 0; d < row.size(); ++d) REQUIRE(terrace::to_float(half[d]) == row[d]);
          }
  CHECK(places.size() >= 790);  // of 800: a hash may meet itself
  CHECK_FALSE(one.values(plane::k, 0, 0, 0)[0] == other.values(plane::k, 0, 0, 0)[0]);
}

TEST_CASE("the numbers are normally distributed") {
  const synthetic_kv kv(small);
  double sum = 0, squares = 0, beyond_two = 0, n = 0;
  for (std::uint64_t token = 0; token < 2000; ++token)
    for (const float x : kv.values(plane::v, 1, 1, token)) {
      sum += static_cast<double>(x);
      squares += static_cast<double>(x) * static_cast<double>(x);
      beyond_two += std::abs(x) > 2 ? 1 : 0;
      ++n;
    }
  CHECK(sum / n == Approx(0).margin(0.02));
  CHECK(squares / n == Approx(1).epsilon(0.02));
  CHECK(beyond_two / n == Approx(0.0455).epsilon(0.1));
}

TEST_CASE("about half of a query's attention is on one token of the context") {
  const synthetic_kv kv({"", 1, 8, 8, 128});
  constexpr std::uint64_t context = 4096;
  std::vector<float> q(8 * 128);
  kv.queries(0, context, context, 0, q);
  double mean = 0;
  for (std::uint32_t h = 0; h < 8; ++h) {
    double total = 0, most = 0;
    for (std::uint64_t t = 0; t < context; ++t) {
      double dot = 0;
      const auto key = kv.values(plane::k, 0, h, t);
      for (std::size_t d = 0; d < 128; ++d)
        dot += static_cast<double>(q[h * 128 + d]) * static_cast<double>(key[d]);
      const double weight = std::exp(dot / std::sqrt(128.0));
      total += weight;
      most = std::max(most, weight);
    }
    mean += most / total / 8;
  }
  CHECK(mean > 0.2);
  CHECK(mean < 0.8);
}

TEST_CASE("the reference is what attention over the same numbers gives") {
  const synthetic_kv kv(small);
  constexpr std::uint64_t context = 100, tokens = 103;
  std::vector<float> q(4 * 64);
  kv.queries(1, tokens - 1, context, 1, q);
  // One block of all tokens; the last three were decoded by sequence 1.
  const terrace::layer_group group{.layers = 1, .tokens = 128, .k = {2, 64}, .v = {2, 64}};
  std::vector<terrace::fp16> block(group.block_bytes() / 2);
  for (std::uint32_t h = 0; h < 2; ++h)
    for (std::uint64_t t = 0; t < tokens; ++t) {
      const std::uint32_t owner = t < context ? 0 : 1;
      const std::size_t at = (h * 128 + t) * 64;
      std::ranges::copy(kv.row(plane::k, 1, h, t, owner), block.begin() + static_cast<std::ptrdiff_t>(at));
      std::ranges::copy(kv.row(plane::v, 1, h, t, owner),
                        block.begin() + static_cast<std::ptrdiff_t>(group.v_offset() / 2 + at));
    }
  terrace::query_tile tile;
  terrace::partial_state state;
  REQUIRE(tile.load(terrace::attention_shape{.q_heads = 4, .kv_heads = 2, .dim = 64},
                    std::span<const float>(q), tokens - 1));
  REQUIRE(state.reset(4, 64));
  for (std::uint32_t h = 0; h < 2; ++h)
    terrace::attend(tile,
                    {.group = &group,
                     .data = reinterpret_cast<const std::byte*>(block.data()),
                     .first_position = 0,
                     .tokens = tokens},
                    state, h, 0, 1);
  std::vector<float> out(4 * 64);
  state.finish(std::span<float>(out));
  for (std::uint32_t head = 0; head < 4; ++head) {
    const auto right = reference_attention(kv, 1, head, tokens, context, 1,
                                           std::span<const float>(q).subspan(head * 64, 64));
    for (std::size_t d = 0; d < 64; ++d)
      CHECK(static_cast<double>(out[head * 64 + d]) == Approx(right[d]).margin(1e-5));
  }
}
