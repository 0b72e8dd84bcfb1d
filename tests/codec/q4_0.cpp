#include "terrace/codec/q4_0.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <span>
#include <vector>

#include "catch.hpp"
#include "codec/group_neighbours.hpp"
#include "instruction_sets.hpp"
#include "terrace/core/element.hpp"
#include "terrace/testing/codec_conformance.hpp"

using namespace terrace;

namespace {

using group_of_codes = std::array<std::byte, q4_0::group_bytes>;

// ggml's quantize_row_q4_0_ref for one group.
group_of_codes ggml_q4_0(std::span<const float> x) {
  float most = 0, extreme = 0;
  for (const float v : x) {
    if (most < std::fabs(v)) {
      most = std::fabs(v);
      extreme = v;
    }
  }
  const float d = extreme / -8, id = d != 0 ? 1.0f / d : 0.0f;
  const fp16 scale = to_fp16(d);
  group_of_codes out;
  std::memcpy(out.data(), &scale, sizeof scale);
  const auto code = [&](std::size_t i) {
    volatile float scaled = x[i] * id;  // volatile, so that no compiler fuses the product with the sum
    return std::min<std::uint8_t>(15, static_cast<std::uint8_t>(static_cast<std::int8_t>(scaled + 8.5f)));
  };
  for (std::size_t i = 0; i < 16; ++i) out[2 + i] = static_cast<std::byte>(code(i) | code(i + 16) << 4);
  return out;
}

template <class T>
layer_group row_of(std::uint32_t values) {
  layer_group group;
  group.tokens = 1;
  group.k = {.heads = 1, .dim = values, .type = element_of<T>};
  return group;
}

// Values of one plane, through the codec.
template <class T>
struct row {
  explicit row(std::uint32_t values)
      : group(row_of<T>(values)), raw(values), codes(q4_0::max_encoded_size(group)) {}

  void encode(isa set = best_isa()) {
    const auto written = q4_0::encode(group, std::as_bytes(std::span(raw)), codes, set);
    REQUIRE(written);
    REQUIRE(*written == codes.size());
  }
  void decode(isa set = best_isa()) {
    REQUIRE(q4_0::decode(group, codes, std::as_writable_bytes(std::span(raw)), set));
  }
  bool same_values(const row& other) const {
    return std::memcmp(raw.data(), other.raw.data(), raw.size() * sizeof(T)) == 0;
  }
  group_of_codes codes_of(std::size_t g) const {
    group_of_codes out;
    std::copy_n(codes.begin() + static_cast<std::ptrdiff_t>(g * out.size()), out.size(), out.begin());
    return out;
  }
  bool equals_ggml() const {
    for (std::size_t g = 0; g < raw.size() / 32; ++g) {
      std::array<float, 32> x;
      for (std::size_t i = 0; i < 32; ++i) x[i] = to_float(raw[g * 32 + i]);
      if (codes_of(g) != ggml_q4_0(x)) return false;
    }
    return true;
  }

  layer_group group;
  std::vector<T> raw;
  std::vector<std::byte> codes;
};

// The laws of the codec for the values in `first`, and that all instruction sets give one answer.
template <class T>
bool laws_hold(row<T>& first) {
  row<T> again = first;
  for (const isa set : sets_here()) {
    row<T> other = first;
    other.encode(set);
    if (set == isa::portable) again.codes = other.codes;
    if (again.codes != other.codes) return false;
  }
  first.codes = again.codes;
  again.decode(isa::portable);
  for (const isa set : sets_here()) {
    row<T> other = again;
    other.decode(set);
    if (!again.same_values(other)) return false;
  }
  row<T> twice = again;
  twice.encode();
  return twice.codes == first.codes;
}

template <class T>
T magnitude(std::uint32_t i) {
  if constexpr (sizeof(T) == 2)
    return T{static_cast<std::uint16_t>(i)};
  else
    return std::bit_cast<float>(i << 16 | (i * 40503u & 0xffffu));
}

// Of all largest magnitudes, positive and negative, those with which some value loses its code. Each is tried
// with values evenly spread between it and its negative.
template <class T>
std::uint32_t wrong_magnitudes() {
  const std::uint32_t infinite = std::is_same_v<T, fp16> ? 0x7c00 : 0x7f80;
  row<T> r(2 * 32);
  std::uint32_t wrong = 0;
  for (std::uint32_t i = 0; i < infinite; ++i) {
    const double most = to_float(magnitude<T>(i));
    for (std::size_t at = 0; at < 64; ++at) {
      const double step = (at < 32 ? 1.0 : -1.0) * (static_cast<double>(at % 32) - 15.5) / 15.5;
      r.raw[at] = from_float<T>(static_cast<float>(most * step));
    }
    wrong += laws_hold(r) ? 0 : 1;
  }
  return wrong;
}

template <class T>
void check_against_ggml(std::uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  row<T> r(64 * 32);
  for (int exponent = -10; exponent <= 10; ++exponent) {
    for (T& x : r.raw) x = from_float<T>(normal(random) * std::ldexp(1.0f, exponent));
    for (std::size_t i = 7; i < r.raw.size(); i += 97) r.raw[i] = from_float<T>(0);
    REQUIRE(laws_hold(r));
    REQUIRE(r.equals_ggml());
  }
}

}  // namespace

