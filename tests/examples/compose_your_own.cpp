// The models of the example keep their contracts, and do what the example says of them.
#define TERRACE_WITHOUT_MAIN
#include "../../examples/compose_your_own.cpp"

#include <cstdint>
#include <limits>
#include <set>

#include "catch.hpp"
#include "pattern.hpp"
#include "terrace/testing/codec_conformance.hpp"
#include "terrace/testing/medium_conformance.hpp"
#include "terrace/testing/policy_conformance.hpp"

namespace {

// One block of one token and one head, whose keys are `values` and whose values are zeros.
constexpr std::uint32_t row = 4;
const layer_group one_row{.tokens = 1, .k = {1, row}, .v = {1, row}};
std::vector<float> through_block_float(std::vector<float> values) {
  std::vector<fp16> raw(2 * row), back(2 * row);
  for (std::uint32_t d = 0; d < row; ++d) raw[d] = to_fp16(values[d]);
  std::vector<std::byte> encoded(block_float::max_encoded_size(one_row));
  REQUIRE(block_float::encode(one_row, std::as_bytes(std::span(raw)), encoded));
  REQUIRE(block_float::decode(one_row, encoded, std::as_writable_bytes(std::span(back))));
  for (std::uint32_t d = 0; d < row; ++d) values[d] = to_float(back[d]);
  return values;
}

}  // namespace

TEST_CASE("compose_your_own: the medium keeps its contract") {
  for (const std::size_t capacity : {64_KiB, 1_MiB, 8_MiB + 4096}) {
    context ctx;
    auto opened = memory_file::open(ctx, {.capacity = capacity});
    REQUIRE(opened);
    const auto violated = medium_conformance(ctx, **opened);
    INFO(violated.value_or(""));
    CHECK_FALSE(violated);
  }
}

TEST_CASE("compose_your_own: another mapping of the medium's file sees the block") {
  context ctx;
  auto opened = memory_file::open(ctx, {.capacity = 64_KiB});
  REQUIRE(opened);
  const auto e = (*opened)->reserve(100);
  REQUIRE(e);
  const std::vector<std::byte> written(128, std::byte{42});
  REQUIRE(ctx.sync_wait((*opened)->write(*e, written)));
  void* const seen = ::mmap(nullptr, 64_KiB, PROT_READ, MAP_SHARED, (*opened)->descriptor(), 0);
  REQUIRE(seen != MAP_FAILED);
  CHECK(std::memcmp(static_cast<const std::byte*>(seen) + e->offset, written.data(), written.size()) == 0);
  CHECK(::munmap(seen, 64_KiB) == 0);
}

TEST_CASE("compose_your_own: a medium that cannot be is an error") {
  context ctx;
  for (const std::size_t capacity : {std::size_t{0}, std::size_t{63}}) {
    const auto opened = memory_file::open(ctx, {.capacity = capacity});
    REQUIRE_FALSE(opened);
    CHECK(opened.error().code == errc::invalid_argument);
  }
  const auto huge = memory_file::open(ctx, {.capacity = std::numeric_limits<std::size_t>::max() / 4});
  REQUIRE_FALSE(huge);
  CHECK(huge.error().code == errc::out_of_memory);
}

TEST_CASE("compose_your_own: the codec keeps its contract") {
  for (std::uint32_t seed = 1; seed <= 4; ++seed) {
    const auto violated = codec_conformance<block_float>({.seed = seed});
    INFO(violated.value_or(""));
    CHECK_FALSE(violated);
  }
}

TEST_CASE("compose_your_own: the codec is exact for eight bits, and off by half a step otherwise") {
  CHECK(through_block_float({1, -127, 0, 64}) == std::vector<float>{1, -127, 0, 64});
  CHECK(through_block_float({0, 0, 0, 0}) == std::vector<float>(row, 0.0f));
  CHECK(through_block_float({0x1p-24f, -0x1p-24f, 0, 0}) == std::vector<float>{0x1p-24f, -0x1p-24f, 0, 0});
  CHECK(through_block_float({65504, -65504, 0, 512}) == std::vector<float>{65024, -65024, 0, 512});
  CHECK(through_block_float({128, 3, 1, 127}) == std::vector<float>{128, 4, 0, 128});
  const float infinity = std::numeric_limits<float>::infinity();
  CHECK(through_block_float({infinity, std::nanf(""), 0, -infinity}) ==
        std::vector<float>{65024, 0, 0, -65024});
}

