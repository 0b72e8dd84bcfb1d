#include "terrace/core/element.hpp"

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "catch.hpp"

using namespace terrace;

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();

static_assert(to_float(fp16{0x3c00}) == 1.0f && to_float(bf16{0x3f80}) == 1.0f);
static_assert(to_fp16(1.0f) == fp16{0x3c00} && to_bf16(1.0f) == bf16{0x3f80});

// Every pair of neighbours a < b of a small type, by magnitude: what lies between them rounds to the nearer
// one, and the middle to the one whose last bit is 0.
template <class T>
int wrong_roundings(std::uint16_t infinity_bits, T (*round)(float)) {
  using storage = decltype(T::bits);
  int wrong = 0;
  for (std::uint16_t bits = 0; bits + 1 < infinity_bits; ++bits) {
    const T low{static_cast<storage>(bits)}, high{static_cast<storage>(bits + 1)};
    const float middle =
        0.5f * to_float(low) + 0.5f * to_float(high);  // exact: a float has more bits than either
    const T even = (bits & 1) == 0 ? low : high;
    for (const float sign : {1.0f, -1.0f}) {
      const auto is = [&](float x, T expected) {
        const unsigned sign_bit = sign < 0 ? 1u << (8 * sizeof(T) - 1) : 0;
        wrong += round(sign * x) != T{static_cast<storage>(expected.bits | sign_bit)};
      };
      is(to_float(low), low);
      is(middle, even);
      is(std::nextafter(middle, 0.0f), low);
      is(std::nextafter(middle, infinity), high);
    }
  }
  return wrong;
}

}  // namespace

TEST_CASE("rounding to 16 and to 8 bits goes to the nearest, ties to even") {
  CHECK(wrong_roundings<fp8_e4m3>(0x7f, [](float x) { return to_fp8_e4m3(x); }) == 0);
  CHECK(wrong_roundings<fp16>(0x7c00, [](float x) { return to_fp16(x); }) == 0);
  CHECK(wrong_roundings<bf16>(0x7f80, [](float x) { return to_bf16(x); }) == 0);
}

TEST_CASE("values beyond the largest become infinite from its rounding boundary on") {
  CHECK(to_fp16(65519.99f) == fp16{0x7bff});
  CHECK(to_fp16(65520.0f) == fp16{0x7c00});
  CHECK(to_fp16(-1e30f) == fp16{0xfc00});
  CHECK(to_bf16(std::numeric_limits<float>::max()) == bf16{0x7f80});
  CHECK(to_fp16(infinity) == fp16{0x7c00});
  CHECK(to_bf16(-infinity) == bf16{0xff80});
}

TEST_CASE("subnormals of fp16 are exact multiples of 2^-24, and half of the least is zero") {
  for (std::uint16_t bits = 0; bits < 0x400; ++bits)
    REQUIRE(to_float(fp16{bits}) == std::ldexp(static_cast<float>(bits), -24));
  CHECK(to_fp16(0x1p-25f) == fp16{0});
  CHECK(to_fp16(std::nextafter(0x1p-25f, 1.0f)) == fp16{1});
  CHECK(to_fp16(-0x1p-30f) == fp16{0x8000});
}

TEST_CASE("a NaN stays a NaN, and becomes quiet") {
  const float quiet = std::numeric_limits<float>::quiet_NaN();
  const auto signalling = std::bit_cast<float>(0x7f800001u);
  for (const float nan : {quiet, signalling}) {
    CHECK(std::isnan(to_float(to_fp16(nan))));
    CHECK(std::isnan(to_float(to_bf16(nan))));
    CHECK((to_fp16(nan).bits & 0x200) != 0);
    CHECK((to_bf16(nan).bits & 0x40) != 0);
  }
  for (std::uint16_t bits = 0x7c01; bits < 0x8000; ++bits) REQUIRE(std::isnan(to_float(fp16{bits})));
}

TEST_CASE("e4m3 has no infinity: what is too large becomes 448") {
  static_assert(to_float(fp8_e4m3{0x7e}) == 448.0f && to_float(fp8_e4m3{0x01}) == 0x1p-9f);
  static_assert(to_fp8_e4m3(1.0f) == fp8_e4m3{0x38});
  for (const float x : {448.0f, 464.0f, 1e30f, infinity}) {
    CHECK(to_fp8_e4m3(x) == fp8_e4m3{0x7e});
    CHECK(to_fp8_e4m3(-x) == fp8_e4m3{0xfe});
  }
  CHECK(to_fp8_e4m3(-std::numeric_limits<float>::quiet_NaN()) == fp8_e4m3{0xff});
  for (const std::uint8_t bits : {std::uint8_t{0x7f}, std::uint8_t{0xff}}) {
    const float nan = to_float(fp8_e4m3{bits});
    CHECK(std::isnan(nan));
    CHECK(to_fp8_e4m3(nan) == fp8_e4m3{bits});
    CHECK(to_fp8_e4m3(to_float(to_fp16(nan))) == fp8_e4m3{bits});
    CHECK(to_fp8_e4m3(to_float(to_bf16(nan))) == fp8_e4m3{bits});
  }
}

TEST_CASE("equality of elements is equality of bits") {
  CHECK_FALSE(to_fp16(0.0f) == to_fp16(-0.0f));
  CHECK(size_of(element_of<fp16>) == 2);
  CHECK(size_of(element_of<bf16>) == 2);
  CHECK(size_of(element_of<float>) == 4);
}
