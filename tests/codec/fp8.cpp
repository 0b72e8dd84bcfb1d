#include "terrace/codec/fp8.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <span>
#include <type_traits>
#include <vector>

#include "catch.hpp"
#include "instruction_sets.hpp"
#include "terrace/codec/q4_0.hpp"
#include "terrace/codec/q8_0.hpp"
#include "terrace/core/element.hpp"
#include "terrace/testing/codec_conformance.hpp"

using namespace terrace;

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();

template <class T>
layer_group row_of(std::size_t values) {
  layer_group group;
  group.tokens = 1;
  group.k = {.heads = 1, .dim = static_cast<std::uint32_t>(values), .type = element_of<T>};
  return group;
}

template <class T>
std::vector<std::byte> encode(const std::vector<T>& values, isa set = best_isa()) {
  const layer_group group = row_of<T>(values.size());
  std::vector<std::byte> out(fp8::max_encoded_size(group));
  const auto written = fp8::encode(group, std::as_bytes(std::span(values)), out, set);
  REQUIRE(written);
  REQUIRE(*written == values.size());
  return out;
}
template <class T>
std::vector<T> decode(const std::vector<std::byte>& codes, isa set = best_isa()) {
  std::vector<T> values(codes.size());
  REQUIRE(fp8::decode(row_of<T>(codes.size()), codes, std::as_writable_bytes(std::span(values)), set));
  return values;
}

std::vector<std::byte> all_codes() {
  std::vector<std::byte> codes(256);
  for (std::size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<std::byte>(i);
  return codes;
}

// What the codec C leaves of Gaussian values: mean squared error by mean square.
template <codec C>
double gaussian_error() {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<fp16> in(32 * 4096), out(in.size());
  for (fp16& x : in) x = to_fp16(normal(random));
  const layer_group group = row_of<fp16>(in.size());
  std::vector<std::byte> codes(C::max_encoded_size(group));
  REQUIRE(C::encode(group, std::as_bytes(std::span(in)), codes));
  REQUIRE(C::decode(group, codes, std::as_writable_bytes(std::span(out))));
  double error = 0, power = 0;
  for (std::size_t i = 0; i < in.size(); ++i) {
    const double x = to_float(in[i]), y = to_float(out[i]);
    error += (x - y) * (x - y);
    power += x * x;
  }
  return error / power;
}

}  // namespace

TEMPLATE_TEST_CASE("every code is decoded to its value, exactly, and encoded to itself", "", fp16, bf16,
                   float) {
  const auto codes = all_codes();
  for (const isa set : sets_here()) {
    const auto values = decode<TestType>(codes, set);
    for (std::size_t i = 0; i < codes.size(); ++i) {
      const float value = to_float(values[i]);
      if ((i & 0x7f) == 0x7f) {
        CHECK(std::isnan(value));
        CHECK(std::signbit(value) == (i > 127));
        continue;
      }
      const int exponent = static_cast<int>(i >> 3 & 15), mantissa = static_cast<int>(i & 7);
      const double right = exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
      CHECK(value == (i > 127 ? -right : right));
    }
    CHECK(encode(values, set) == codes);
  }
}

TEMPLATE_TEST_CASE("each value becomes the nearest code, with every instruction set", "", fp16, bf16, float) {
  std::vector<TestType> values;
  if constexpr (sizeof(TestType) == 2) {
    for (std::uint32_t i = 0; i < 65536; ++i) values.push_back(TestType{static_cast<std::uint16_t>(i)});
  } else {
    for (std::uint64_t i = 0; i < 1u << 16; ++i)
      for (const std::uint32_t low : {0u, 1u, 0x7fffu, 0x8000u, 0xffffu})
        values.push_back(std::bit_cast<float>(static_cast<std::uint32_t>(i << 16 | low)));
  }
  const auto numbers = decode<float>(all_codes());
  for (const isa set : sets_here()) {
    INFO(name(set));
    const auto codes = encode(values, set);
    std::size_t wrong = 0;
    for (std::size_t i = 0; i < values.size(); ++i) {
      const float x = to_float(values[i]);
      const auto code = std::to_integer<std::uint32_t>(codes[i]);
      if (std::isnan(x)) {
        wrong += (code & 0x7f) != 0x7f;
        continue;
      }
      wrong += (code & 0x7f) == 0x7f || std::signbit(x) != (code > 127);
      // No neighbour is nearer, and of two that are as near the code is the even one.
      const double distance = std::fabs(double{numbers[code]} - std::clamp(x, -448.0f, 448.0f));
      for (const std::uint32_t other : {code - 1, code + 1}) {
        if ((other & 0x80) != (code & 0x80) || (other & 0x7f) == 0x7f) continue;
        const double further = std::fabs(double{numbers[other]} - std::clamp(x, -448.0f, 448.0f));
        wrong += further < distance || (further <= distance && (code & 1) != 0);
      }
    }
    CHECK(wrong == 0);
  }
}

