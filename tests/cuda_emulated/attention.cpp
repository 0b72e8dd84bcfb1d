#include "terrace/cuda/attention.cuh"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "catch.hpp"
#include "cuda_emulated/emulator.hpp"
#include "cuda_emulated/paged_kv.hpp"

using namespace terrace;

namespace {

layer_group group_of(std::uint32_t kv_heads, std::uint32_t dim, std::uint32_t tokens) {
  return {.tokens = tokens, .k = {.heads = kv_heads, .dim = dim}, .v = {.heads = kv_heads, .dim = dim}};
}

// Runs the kernel and returns the error against double.
template <std::uint32_t dim, class T, block_encoding encoding>
double error_of(paged_kv<T, encoding>& kv, std::uint32_t split_blocks) {
  const cuda::attention_args args = kv.args(split_blocks);
  REQUIRE(cuda::attend<T, dim, encoding>(args, nullptr));
  const auto faults = emulator::take_faults();
  CAPTURE(faults);
  REQUIRE(faults.empty());
  return kv.error(args.out.splits);
}

template <class T, std::uint32_t dim, block_encoding encoding = block_encoding::raw>
double random_error(std::uint32_t kv_heads, std::uint32_t q_heads, std::vector<sequence_of> sequences,
                    std::uint32_t tokens = 32, std::uint32_t split_blocks = 3) {
  paged_kv<T, encoding> kv(group_of(kv_heads, dim, tokens), q_heads, std::move(sequences), gaussian_at);
  return error_of<dim>(kv, split_blocks);
}

// What 16-bit weights in the second product cost; the plain kernel keeps them as floats.
constexpr double half_error = 1e-3, bfloat_error = 6e-3, float_error = 1e-5;

const std::vector<sequence_of> ragged{
    {.tokens = 300}, {.tokens = 1}, {.tokens = 0}, {.tokens = 96}, {.tokens = 77}};

}  // namespace

TEST_CASE("decode attention is that of double, for every head dimension") {
  CHECK(random_error<fp16, 64>(2, 8, ragged) < half_error);
  CHECK(random_error<fp16, 80>(1, 4, ragged) < half_error);
  CHECK(random_error<fp16, 96>(1, 4, ragged) < half_error);
  CHECK(random_error<fp16, 128>(2, 8, ragged) < half_error);
  CHECK(random_error<fp16, 256>(1, 4, ragged) < half_error);
  CHECK(random_error<bf16, 128>(2, 8, ragged) < bfloat_error);
}

TEST_CASE("decode attention is that of double, for every number of query heads that share a KV head") {
  for (std::uint32_t q_heads = 1; q_heads <= 16; ++q_heads)
    CHECK(random_error<fp16, 64>(1, q_heads, {{.tokens = 100}}) < half_error);
  CHECK(random_error<fp16, 64>(1, 71, {{.tokens = 100}}) < half_error);
}

TEST_CASE("decode attention takes blocks and splits of any size") {
  for (const std::uint32_t tokens : {16u, 48u, 64u})
    for (const std::uint32_t split_blocks : {1u, 2u, 100u})
      CHECK(random_error<fp16, 64>(1, 4, {{.tokens = 200}, {.tokens = 16}}, tokens, split_blocks) <
            half_error);
  CHECK(random_error<fp16, 64>(1, 4, {{.tokens = 5000}}, 64, 8) < half_error);
}

TEST_CASE("encoded blocks are attended where they are") {
  CHECK(random_error<fp16, 128, block_encoding::q8_0>(2, 8, ragged) < half_error);
  CHECK(random_error<fp16, 128, block_encoding::q4_0>(2, 8, ragged) < half_error);
  CHECK(random_error<fp16, 64, block_encoding::fp8>(2, 8, ragged) < half_error);
  CHECK(random_error<bf16, 64, block_encoding::q8_0>(2, 8, ragged) < bfloat_error);
  CHECK(random_error<bf16, 64, block_encoding::q4_0>(2, 8, ragged) < bfloat_error);
}

TEST_CASE("several queries of a sequence see the keys up to their own positions") {
  const std::vector<sequence_of> drafts{
      {.tokens = 100, .queries = 5}, {.tokens = 3, .queries = 3}, {.tokens = 65}};
  CHECK(random_error<fp16, 64>(2, 8, drafts) < half_error);
  CHECK(random_error<fp16, 64>(1, 3, {{.tokens = 130, .queries = 130}}) < half_error);
  CHECK(random_error<fp16, 20>(2, 8, drafts) < float_error);
}

