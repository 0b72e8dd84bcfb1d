#include "terrace/core/crc32c.hpp"

#include <cstddef>
#include <cstring>
#include <random>
#include <span>
#include <string_view>
#include <vector>

#include "catch.hpp"

using namespace terrace;

namespace {

const_bytes bytes_of(std::string_view text) { return std::as_bytes(std::span(text)); }

std::vector<std::byte> random_bytes(std::size_t n, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<std::byte> data(n);
  for (std::byte& b : data) b = static_cast<std::byte>(random());
  return data;
}

// The definition, bit by bit.
std::uint32_t by_definition(const_bytes data) {
  std::uint32_t crc = 0xffffffffu;
  for (const std::byte b : data) {
    crc ^= std::to_integer<std::uint32_t>(b);
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0x82f63b78u : 0u);
  }
  return ~crc;
}

}  // namespace

TEST_CASE("crc32c gives the published check values") {
  // The check value of the catalogues, and the examples of RFC 3720, B.4.
  std::vector<std::byte> zeros(32), ones(32, std::byte{0xff}), up(32), down(32);
  for (unsigned i = 0; i < 32; ++i) {
    up[i] = std::byte(i);
    down[i] = std::byte(31 - i);
  }
  for (const auto sum :
       {+[](const_bytes b) { return crc32c(b); }, +[](const_bytes b) { return crc32c_portable(b); }}) {
    CHECK(sum(bytes_of("123456789")) == 0xe3069283u);
    CHECK(sum({}) == 0u);
    CHECK(sum(zeros) == 0x8a9136aau);
    CHECK(sum(ones) == 0x62a8ab43u);
    CHECK(sum(up) == 0x46dd794eu);
    CHECK(sum(down) == 0x113fdb5cu);
  }
}

TEST_CASE("crc32c is the definition's, for every length and alignment, by instruction and by table") {
  const auto data = random_bytes(20000, 1);
  const const_bytes all(data);
  for (std::size_t n = 0; n < 700; ++n) {
    const const_bytes piece = all.subspan(n % 13, n);
    const std::uint32_t expected = by_definition(piece);
    REQUIRE(crc32c(piece) == expected);
    REQUIRE(crc32c_portable(piece) == expected);
#if TERRACE_X86
    if (__builtin_cpu_supports("sse4.2")) REQUIRE(detail::crc32c_sse42(piece, 0) == expected);
#endif
  }
  for (const std::size_t n : {3071u, 3072u, 3073u, 6144u, 6336u, 12287u, 19993u}) {
    const const_bytes piece = all.subspan(7, n);
    REQUIRE(crc32c(piece) == by_definition(piece));
    REQUIRE(crc32c_portable(piece) == by_definition(piece));
#if TERRACE_X86
    if (__builtin_cpu_supports("sse4.2")) REQUIRE(detail::crc32c_sse42(piece, 0) == by_definition(piece));
#endif
  }
}

TEST_CASE("crc32c of two pieces is that of the whole") {
  const auto data = random_bytes(9000, 2);
  const const_bytes all(data);
  for (const std::size_t cut : {0u, 1u, 7u, 63u, 3072u, 5001u, 9000u}) {
    CHECK(crc32c(all.subspan(cut), crc32c(all.first(cut))) == crc32c(all));
    CHECK(crc32c_portable(all.subspan(cut), crc32c_portable(all.first(cut))) == crc32c(all));
  }
}

TEST_CASE("crc32c sees every single flipped bit") {
  auto data = random_bytes(3500, 3);
  const std::uint32_t right = crc32c(data);
  for (std::size_t i = 0; i < data.size(); ++i)
    for (unsigned bit = 0; bit < 8; ++bit) {
      data[i] ^= std::byte(1u << bit);
      REQUIRE(crc32c(data) != right);
      data[i] ^= std::byte(1u << bit);
    }
}