TEST_CASE("q4_0 gives ggml's bytes on ordinary data, with every instruction set") {
  check_against_ggml<fp16>(1);
  check_against_ggml<bf16>(2);
  check_against_ggml<float>(3);
}

TEST_CASE("a known block has ggml's bytes") {
  row<float> r(32);
  for (std::size_t i = 0; i < 32; ++i) r.raw[i] = static_cast<float>(i) - 16.0f;
  constexpr std::array<unsigned, 18> bytes{0x00, 0x40, 0x80, 0x91, 0x91, 0xa2, 0xa2, 0xb3, 0xb3,
                                           0xc4, 0xc4, 0xd5, 0xd5, 0xe6, 0xe6, 0xf7, 0xf7, 0xf8};
  for (const isa set : sets_here()) {
    r.encode(set);
    for (std::size_t i = 0; i < bytes.size(); ++i) CHECK(std::to_integer<unsigned>(r.codes[i]) == bytes[i]);
  }
  r.decode();
  CHECK(r.raw[0] == -16.0f);
  CHECK(r.raw[1] == -14.0f);
  CHECK(r.raw[31] == 14.0f);
}

TEST_CASE("q4_0 rounds as ggml does within a few units of where a code begins") {
  row<float> r(32);
  for (int code = 0; code <= 16; ++code) {
    for (int half = -16; half <= 16; half += 32) {
      const auto edge = static_cast<float>(code) - 8.5f;
      for (int i = 0; i < 31; ++i) {
        float x = edge;
        for (int steps = 0; steps < std::abs(i - 15); ++steps)
          x = std::nextafter(x, i < 15 ? -100.0f : 100.0f);
        r.raw[static_cast<std::size_t>(i) + 1] = std::clamp(x, -8.0f, 8.0f);
      }
      r.raw[0] = half < 0 ? -8.0f : 8.0f;  // scales of 1 and -1
      REQUIRE(laws_hold(r));
      REQUIRE(r.equals_ggml());
    }
  }
  std::mt19937 random(7);
  std::uniform_int_distribution<int> units(-40, 40), codes(0, 16);
  for (int round = 0; round < 4000; ++round) {  // the same under products that round
    const float scale = std::ldexp(static_cast<float>(random() % 8192 + 1), -10);
    for (float& x : r.raw)
      x = scale * (static_cast<float>(codes(random)) - 8.5f + static_cast<float>(units(random)) * 0x1p-22f);
    r.raw[random() % 32] = -9 * scale;
    REQUIRE(laws_hold(r));
    REQUIRE(r.equals_ggml());
  }
}

TEST_CASE("the first of several largest magnitudes gives the scale its sign") {
  row<fp16> r(32);
  for (const std::size_t first : {0u, 5u, 15u, 16u, 30u}) {
    for (const float sign : {1.0f, -1.0f}) {
      std::fill(r.raw.begin(), r.raw.end(), to_fp16(0.25f));
      r.raw[first] = to_fp16(4 * sign);
      r.raw[31] = to_fp16(-4 * sign);
      REQUIRE(laws_hold(r));
      REQUIRE(r.equals_ggml());
      fp16 scale;
      std::memcpy(&scale, r.codes.data(), sizeof scale);
      CHECK(to_float(scale) == -sign / 2);
    }
  }
}

TEST_CASE("what q4_0 decoded, it encodes to the same bytes, whatever the largest magnitude was") {
  CHECK(wrong_magnitudes<fp16>() == 0);
  CHECK(wrong_magnitudes<bf16>() == 0);
  CHECK(wrong_magnitudes<float>() == 0);
}

TEMPLATE_TEST_CASE("what q4_0 makes of a group does not depend on its neighbours", "", fp16, bf16, float) {
  check_that_groups_stand_alone<row<TestType>, TestType>();
}

TEST_CASE("q4_0 takes any bits at all, and its laws hold for them") {
  std::mt19937 random(5);
  row<fp16> half(64 * 32);
  row<bf16> brain(64 * 32);
  row<float> full(64 * 32);
  for (int round = 0; round < 50; ++round) {
    for (fp16& x : half.raw) x.bits = static_cast<std::uint16_t>(random());
    for (bf16& x : brain.raw) x.bits = static_cast<std::uint16_t>(random());
    for (float& x : full.raw) x = std::bit_cast<float>(static_cast<std::uint32_t>(random()));
    REQUIRE(laws_hold(half));
    REQUIRE(laws_hold(brain));
    REQUIRE(laws_hold(full));
  }
}

