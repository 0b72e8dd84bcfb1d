#include "terrace/codec/zstd.hpp"

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <random>
#include <span>
#include <thread>
#include <vector>

#include "catch.hpp"
#include "terrace/core/element.hpp"
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
  bytes out(zstd<>::max_encoded_bytes(in.size()));
  const auto written = zstd<>::encode_bytes(in, out);
  REQUIRE(written);
  out.resize(*written);
  return out;
}

layer_group gaussian_group(element type) { return {.tokens = 64, .k = {4, 64, type}, .v = {4, 64, type}}; }

template <class T>
bytes gaussian_block(const layer_group& group) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  bytes raw(group.block_bytes());
  for (std::size_t i = 0; i < raw.size(); i += sizeof(T)) {
    const T x = from_float<T>(normal(random));
    std::memcpy(raw.data() + i, &x, sizeof x);
  }
  return raw;
}

template <class T>
double ratio() {
  const layer_group group = gaussian_group(element_of<T>);
  const bytes raw = gaussian_block<T>(group);
  bytes out(zstd<>::max_encoded_size(group));
  const auto written = zstd<>::encode(group, raw, out);
  REQUIRE(written);
  return static_cast<double>(raw.size()) / static_cast<double>(*written);
}

}  // namespace

TEMPLATE_TEST_CASE("zstd keeps the contract of a codec at every level", "", zstd<>, zstd<-3>, zstd<5>) {
  for (std::uint32_t seed = 1; seed <= 2; ++seed) {
    const auto violated = codec_conformance<TestType>({.seed = seed});
    INFO(violated.value_or(""));
    CHECK_FALSE(violated);
  }
}

TEST_CASE("zstd gives back bytes of any number and content") {
  for (const std::size_t n : {0u, 1u, 2u, 17u, 1000u, 131072u, 300001u}) {
    for (const unsigned values : {1u, 3u, 256u}) {
      const bytes in = random_bytes(n, static_cast<std::uint32_t>(n) + values, values);
      const bytes encoded = compressed(in);
      bytes out(n);
      REQUIRE(zstd<>::decode_bytes(encoded, out));
      REQUIRE(out == in);
    }
  }
}

TEST_CASE("what zstd writes depends on nothing but its input") {
  const bytes in = random_bytes(100000, 1, 7), other = random_bytes(200000, 2, 5);
  const bytes first = compressed(in);
  static_cast<void>(compressed(other));
  bytes scratch(zstd<9>::max_encoded_bytes(other.size()));
  REQUIRE(zstd<9>::encode_bytes(other, scratch));  // another level, the same context
  CHECK(compressed(in) == first);
  bytes elsewhere;
  std::thread([&] {
    bytes out(zstd<>::max_encoded_bytes(in.size()));
    const auto written = zstd<>::encode_bytes(in, out);
    if (written) elsewhere.assign(out.begin(), out.begin() + static_cast<std::ptrdiff_t>(*written));
  }).join();
  CHECK(elsewhere == first);
}

TEST_CASE("levels differ in bytes, not in format") {
  static_assert(zstd<1>::format_id == 0x1000 && zstd<7>::format_id == zstd<1>::format_id);
  const bytes in = random_bytes(50000, 3, 4);
  bytes encoded(zstd<7>::max_encoded_bytes(in.size())), out(in.size());
  const auto written = zstd<7>::encode_bytes(in, encoded);
  REQUIRE(written);
  REQUIRE(zstd<1>::decode_bytes(std::span(encoded).first(*written), out));
  CHECK(out == in);
}

TEST_CASE("blocks are split into byte planes, which is what makes them smaller") {
  CHECK(ratio<fp16>() > 1.15);
  CHECK(ratio<bf16>() > 1.3);
  CHECK(ratio<float>() > 1.1);
}

