#include "terrace/codec/q8_0.hpp"

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

using namespace terrace;

namespace {

using group_of_codes = std::array<std::byte, q8_0::group_bytes>;

// ggml's quantize_row_q8_0_ref for one group.
group_of_codes ggml_q8_0(std::span<const float> x) {
  float most = 0;
  for (const float v : x) most = std::max(most, std::fabs(v));
  const float d = most / 127, id = d != 0 ? 1.0f / d : 0.0f;
  const fp16 scale = to_fp16(d);
  group_of_codes out;
  std::memcpy(out.data(), &scale, sizeof scale);
  for (std::size_t i = 0; i < 32; ++i)
    out[2 + i] = static_cast<std::byte>(static_cast<std::int8_t>(std::round(x[i] * id)));
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
      : group(row_of<T>(values)), raw(values), codes(q8_0::max_encoded_size(group)) {}

  void encode(isa set = best_isa()) {
    const auto written = q8_0::encode(group, std::as_bytes(std::span(raw)), codes, set);
    REQUIRE(written);
    REQUIRE(*written == codes.size());
  }
  void decode(isa set = best_isa()) {
    REQUIRE(q8_0::decode(group, codes, std::as_writable_bytes(std::span(raw)), set));
  }
  bool same_values(const row& other) const {
    return std::memcmp(raw.data(), other.raw.data(), raw.size() * sizeof(T)) == 0;
  }
  group_of_codes codes_of(std::size_t i) const {
    group_of_codes out;
    std::copy_n(codes.begin() + static_cast<std::ptrdiff_t>(i * out.size()), out.size(), out.begin());
    return out;
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

// Nine groups that share their largest magnitude and have every code.
template <class T>
void fill_with_every_code(row<T>& r, float most) {
  for (std::size_t i = 0; i < r.raw.size(); ++i) {
    const int code = std::min<int>(static_cast<int>(i / 32 * 31 + i % 32) - 128, 127);
    r.raw[i] = from_float<T>(i % 32 == 0 ? most : static_cast<float>(double{most} * code / 127));
  }
}

template <class T>
T magnitude(std::uint32_t i) {
  if constexpr (sizeof(T) == 2)
    return T{static_cast<std::uint16_t>(i)};
  else
    return std::bit_cast<float>(i << 16 | (i * 40503u & 0xffffu));
}

template <class T>
std::uint32_t wrong_magnitudes() {
  const std::uint32_t infinite = std::is_same_v<T, fp16> ? 0x7c00 : 0x7f80;
  row<T> r(9 * 32);
  std::uint32_t wrong = 0;
  for (std::uint32_t i = 0; i < infinite; ++i) {
    fill_with_every_code(r, to_float(magnitude<T>(i)));
    wrong += laws_hold(r) ? 0 : 1;
  }
  return wrong;
}

template <class T>
void check_against_ggml(std::uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  row<T> r(64 * 32);
  for (int exponent = -12; exponent <= 8; ++exponent) {
    for (T& x : r.raw) x = from_float<T>(normal(random) * std::ldexp(1.0f, exponent));
    for (std::size_t i = 7; i < r.raw.size(); i += 97) r.raw[i] = from_float<T>(0);
    REQUIRE(laws_hold(r));
    for (std::size_t g = 0; g < 64; ++g) {
      std::array<float, 32> x;
      for (std::size_t i = 0; i < 32; ++i) x[i] = to_float(r.raw[g * 32 + i]);
      REQUIRE(r.codes_of(g) == ggml_q8_0(x));
    }
  }
}

}  // namespace

TEST_CASE("q8_0 gives ggml's bytes on ordinary data, with every instruction set") {
  check_against_ggml<fp16>(1);
  check_against_ggml<bf16>(2);
  check_against_ggml<float>(3);
}

TEST_CASE("q8_0 rounds halves of a code away from zero") {
  row<float> r(32);
  for (std::size_t i = 0; i < 32; ++i) r.raw[i] = static_cast<float>(i) - 15.5f;
  r.raw[0] = 127;
  for (const isa set : sets_here()) {
    r.encode(set);
    for (std::size_t i = 1; i < 32; ++i)
      CHECK(static_cast<std::int8_t>(r.codes[2 + i]) == static_cast<int>(i) - (i < 16 ? 16 : 15));
  }
}

TEST_CASE("what q8_0 decoded, it encodes to the same bytes: every largest magnitude, every code") {
  CHECK(wrong_magnitudes<fp16>() == 0);
  CHECK(wrong_magnitudes<bf16>() == 0);
  CHECK(wrong_magnitudes<float>() == 0);
}

TEST_CASE("bf16 blocks survive a thousand trips through q8_0") {
  std::mt19937 random(4);
  std::normal_distribution<float> normal;
  row<bf16> r(128 * 32);
  for (bf16& x : r.raw) x = to_bf16(normal(random));
  r.encode();
  r.decode();
  const row<bf16> first = r;
  for (int trip = 0; trip < 1000; ++trip) {
    r.encode();
    r.decode();
  }
  CHECK(r.codes == first.codes);
  CHECK(r.same_values(first));
}

TEMPLATE_TEST_CASE("what q8_0 makes of a group does not depend on its neighbours", "", fp16, bf16, float) {
  check_that_groups_stand_alone<row<TestType>, TestType>();
}

TEST_CASE("q8_0 takes any bits at all, and its laws hold for them") {
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

TEMPLATE_TEST_CASE("q8_0 turns NaN into 0 and infinity into the largest it can, and spares the rest", "",
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
  CHECK(std::fabs(to_float(r.raw[0]) - 1.0f) < 1e-2f);
  CHECK(to_float(r.raw[40]) < -65000);
  CHECK(std::isfinite(to_float(r.raw[40])));
}

TEST_CASE("magnitudes whose scale is zero become zeros") {
  row<float> r(32);
  for (float& x : r.raw) x = 127 * 0x1p-26f;
  r.encode();
  CHECK(std::all_of(r.codes.begin(), r.codes.end(), [](std::byte b) { return b == std::byte{0}; }));
}

TEST_CASE("the largest fp16 does not become infinite") {
  row<fp16> r(32);
  r.raw[5] = fp16{0x7bff};
  r.encode();
  r.decode();
  CHECK(std::isfinite(to_float(r.raw[5])));
  CHECK(std::fabs(to_float(r.raw[5]) - 65504.0f) < 64.0f);
}

TEST_CASE("a block's planes are encoded one after another, each with its own element type") {
  layer_group group;
  group.tokens = 3;
  group.layers_per_block = 2;
  group.k = {.heads = 2, .dim = 32, .type = element::fp16};
  group.v = {.heads = 1, .dim = 64, .type = element::fp32};
  REQUIRE(q8_0::supports(group));
  REQUIRE(q8_0::max_encoded_size(group) == 2 * (2 + 2) * 3 * q8_0::group_bytes);

  std::vector<std::byte> raw(group.block_bytes());
  const auto value = [](std::size_t i) { return static_cast<float>(i % 19) - 9.0f; };
  for (std::uint32_t layer = 0; layer < 2; ++layer) {
    for (std::size_t i = 0; i < 2 * 32 * 3; ++i) {
      const fp16 x = to_fp16(value(i + layer));
      std::memcpy(raw.data() + group.k_offset(layer) + 2 * i, &x, 2);
    }
    for (std::size_t i = 0; i < 64 * 3; ++i) {
      const float x = value(3 * i + layer);
      std::memcpy(raw.data() + group.v_offset(layer) + 4 * i, &x, 4);
    }
  }
  std::vector<std::byte> codes(q8_0::max_encoded_size(group)), back(raw.size());
  REQUIRE(q8_0::encode(group, raw, codes));
  REQUIRE(q8_0::decode(group, codes, back));
  for (std::uint32_t layer = 0; layer < 2; ++layer) {
    for (std::size_t i = 0; i < 2 * 32 * 3; ++i) {
      fp16 x;
      std::memcpy(&x, back.data() + group.k_offset(layer) + 2 * i, 2);
      REQUIRE(std::fabs(to_float(x) - value(i + layer)) < 0.05f);
    }
    for (std::size_t i = 0; i < 64 * 3; ++i) {
      float x;
      std::memcpy(&x, back.data() + group.v_offset(layer) + 4 * i, 4);
      REQUIRE(std::fabs(x - value(3 * i + layer)) < 0.05f);
    }
  }
}

TEST_CASE("q8_0 says which groups it cannot encode") {
  layer_group group;
  group.k = group.v = {.heads = 2, .dim = 64, .type = element::fp16};
  CHECK(q8_0::supports(group));
  group.v.dim = 80;
  CHECK(q8_0::supports(group).error().code == errc::invalid_argument);
  group.v = {};
  CHECK(q8_0::supports(group));
  group.k.type = element::fp8_e4m3;
  CHECK(q8_0::supports(group).error().code == errc::invalid_argument);
}

TEST_CASE("q8_0 decodes hostile bytes to an error or to values, and writes nothing else") {
  row<fp16> r(64);
  std::vector<std::byte> block(r.group.block_bytes() + 1, std::byte{0xaa});
  const mutable_bytes raw = std::span(block).first(r.group.block_bytes());
  CHECK(q8_0::decode(r.group, std::span(r.codes).first(67), raw).error().code == errc::corrupt);
  CHECK(q8_0::decode(r.group, {}, raw).error().code == errc::corrupt);
  CHECK(q8_0::decode(r.group, r.codes, block).error().code == errc::invalid_argument);
  CHECK(std::all_of(block.begin(), block.end(), [](std::byte b) { return b == std::byte{0xaa}; }));
  std::mt19937 random(6);
  for (int round = 0; round < 200; ++round) {
    for (std::byte& b : r.codes) b = static_cast<std::byte>(random());
    for (const isa set : sets_here()) static_cast<void>(q8_0::decode(r.group, r.codes, raw, set).has_value());
    REQUIRE(block.back() == std::byte{0xaa});
  }
  for (const unsigned scale : {0x7c00u, 0xfc00u, 0x7e01u}) {  // infinite, negative infinite, NaN
    r.codes.assign(r.codes.size(), std::byte{1});
    const auto bits = static_cast<std::uint16_t>(scale);
    std::memcpy(r.codes.data() + q8_0::group_bytes, &bits, sizeof bits);
    for (const isa set : sets_here())
      CHECK(q8_0::decode(r.group, r.codes, raw, set).error().code == errc::corrupt);
  }
}

TEST_CASE("q8_0 refuses spans of the wrong size when encoding") {
  row<fp16> r(64);
  const const_bytes raw = std::as_bytes(std::span(r.raw));
  CHECK(q8_0::encode(r.group, raw.first(126), r.codes).error().code == errc::invalid_argument);
  CHECK(q8_0::encode(r.group, raw, std::span(r.codes).first(67)).error().code == errc::invalid_argument);
}