TEMPLATE_TEST_CASE("q4_0 turns NaN into 0 and infinity into the largest it can, and spares the rest", "",
                   fp16, bf16, float) {
  constexpr float infinity = std::numeric_limits<float>::infinity();
  row<TestType> r(64);
  for (TestType& x : r.raw) x = from_float<TestType>(1.0f);
  r.raw[3] = from_float<TestType>(std::numeric_limits<float>::quiet_NaN());
  r.raw[40] = from_float<TestType>(-infinity);
  REQUIRE(laws_hold(r));
  r.encode();
  r.decode();
  CHECK(to_float(r.raw[3]) == 0);
  CHECK(to_float(r.raw[0]) == 1.0f);
  CHECK(to_float(r.raw[40]) < -65000);
  CHECK(std::isfinite(to_float(r.raw[40])));
}

TEST_CASE("q4_0 is ggml's up to the largest magnitude whose scale is finite") {
  row<float> r(32);
  for (std::size_t i = 0; i < 32; ++i) r.raw[i] = 524159.96875f * (static_cast<float>(i) / 31.0f);
  r.raw[5] = 524159.96875f * (7.4999f / 8);  // a slightly smaller scale would give it another code
  REQUIRE(laws_hold(r));
  CHECK(r.equals_ggml());
  r.raw[31] = 524160.0f;
  REQUIRE(laws_hold(r));
  r.decode();
  CHECK(r.raw[31] == 8 * 65504.0f);
}

TEMPLATE_TEST_CASE("zeros, and magnitudes whose scale is zero, become what ggml writes for zeros", "", bf16,
                   float) {
  row<TestType> r(32);
  for (const float value : {0.0f, -0.0f, 8 * 0x1p-25f, -8 * 0x1p-25f, 0x1p-126f}) {
    for (TestType& x : r.raw) x = from_float<TestType>(value);
    REQUIRE(laws_hold(r));
    CHECK(r.codes_of(0) == ggml_q4_0(std::array<float, 32>{}));
  }
  r.raw[9] = from_float<TestType>(-9 * 0x1p-25f);
  REQUIRE(laws_hold(r));
  CHECK(r.codes_of(0) != ggml_q4_0(std::array<float, 32>{}));
}

TEST_CASE("q4_0 keeps every value within its group's scale") {
  std::mt19937 random(8);
  std::normal_distribution<float> normal;
  row<fp16> r(128 * 32);
  for (fp16& x : r.raw) x = to_fp16(normal(random));
  const std::vector<fp16> before = r.raw;
  r.encode();
  r.decode();
  for (std::size_t g = 0; g < 128; ++g) {
    float most = 0;
    for (std::size_t i = 0; i < 32; ++i) most = std::max(most, std::fabs(to_float(before[g * 32 + i])));
    // Half a step inside of the codes, a whole one at the end that ggml's codes do not reach.
    for (std::size_t i = 0; i < 32; ++i)
      REQUIRE(std::fabs(to_float(r.raw[g * 32 + i]) - to_float(before[g * 32 + i])) <= most / 8 * 1.001f);
  }
}

TEST_CASE("q4_0 keeps the contract of a codec") {
  const auto violated = codec_conformance<q4_0>();
  INFO(violated.value_or(""));
  CHECK_FALSE(violated);
}

TEST_CASE("q4_0 says which groups it cannot encode") {
  layer_group group;
  group.k = group.v = {.heads = 2, .dim = 64, .type = element::fp16};
  CHECK(q4_0::supports(group));
  CHECK(q4_0::max_encoded_size(group) == group.block_bytes() / 64 * q4_0::group_bytes);
  group.v.dim = 80;
  CHECK(q4_0::supports(group).error().code == errc::invalid_argument);
  group.v = {};
  CHECK(q4_0::supports(group));
  group.k.type = element::fp8_e4m3;
  CHECK(q4_0::supports(group).error().code == errc::invalid_argument);
}

TEST_CASE("q4_0 decodes hostile bytes to an error or to values, and writes nothing else") {
  row<fp16> r(64);
  std::vector<std::byte> block(r.group.block_bytes() + 1, std::byte{0xaa});
  const mutable_bytes raw = std::span(block).first(r.group.block_bytes());
  CHECK(q4_0::decode(r.group, std::span(r.codes).first(35), raw).error().code == errc::corrupt);
  CHECK(q4_0::decode(r.group, {}, raw).error().code == errc::corrupt);
  CHECK(q4_0::decode(r.group, r.codes, block).error().code == errc::invalid_argument);
  CHECK(std::all_of(block.begin(), block.end(), [](std::byte b) { return b == std::byte{0xaa}; }));
  std::mt19937 random(6);
  for (int round = 0; round < 200; ++round) {
    for (std::byte& b : r.codes) b = static_cast<std::byte>(random());
    for (const isa set : sets_here()) static_cast<void>(q4_0::decode(r.group, r.codes, raw, set).has_value());
    REQUIRE(block.back() == std::byte{0xaa});
  }
  for (const unsigned scale : {0x7c00u, 0xfc00u, 0x7e01u}) {  // infinite, negative infinite, NaN
    r.codes.assign(r.codes.size(), std::byte{1});
    const auto bits = static_cast<std::uint16_t>(scale);
    std::memcpy(r.codes.data() + q4_0::group_bytes, &bits, sizeof bits);
    for (const isa set : sets_here())
      CHECK(q4_0::decode(r.group, r.codes, raw, set).error().code == errc::corrupt);
  }
}
