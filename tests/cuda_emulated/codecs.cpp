#include "terrace/cuda/codecs.cuh"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <type_traits>
#include <vector>

#include "catch.hpp"
#include "cuda_emulated/emulator.hpp"
#include "terrace/codec/fp8.hpp"
#include "terrace/codec/q4_0.hpp"
#include "terrace/codec/q8_0.hpp"

using namespace terrace;
using cuda::block_addresses;

namespace {

template <class Codec>
inline constexpr block_encoding encoding_of{Codec::format_id};

template <class T>
layer_group group_of(std::uint32_t tokens, std::uint32_t dim = 64) {
  const plane p{.heads = 2, .dim = dim, .type = element_of<T>};
  return {.tokens = tokens, .k = p, .v = p};
}

// Blocks in a run, encoded and decoded by the codec on the host and by the kernels, which must agree.
template <class Codec, class T>
struct comparison {
  comparison(const layer_group& g, std::uint32_t n)
      : group(g),
        count(n),
        encoded_bytes(Codec::max_encoded_size(g)),
        raw(n * g.block_bytes() / 16),
        host(n * encoded_bytes),
        decoded(raw.size()) {}

  template <class F>
  void fill(F value) {
    for (std::size_t i = 0; i < raw.size() * 16 / sizeof(T); ++i) {
      const T x = value(i);
      std::memcpy(bytes(raw) + i * sizeof(T), &x, sizeof x);
    }
  }
  // `skew` bytes lie before the encoded blocks.
  bool agrees(std::size_t skew = 0, std::uint32_t ctas = 3) {
    const std::size_t block = group.block_bytes();
    for (std::size_t i = 0; i < count; ++i)
      if (!Codec::encode(group, {bytes(raw) + i * block, block},
                         {host.data() + i * encoded_bytes, encoded_bytes}))
        return false;
    std::vector<std::byte> device(skew + host.size());
    const block_addresses encoded{.base = device.data() + skew, .stride = encoded_bytes};
    if (!cuda::encode_blocks<T, encoding_of<Codec>>(group, {.base = bytes(raw), .stride = block}, encoded,
                                                    count, nullptr, ctas))
      return false;
    if (!emulator::take_faults().empty() || std::memcmp(device.data() + skew, host.data(), host.size()) != 0)
      return false;
    std::vector<cuda::vec16> again(raw.size());
    std::vector<std::uint32_t> bad(count);
    for (std::size_t i = 0; i < count; ++i)
      if (!Codec::decode(group, {host.data() + i * encoded_bytes, encoded_bytes},
                         {bytes(decoded) + i * block, block}))
        return false;
    if (!cuda::decode_blocks<T, encoding_of<Codec>>(group, encoded, {.base = bytes(again), .stride = block},
                                                    count, nullptr, bad.data(), ctas))
      return false;
    return emulator::take_faults().empty() && again == decoded &&
           std::count(bad.begin(), bad.end(), 0u) == static_cast<std::ptrdiff_t>(count);
  }

  static std::byte* bytes(std::vector<cuda::vec16>& v) { return reinterpret_cast<std::byte*>(v.data()); }

  layer_group group;
  std::uint32_t count;
  std::size_t encoded_bytes;
  std::vector<cuda::vec16> raw;
  std::vector<std::byte> host;
  std::vector<cuda::vec16> decoded;
};

template <class Codec, class T>
void check_random() {
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  for (const std::uint32_t tokens : {1u, 5u, 64u})
    for (const float scale : {1.0f, 1e-7f, 3e4f}) {
      comparison<Codec, T> blocks(group_of<T>(tokens), 3);
      blocks.fill([&](std::size_t) { return from_float<T>(scale * normal(random)); });
      CHECK(blocks.agrees());
    }
  // Bits of any kind: NaN, infinities, subnormals and zeros of both signs among them.
  comparison<Codec, T> blocks(group_of<T>(128), 4);
  blocks.fill([&](std::size_t) {
    using bits = std::conditional_t<sizeof(T) == 2, std::uint16_t, std::uint32_t>;
    return std::bit_cast<T>(static_cast<bits>(random()));
  });
  CHECK(blocks.agrees());
}

}  // namespace

