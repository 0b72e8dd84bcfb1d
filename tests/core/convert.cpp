#include "terrace/core/convert.hpp"

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "catch.hpp"
#include "instruction_sets.hpp"

using namespace terrace;

namespace {

template <class T>
std::vector<T> all_16_bit_values() {
  std::vector<T> values(65536);
  for (std::size_t i = 0; i < values.size(); ++i) values[i].bits = static_cast<std::uint16_t>(i);
  return values;
}

// Every rounding boundary of both 16-bit types and what lies beside it, and a spread over all floats.
std::vector<float> telling_floats() {
  std::vector<float> values;
  for (std::uint32_t upper = 0; upper < 65536; ++upper)
    for (const std::uint32_t lower :
         {0u, 1u, 0x0fffu, 0x1000u, 0x1001u, 0x2000u, 0x3000u, 0x7fffu, 0x8000u, 0x8001u, 0xf000u})
      values.push_back(std::bit_cast<float>(upper << 16 | lower));
  for (std::uint64_t bits = 0; bits < 0x100000000; bits += 65521 * 7)
    values.push_back(std::bit_cast<float>(static_cast<std::uint32_t>(bits)));
  return values;
}

template <class From, class To>
void check_each_value(const std::vector<From>& in) {
  for (const isa set : sets_here()) {
    std::vector<To> out(in.size());
    convert(std::span(in), std::span(out), set);
    std::size_t wrong = 0;
    for (std::size_t i = 0; i < in.size(); ++i) {
      const To expected = from_float<To>(to_float(in[i]));
      wrong += std::memcmp(&out[i], &expected, sizeof(To)) != 0;
    }
    INFO(name(set));
    CHECK(wrong == 0);
  }
}

}  // namespace

TEST_CASE("bulk conversion gives the bits of the scalar functions with every instruction set") {
  check_each_value<fp16, float>(all_16_bit_values<fp16>());
  check_each_value<bf16, float>(all_16_bit_values<bf16>());
  check_each_value<float, fp16>(telling_floats());
  check_each_value<float, bf16>(telling_floats());
  check_each_value<float, float>(telling_floats());
  check_each_value<bf16, fp16>(all_16_bit_values<bf16>());
  check_each_value<float, fp8_e4m3>(telling_floats());
  check_each_value<fp16, fp8_e4m3>(all_16_bit_values<fp16>());
  std::vector<fp8_e4m3> bytes(256);
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i].bits = static_cast<std::uint8_t>(i);
  check_each_value<fp8_e4m3, float>(bytes);
  check_each_value<fp8_e4m3, fp16>(bytes);
  check_each_value<fp8_e4m3, bf16>(bytes);
}

TEST_CASE("conversion of any length and alignment touches nothing else") {
  for (const isa set : sets_here()) {
    for (std::size_t length = 0; length <= 50; ++length) {
      for (const std::size_t start : {0u, 1u, 3u}) {
        std::vector<float> in(start + length, 1.5f);
        std::vector<fp16> out(start + length + 1, fp16{0xaaaa});
        convert(std::span(in).subspan(start), std::span(out).subspan(start, length), set);
        for (std::size_t i = 0; i < out.size(); ++i)
          REQUIRE(out[i] == (i >= start && i < start + length ? to_fp16(1.5f) : fp16{0xaaaa}));
      }
    }
  }
}

TEST_CASE("instruction sets have names, and the best one is one that the processor has") {
  for (const isa set : {isa::portable, isa::avx2, isa::avx512}) CHECK(parse_isa(name(set)) == set);
  CHECK_FALSE(parse_isa("sse9"));
  CHECK_FALSE(parse_isa(""));
  CHECK(best_isa() <= probe_isa());
  CHECK(best_isa() == best_isa());
}