TEST_CASE("windows and sinks hide the keys between them") {
  for (const retention keep :
       {retention{.window = 40}, retention{.window = 40, .sinks = 5}, retention{.window = 1}}) {
    layer_group group = group_of(1, 64, 16);
    group.keep = keep;
    paged_kv<fp16> kv(group, 4,
                      {{.tokens = 150, .queries = 3}, {.tokens = 20}, {.tokens = 90, .first_position = 160}},
                      gaussian_at);
    CHECK(error_of<64>(kv, 2) < half_error);
    group.k.dim = group.v.dim = 24;
    paged_kv<fp16> plain(group, 4, {{.tokens = 150, .queries = 3}, {.tokens = 90, .first_position = 160}},
                         gaussian_at);
    CHECK(error_of<24>(plain, 2) < float_error);
  }
}

TEST_CASE("what tensor cores do not take, the plain kernel does") {
  CHECK(random_error<float, 128>(1, 4, ragged) < float_error);
  CHECK(random_error<fp16, 40>(2, 6, ragged) < float_error);
  CHECK(random_error<bf16, 64>(1, 4, ragged, 5) < float_error);
  CHECK(random_error<fp16, 64, block_encoding::q8_0>(1, 4, ragged, 4) < float_error);

  layer_group group = group_of(2, 64, 32);
  group.order = page_order::nhd;
  paged_kv<fp16> nhd(group, 8, ragged, gaussian_at);  // on tensor cores: rows of 16-byte pieces, wherever
  CHECK(error_of<64>(nhd, 3) < half_error);
  paged_kv<fp16, block_encoding::q4_0> encoded(group, 8, {{.tokens = 96}}, gaussian_at);
  CHECK(error_of<64>(encoded, 3) < float_error);

  // MLA: one latent plane, whose first elements are the values.
  layer_group latent{.tokens = 16, .k = {.heads = 1, .dim = 96}, .latent_v_dim = 64};
  paged_kv<fp16> mla(latent, 5, ragged, gaussian_at);
  CHECK(error_of<96>(mla, 3) < float_error);
}

TEST_CASE("logits of any size are right") {
  const auto huge = [](char which, std::uint32_t head, std::int64_t position, std::uint32_t d) {
    return gaussian_at(which, head, position, d) * (which == 'v' ? 1.0f : 300.0f);
  };
  paged_kv<fp16> kv(group_of(1, 64, 16), 4, {{.tokens = 200}}, huge);
  CHECK(error_of<64>(kv, 2) < half_error);
  // Larger than a float holds: the keys with the largest product share the weight.
  const auto endless = [](char which, std::uint32_t, std::int64_t position, std::uint32_t d) {
    return which == 'v' ? static_cast<float>(d) : position % 2 == 0 ? 1e30f : -1e30f;
  };
  for (const std::uint32_t tokens : {16u, 5u}) {  // on tensor cores, and without
    paged_kv<bf16> beyond(group_of(1, 64, tokens), 1, {{.tokens = 41}}, endless);
    const auto args = beyond.args(2);
    REQUIRE(cuda::attend<bf16, 64>(args, nullptr));
    for (const float x : beyond.merged(0, args.out.splits)) CHECK(std::isfinite(x));
  }
}

TEST_CASE("a NaN in a key that a query sees reaches its result, and one that it does not see does not") {
  for (const std::int64_t bad : {99, 98}) {
    const auto value = [&](char which, std::uint32_t head, std::int64_t position, std::uint32_t d) {
      return which == 'k' && position == bad && d == 3 ? std::numeric_limits<float>::quiet_NaN()
                                                       : gaussian_at(which, head, position, d);
    };
    paged_kv<fp16> kv(group_of(1, 64, 16), 1, {{.tokens = 100, .queries = 2}}, value);
    const auto args = kv.args(2);
    REQUIRE(cuda::attend<fp16, 64>(args, nullptr));
    CHECK(std::isnan(kv.merged(0, args.out.splits)[0]) == (bad == 98));
    CHECK(std::isnan(kv.merged(1, args.out.splits)[0]));
  }
}

TEST_CASE("every machine gives the same bits") {
  std::vector<float> first;
  paged_kv<fp16> raw(group_of(1, 128, 32), 12, {{.tokens = 333}}, gaussian_at);
  paged_kv<fp16, block_encoding::q8_0> encoded(group_of(1, 64, 32), 4, {{.tokens = 333}}, gaussian_at);
  emulator::on_each_machine([&] {
    CHECK(error_of<128>(raw, 5) < half_error);
    CHECK(error_of<64>(encoded, 5) < half_error);
    std::vector<float> now = raw.outputs;
    now.insert(now.end(), encoded.outputs.begin(), encoded.outputs.end());
    if (first.empty()) first = now;
    CHECK(std::memcmp(first.data(), now.data(), first.size() * sizeof(float)) == 0);
  });
}