TEST_CASE("compose_your_own: the codec refuses what is not fp16, and numbers that cannot be") {
  CHECK_FALSE(block_float::supports({.k = {1, 8, element::bf16}}));
  CHECK_FALSE(block_float::supports({.k = {1, 8}, .v = {1, 8, element::fp32}}));
  std::vector<std::byte> encoded(block_float::max_encoded_size(one_row)), raw(one_row.block_bytes());
  CHECK(block_float::decode(one_row, encoded, raw));
  for (const int exponent : {-25, 10}) {
    encoded[0] = static_cast<std::byte>(exponent);
    const auto decoded = block_float::decode(one_row, encoded, raw);
    REQUIRE_FALSE(decoded);
    CHECK(decoded.error().code == errc::corrupt);
  }
  encoded[0] = std::byte{0};
  encoded[1] = std::byte{0x80};
  CHECK_FALSE(block_float::decode(one_row, encoded, raw));
}

TEST_CASE("compose_your_own: the policy keeps its contract") {
  for (std::uint32_t seed = 1; seed <= 3; ++seed) {
    const auto violated = policy_conformance<random_victim>({.seed = seed}, {.seed = seed});
    INFO(violated.value_or(""));
    CHECK_FALSE(violated);
  }
}

TEST_CASE("compose_your_own: the victim stays until it leaves, and everybody's turn comes") {
  std::vector<random_victim::block_state> states(20);
  random_victim policy({});
  policy.bind(states);
  for (std::uint32_t i = 0; i < 20; ++i) policy.admit(i, {});
  std::set<std::uint32_t> drawn;
  for (int draws = 0; draws < 1000; ++draws) {
    const std::uint32_t victim = policy.victim();
    REQUIRE(policy.victim() == victim);
    drawn.insert(victim);
    policy.remove(victim);
    policy.admit(victim, {});
  }
  CHECK(drawn.size() == 20);
}

TEST_CASE("compose_your_own: what goes through the whole ladder comes back to the byte") {
  constexpr std::uint32_t layers = 2, depth = 40;
  context ctx;
  // pattern's numbers need eleven bits, more than the codec keeps: compare with one passage through it.
  auto cache =
      kv_cache::open(ctx, pattern::layout(layers), {.capacity = 32 * pattern::block_bytes},
                     {.capacity = 16 * pattern::block_bytes}, {.capacity = 128 * pattern::block_bytes});
  REQUIRE(cache);
  auto sequence = cache->make_sequence();
  std::vector<std::vector<std::byte>> expected;
  const layer_group& group = cache->layout().groups[0];
  for (std::uint32_t n = 0; n < depth; ++n) {
    auto room = sequence.reserve(16);
    REQUIRE(room);
    pattern::write(*room, layers, 1);
    for (std::uint32_t layer = 0; layer < layers; ++layer) {
      const auto first = room->k(layer).row<fp16>(0, 0);
      const const_bytes written(reinterpret_cast<const std::byte*>(first.data()), group.block_bytes());
      std::vector<std::byte> encoded(block_float::max_encoded_size(group)), once(group.block_bytes());
      REQUIRE(block_float::encode(group, written, encoded));
      REQUIRE(block_float::decode(group, encoded, once));
      expected.push_back(std::move(once));
    }
    sequence.commit(std::move(*room), 16);
  }
  for (int turn = 0; turn < 3; ++turn)
    for (std::uint32_t layer = 0; layer < layers; ++layer)
      for (std::uint32_t n = 0; n < depth; ++n) {
        const block_id id = sequence.pages().rows[layer][n];
        auto held = ctx.sync_wait(cache->acquire(std::span(&id, 1)));
        REQUIRE(held);
        const leased_block& block = (*held)[0];
        if (block.quality.exact())
          CHECK(pattern::holds(group, block.data, layer, n, 1, 16));
        else
          CHECK(std::memcmp(block.data, expected[n * layers + layer].data(), group.block_bytes()) == 0);
      }
  const cache_stats stats = cache->stats();
  CHECK(stats.tiers[1].loads > 0);
  CHECK(stats.tiers[2].loads > 0);
}