TEMPLATE_TEST_CASE("kernels encode and decode as the codecs do", "", q8_0, q4_0, fp8) {
  check_random<TestType, fp16>();
  check_random<TestType, bf16>();
  check_random<TestType, float>();
}

TEMPLATE_TEST_CASE("every 16-bit value is encoded as the codecs do", "", q8_0, q4_0, fp8) {
  const auto check = [](auto type) {
    using T = decltype(type);
    // Each value as the largest of a group, beside values of smaller magnitude; and beside its opposite.
    comparison<TestType, T> blocks(group_of<T>(1024), 16);
    blocks.fill([](std::size_t i) {
      const auto value = static_cast<std::uint16_t>(i / 32);
      if (i % 32 == 7) return T{value};
      if (i % 32 == 20 && value % 3 == 0) return T{static_cast<std::uint16_t>(value ^ 0x8000u)};
      return from_float<T>(to_float(T{value}) * static_cast<float>(static_cast<int>(i * 37 % 255) - 127) /
                           127.0f);
    });
    CHECK(blocks.agrees());
    // All in order, so that a group has neighbours of like size.
    comparison<TestType, T> row(group_of<T>(256), 1);
    row.fill([](std::size_t i) { return T{static_cast<std::uint16_t>(i)}; });
    CHECK(row.agrees());
  };
  check(fp16{});
  check(bf16{});
}

TEMPLATE_TEST_CASE("what was decoded is encoded to the same codes", "", q8_0, q4_0, fp8) {
  std::mt19937 random(4);
  std::normal_distribution<float> normal;
  comparison<TestType, bf16> blocks(group_of<bf16>(512), 4);
  blocks.fill([&](std::size_t) { return from_float<bf16>(normal(random)); });
  REQUIRE(blocks.agrees());
  const auto codes = blocks.host;
  blocks.raw = blocks.decoded;
  CHECK(blocks.agrees());
  CHECK(blocks.host == codes);
}

TEST_CASE("encoded blocks may lie at any address, and any number of blocks of threads does the whole") {
  std::mt19937 random(5);
  comparison<q8_0, fp16> blocks(group_of<fp16>(40, 96), 5);
  blocks.fill([&](std::size_t) { return from_float<fp16>(static_cast<float>(random() % 1000) - 500); });
  for (const std::size_t skew : {0u, 1u, 2u, 4u, 8u, 16u}) CHECK(blocks.agrees(skew));
  for (const std::uint32_t ctas : {0u, 1u, 2u, 100u}) CHECK(blocks.agrees(0, ctas));
  emulator::on_each_machine([&] { CHECK(blocks.agrees()); });
}

TEMPLATE_TEST_CASE("a block with a scale that is no number is named", "", q8_0, q4_0) {
  const layer_group group = group_of<fp16>(16);
  const std::size_t bytes = TestType::max_encoded_size(group);
  std::vector<std::byte> encoded(3 * bytes);
  const std::uint16_t infinite = 0xfc00;
  std::memcpy(encoded.data() + bytes + 5 * TestType::group_bytes, &infinite, sizeof infinite);
  std::vector<cuda::vec16> raw(3 * group.block_bytes() / 16);
  std::vector<std::uint32_t> bad(3);
  REQUIRE(cuda::decode_blocks<fp16, encoding_of<TestType>>(
      group, {.base = encoded.data(), .stride = bytes},
      {.base = reinterpret_cast<std::byte*>(raw.data()), .stride = group.block_bytes()}, 3, nullptr,
      bad.data()));
  CHECK(bad == std::vector<std::uint32_t>{0, 1, 0});
}

TEST_CASE("groups that the codecs do not support are refused") {
  const block_addresses nowhere;
  CHECK(!cuda::encode_blocks<bf16, block_encoding::q8_0>(group_of<fp16>(1), nowhere, nowhere, 1, nullptr));
  CHECK(
      !cuda::encode_blocks<fp16, block_encoding::q4_0>(group_of<fp16>(1, 80), nowhere, nowhere, 1, nullptr));
  CHECK(!cuda::decode_blocks<fp16, block_encoding::fp8>(group_of<fp16>(1, 12), nowhere, nowhere, 1, nullptr));
}