TEST_CASE("fp8 saturates, and keeps NaN and the sign of zero") {
  const std::vector<float> in{infinity, -infinity, 1e30f,        -449.0f, 448.0f,
                              463.0f,   464.0f,    not_a_number, -0.0f,   0.0f,
                              0x1p-9f,  0x1p-10f,  0x1.1p-10f,   0x1p-6f, 432.0f + 8.0f};
  const std::vector<unsigned> want{0x7e, 0xfe, 0x7e, 0xfe, 0x7e, 0x7e, 0x7e, 0x7f,
                                   0x80, 0x00, 0x01, 0x00, 0x01, 0x08, 0x7e};
  for (const isa set : sets_here()) {
    const auto codes = encode(in, set);
    for (std::size_t i = 0; i < in.size(); ++i) CHECK(std::to_integer<unsigned>(codes[i]) == want[i]);
  }
}

TEST_CASE("fp8 loses more than q8_0 and less than q4_0, as the ranks say") {
  const double q8 = gaussian_error<q8_0>(), e4m3 = gaussian_error<fp8>(), q4 = gaussian_error<q4_0>();
  INFO("normalised mean squared errors: q8_0 " << q8 << ", fp8 " << e4m3 << ", q4_0 " << q4);
  CHECK(q8 < e4m3);
  CHECK(e4m3 < q4);
  CHECK(e4m3 < 1e-3);
  STATIC_REQUIRE(q8_0::loss < fp8::loss);
  STATIC_REQUIRE(fp8::loss < q4_0::loss);
}

TEST_CASE("fp8 keeps the contract of a codec") {
  const auto violated = codec_conformance<fp8>();
  INFO(violated.value_or(""));
  CHECK_FALSE(violated);
}

TEST_CASE("fp8 takes any dimension, and says that a plane of fp8 needs no codec") {
  layer_group group;
  group.k = group.v = {.heads = 2, .dim = 37, .type = element::bf16};
  CHECK(fp8::supports(group));
  CHECK(fp8::max_encoded_size(group) == group.block_bytes() / 2);
  group.k.type = element::fp32;
  CHECK(fp8::max_encoded_size(group) == 2u * 2 * 37 * group.tokens);
  group.v.type = element::fp8_e4m3;
  CHECK(fp8::supports(group).error().code == errc::invalid_argument);
}

TEST_CASE("an encoded block is the block of an engine that keeps fp8") {
  // One plane fp16, the other bf16; the encoded block lies as one whose planes are fp8.
  layer_group group{.tokens = 3, .k = {2, 5, element::fp16}, .v = {1, 7, element::bf16}};
  layer_group engine = group;
  engine.k.type = engine.v.type = element::fp8_e4m3;
  std::vector<std::byte> raw(group.block_bytes()), codes(engine.block_bytes());
  REQUIRE(fp8::max_encoded_size(group) == codes.size());
  for (std::size_t i = 0; i < raw.size() / 2; ++i) {
    const float x = static_cast<float>(i) - 20.0f;
    const std::uint16_t bits = i * 2 < group.v_offset() ? to_fp16(x).bits : to_bf16(x).bits;
    std::memcpy(raw.data() + 2 * i, &bits, 2);
  }
  REQUIRE(fp8::encode(group, raw, codes));
  for (std::size_t i = 0; i < codes.size(); ++i)
    CHECK(to_fp8_e4m3(static_cast<float>(i) - 20.0f).bits == std::to_integer<std::uint8_t>(codes[i]));
}
