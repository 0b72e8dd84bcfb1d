#include "terrace/codec/lz4.hpp"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <span>
#include <vector>

#include "catch.hpp"
#include "terrace/codec/chain.hpp"
#include "terrace/codec/q8_0.hpp"
#include "terrace/testing/codec_conformance.hpp"

using namespace terrace;

namespace {

using bytes = std::vector<std::byte>;

bytes random_bytes(std::size_t n, std::uint32_t seed, unsigned values = 256) {
  std::mt19937 random(seed);
  bytes b(n);
  for (std::byte& x : b) x = static_cast<std::byte>(random() % values);
  return b;
}

bytes compressed(const bytes& in) {
  bytes out(lz4::max_encoded_bytes(in.size()));
  const auto written = lz4::encode_bytes(in, out);
  REQUIRE(written);
  out.resize(*written);
  return out;
}

}  // namespace

TEMPLATE_TEST_CASE("lz4 keeps the contract of a codec, alone and in a chain", "", lz4, (chain<q8_0, lz4>),
                   (chain<lz4, lz4>)) {
  for (std::uint32_t seed = 1; seed <= 2; ++seed) {
    const auto violated = codec_conformance<TestType>({.seed = seed});
    INFO(violated.value_or(""));
    CHECK_FALSE(violated);
  }
}

TEST_CASE("lz4 gives back bytes of any number and content") {
  for (const std::size_t n : {0u, 1u, 2u, 17u, 1000u, 131072u, 300001u}) {
    for (const unsigned values : {1u, 3u, 256u}) {
      const bytes in = random_bytes(n, static_cast<std::uint32_t>(n) + values, values);
      const bytes encoded = compressed(in);
      bytes out(n);
      REQUIRE(lz4::decode_bytes(encoded, out));
      REQUIRE(out == in);
    }
  }
  CHECK(compressed(bytes(100000)).size() < 500);
}

TEST_CASE("what lz4 writes depends on nothing but its input") {
  const bytes in = random_bytes(100000, 1, 3);
  const bytes first = compressed(in);
  static_cast<void>(compressed(random_bytes(200000, 2, 5)));
  CHECK(compressed(in) == first);
}

TEST_CASE("lz4 refuses sizes that are not what was encoded") {
  const bytes in = random_bytes(1000, 4, 2), block = compressed(in);
  const auto refused = [](const_bytes encoded, std::size_t n) {
    bytes out(n + 1, std::byte{0x77});
    const auto decoded = lz4::decode_bytes(encoded, mutable_bytes(out).first(n));
    return !decoded && decoded.error().code == errc::corrupt && out.back() == std::byte{0x77};
  };
  CHECK(refused(block, 999));
  CHECK(refused(block, 1001));
  CHECK(refused({}, 1000));
  CHECK(refused(bytes(1100), 1000));
  for (std::size_t n = 0; n < block.size(); ++n) CHECK(refused(std::span(block).first(n), 1000));
  CHECK(lz4::max_encoded_bytes(std::numeric_limits<std::size_t>::max()) == 0);
  CHECK(lz4::max_encoded_bytes(std::size_t{1} << 31) == 0);
}

TEST_CASE("lz4 survives flipped bits and noise: an error, or as many bytes as expected") {
  const bytes in = random_bytes(3000, 6, 3), block = compressed(in);
  bytes out(in.size());
  for (std::size_t bit = 0; bit < block.size() * 8; ++bit) {
    bytes bad = block;
    bad[bit / 8] ^= static_cast<std::byte>(1u << bit % 8);
    if (const auto decoded = lz4::decode_bytes(bad, out); !decoded)
      REQUIRE(decoded.error().code == errc::corrupt);
  }
  for (std::uint32_t seed = 0; seed < 500; ++seed)
    if (const auto decoded = lz4::decode_bytes(random_bytes(seed, seed), out); !decoded)
      REQUIRE(decoded.error().code == errc::corrupt);
}

TEST_CASE("lz4 refuses too little room when encoding") {
  const bytes in = random_bytes(1000, 8);
  bytes out(lz4::max_encoded_bytes(in.size()) - 1);
  CHECK(lz4::encode_bytes(in, out).error().code == errc::invalid_argument);
}