TEST_CASE("the bytes of a block stand where the format says") {
  layer_group group;
  group.tokens = 2;
  group.k = {.heads = 1, .dim = 4, .type = element::fp16};
  group.v = {.heads = 1, .dim = 2, .type = element::fp32};
  bytes raw(group.block_bytes());
  for (std::size_t i = 0; i < raw.size(); ++i) raw[i] = static_cast<std::byte>(i);
  bytes out(zstd<>::max_encoded_size(group));
  const auto written = zstd<>::encode(group, raw, out);
  REQUIRE(written);
  const_bytes rest = std::span(out).first(*written);
  const auto next = [&](std::size_t count) {
    const std::size_t length = std::to_integer<std::size_t>(rest[0]);
    REQUIRE((rest[1] | rest[2] | rest[3]) == std::byte{0});
    bytes part(count);
    REQUIRE(zstd<>::decode_bytes(rest.subspan(4, length), part));
    rest = rest.subspan(4 + length);
    return part;
  };
  for (std::size_t b = 0; b < 2; ++b) {
    const bytes part = next(8);
    for (std::size_t i = 0; i < 8; ++i) CHECK(part[i] == raw[2 * i + b]);
  }
  for (std::size_t b = 0; b < 4; ++b) {
    const bytes part = next(4);
    for (std::size_t i = 0; i < 4; ++i) CHECK(part[i] == raw[16 + 4 * i + b]);
  }
  CHECK(rest.empty());
}

TEST_CASE("zstd refuses frames that are not exactly what is expected, and writes nothing") {
  const bytes in = random_bytes(1000, 4, 9), frame = compressed(in);
  const auto refused = [](const_bytes encoded, std::size_t n) {
    bytes out(n + 1, std::byte{0x77});
    const auto decoded = zstd<>::decode_bytes(encoded, mutable_bytes(out).first(n));
    return !decoded && decoded.error().code == errc::corrupt &&
           std::all_of(out.begin(), out.end(), [](std::byte b) { return b == std::byte{0x77}; });
  };
  CHECK(refused(frame, 999));
  CHECK(refused(frame, 1001));
  CHECK(refused(frame, 0));
  CHECK(refused({}, 1000));
  CHECK(refused({}, 0));
  bytes twice = frame;
  twice.insert(twice.end(), frame.begin(), frame.end());
  CHECK(refused(twice, 1000));
  CHECK(refused(twice, 2000));
  bytes longer = frame;
  longer.push_back(std::byte{0});
  CHECK(refused(longer, 1000));
  const bytes skippable{std::byte{0x50}, std::byte{0x2a}, std::byte{0x4d}, std::byte{0x18},
                        std::byte{0},    std::byte{0},    std::byte{0},    std::byte{0}};
  CHECK(refused(skippable, 0));
  bytes old = frame;  // the magic number of version 0.7
  old[0] = std::byte{0x27};
  CHECK(refused(old, 1000));
  for (std::size_t n = 0; n < frame.size(); ++n) CHECK(refused(std::span(frame).first(n), 1000));
}

TEST_CASE("zstd survives flipped bits: an error, or as many bytes as expected") {
  std::mt19937 random(5);
  const bytes in = random_bytes(3000, 6, 6), frame = compressed(in);
  for (std::size_t bit = 0; bit < frame.size() * 8; ++bit) {
    bytes bad = frame;
    bad[bit / 8] ^= static_cast<std::byte>(1u << bit % 8);
    bytes out(in.size());
    const auto decoded = zstd<>::decode_bytes(bad, out);
    if (!decoded) REQUIRE(decoded.error().code == errc::corrupt);
  }
}

TEST_CASE("a block whose lengths lie is corrupt") {
  const layer_group group = gaussian_group(element::fp16);
  const bytes raw = gaussian_block<fp16>(group);
  bytes encoded(zstd<>::max_encoded_size(group)), out(raw.size());
  const auto written = zstd<>::encode(group, raw, encoded);
  REQUIRE(written);
  encoded.resize(*written);
  for (const unsigned length : {0u, 1u, 0x7fffffffu, 0xffffffffu}) {
    bytes bad = encoded;
    std::memcpy(bad.data(), &length, sizeof length);
    CHECK(zstd<>::decode(group, bad, out).error().code == errc::corrupt);
  }
  bytes longer = encoded;
  longer.push_back(std::byte{0});
  CHECK(zstd<>::decode(group, longer, out).error().code == errc::corrupt);
  CHECK(zstd<>::decode(group, encoded, std::span(out).first(16)).error().code == errc::invalid_argument);
}

TEST_CASE("zstd refuses too little room when encoding") {
  const bytes in = random_bytes(1000, 8);
  bytes out(zstd<>::max_encoded_bytes(in.size()) - 1);
  CHECK(zstd<>::encode_bytes(in, out).error().code == errc::invalid_argument);
}