TEST_CASE("devices with less shared memory have a shorter ring, or the plain kernel, and the same results") {
  // Of three stages and of two, the bits are the same; head dimensions beyond 176 have two anyway, and too wide ones.
  paged_kv<fp16> kv(group_of(1, 128, 32), 12, {{.tokens = 333}, {.tokens = 20}}, gaussian_at);
  REQUIRE(error_of<128>(kv, 5) < half_error);
  const std::vector<float> deep = kv.outputs;
  emulator::current().shared_bytes = cuda::least_shared_bytes;
  CHECK(error_of<128>(kv, 5) < half_error);
  CHECK(std::memcmp(deep.data(), kv.outputs.data(), deep.size() * sizeof(float)) == 0);
  for (const std::uint32_t q_heads : {1u, 8u, 9u, 32u})
    CHECK(random_error<fp16, 128>(1, q_heads, {{.tokens = 100}}) < half_error);
  CHECK(random_error<bf16, 128>(2, 8, ragged) < bfloat_error);
  CHECK(random_error<fp16, 256>(1, 4, ragged) < float_error);
  CHECK(random_error<fp16, 256, block_encoding::q4_0>(1, 4, ragged) < half_error);
  emulator::current() = {};
}

TEST_CASE("a split depends on its positions, not on the window, the batch or the other queries") {
  constexpr std::uint32_t split_blocks = 2, split = 64;  // tokens
  paged_kv<fp16> whole(group_of(1, 64, 32), 4, {{.tokens = 300}}, gaussian_at);
  // The same tokens as two windows that meet between splits, in a batch with another sequence.
  paged_kv<fp16> windows(group_of(1, 64, 32), 4,
                         {{.tokens = 50},
                          {.tokens = 172, .first_position = 128},
                          {.tokens = 128},
                          {.tokens = 204, .first_position = 96}},
                         gaussian_at);
  for (auto* kv : {&whole, &windows}) {
    kv->query_position.assign(kv->sequences.size(), 299);
    for (std::size_t i = 0; i < kv->queries.size(); ++i)
      kv->queries[i] = to_fp16(gaussian_at('q', static_cast<std::uint32_t>(i / 64 % 4), 299, i % 64));
  }
  const auto a = whole.args(split_blocks), b = windows.args(split_blocks);
  REQUIRE(cuda::attend<fp16, 64>(a, nullptr));
  REQUIRE(cuda::attend<fp16, 64>(b, nullptr));
  const auto same = [&](std::size_t row_a, std::size_t split_a, std::size_t row_b, std::size_t split_b) {
    const std::size_t x = row_a * a.out.splits + split_a, y = row_b * b.out.splits + split_b;
    return std::memcmp(&whole.scalars[x], &windows.scalars[y], sizeof(softmax_row)) == 0 &&
           std::memcmp(&whole.outputs[x * 64], &windows.outputs[y * 64], 64 * sizeof(float)) == 0;
  };
  for (std::size_t head = 0; head < 4; ++head) {
    for (std::size_t s = 0; s < 128 / split; ++s) CHECK(same(head, s, 8 + head, s));
    for (std::size_t s = 0; s < 3; ++s) CHECK(same(head, 2 + s, 4 + head, s));
    for (std::size_t s = 1; s < 4; ++s) CHECK(same(head, 1 + s, 12 + head, s));  // begins within a split
  }
}

TEST_CASE("a window may begin within a split") {
  paged_kv<fp16> kv(group_of(1, 64, 16), 4, {{.tokens = 100, .first_position = 48}}, gaussian_at);
  CHECK(error_of<64>(kv, 4) < half_error);
}

TEST_CASE("wrong arguments are refused with a sentence") {
  paged_kv<fp16> kv(group_of(2, 64, 16), 4, {{.tokens = 100}}, gaussian_at);
  const auto refused = [&](auto change) {
    auto args = kv.args(2);
    change(args);
    const auto done = cuda::attend<fp16, 64>(args, nullptr);
    return !done && done.error().code == errc::invalid_argument;
  };
  CHECK(refused([](auto& a) { a.queries.q_heads = 3; }));
  CHECK(refused([](auto& a) { a.page.k_dim = 128; }));
  CHECK(refused([](auto& a) { a.split_blocks = 0; }));
  CHECK(refused([](auto& a) { a.table.sequences = 70000; }));
  CHECK(refused([](auto& a) {
    a.keep.window = 5;
    a.queries.first_position = nullptr;
  }));
}
