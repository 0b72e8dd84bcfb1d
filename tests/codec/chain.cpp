#include "terrace/codec/chain.hpp"

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <random>
#include <span>
#include <string_view>
#include <vector>

#include "catch.hpp"
#include "terrace/codec/identity.hpp"
#include "terrace/codec/q4_0.hpp"
#include "terrace/codec/q8_0.hpp"
#include "terrace/core/element.hpp"
#include "terrace/testing/codec_conformance.hpp"
#if __has_include(<zstd.h>)
#include "terrace/codec/zstd.hpp"
#endif

using namespace terrace;

namespace {

using bytes = std::vector<std::byte>;

// Pairs of a count and a byte. Its size varies, and grows where nothing repeats.
struct run_length {
  static constexpr std::uint32_t format_id = 0x7001;
  static constexpr std::string_view name = "runs";
  static constexpr bool lossless = true;
  static constexpr bool fixed_rate = false;

  static std::size_t max_encoded_bytes(std::size_t n) noexcept { return 2 * n; }
  static result<std::size_t> encode_bytes(const_bytes in, mutable_bytes out) noexcept {
    if (out.size() < 2 * in.size()) return fail(errc::invalid_argument, "runs need twice the room");
    std::size_t written = 0;
    for (std::size_t i = 0; i < in.size();) {
      std::size_t run = 1;
      while (run < 255 && i + run < in.size() && in[i + run] == in[i]) ++run;
      out[written++] = static_cast<std::byte>(run);
      out[written++] = in[i];
      i += run;
    }
    return written;
  }
  static result<void> decode_bytes(const_bytes in, mutable_bytes out) noexcept {
    if (in.size() % 2 != 0) return fail(errc::corrupt, "half a run");
    std::size_t filled = 0;
    for (std::size_t i = 0; i < in.size(); i += 2) {
      const auto run = std::to_integer<std::size_t>(in[i]);
      if (run == 0 || run > out.size() - filled) return fail(errc::corrupt, "a run of the wrong length");
      std::fill_n(out.begin() + static_cast<std::ptrdiff_t>(filled), run, in[i + 1]);
      filled += run;
    }
    if (filled != out.size()) return fail(errc::corrupt, "too few runs");
    return {};
  }
};

// The bytes inverted, behind a byte of its own.
struct inverted {
  static constexpr std::uint32_t format_id = 0x7002;
  static constexpr std::string_view name = "inverted";
  static constexpr bool lossless = true;
  static constexpr bool fixed_rate = true;

  static std::size_t max_encoded_bytes(std::size_t n) noexcept { return n > (1u << 20) ? 0 : n + 1; }
  static result<std::size_t> encode_bytes(const_bytes in, mutable_bytes out) noexcept {
    if (out.size() <= in.size()) return fail(errc::invalid_argument, "no room for the mark");
    out[0] = std::byte{0x69};
    std::transform(in.begin(), in.end(), out.begin() + 1, [](std::byte b) { return ~b; });
    return in.size() + 1;
  }
  static result<void> decode_bytes(const_bytes in, mutable_bytes out) noexcept {
    if (in.size() != out.size() + 1 || in[0] != std::byte{0x69}) return fail(errc::corrupt, "no mark");
    std::transform(in.begin() + 1, in.end(), out.begin(), [](std::byte b) { return ~b; });
    return {};
  }
};

struct watched : inverted {
  static inline std::size_t most_asked = 0;
  static result<void> decode_bytes(const_bytes in, mutable_bytes out) noexcept {
    most_asked = std::max(most_asked, out.size());
    return inverted::decode_bytes(in, out);
  }
};

struct lossy_bytes : inverted {
  static constexpr bool lossless = false;
};
static_assert(byte_codec<run_length> && byte_codec<inverted>);
static_assert(!byte_codec<lossy_bytes> && !byte_codec<q4_0> && !byte_codec<int>);

using q4_runs = chain<q4_0, run_length>;
using q4_inverted = chain<q4_0, inverted>;
using q8_runs_inverted = chain<q8_0, run_length, inverted>;
using raw_runs_runs = chain<identity, run_length, run_length>;
using inverted_then_runs = chain<identity, inverted, run_length>;
using chain_in_chain = chain<chain<q4_0, inverted>, run_length, inverted>;
static_assert(codec<q4_runs> && codec<raw_runs_runs> && codec<chain_in_chain>);

layer_group small_group() { return {.tokens = 8, .k = {2, 64, element::fp16}, .v = {2, 64, element::fp16}}; }

bytes gaussian_block(const layer_group& group) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  bytes raw(group.block_bytes());
  for (std::size_t i = 0; i < raw.size(); i += 2) {
    const fp16 x = to_fp16(normal(random));
    std::memcpy(raw.data() + i, &x, sizeof x);
  }
  return raw;
}

template <class C>
bytes encoded(const layer_group& group, const bytes& raw) {
  bytes out(C::max_encoded_size(group));
  const auto written = C::encode(group, raw, out);
  REQUIRE(written);
  out.resize(*written);
  return out;
}

}  // namespace

TEMPLATE_TEST_CASE("a chain keeps the contract of a codec", "", q4_runs, q4_inverted, q8_runs_inverted,
                   raw_runs_runs, inverted_then_runs, chain_in_chain) {
  for (std::uint32_t seed = 1; seed <= 2; ++seed) {
    const auto violated = codec_conformance<TestType>({.seed = seed, .rounds = 10});
    INFO(violated.value_or(""));
    CHECK_FALSE(violated);
  }
}

TEST_CASE("a chain is as lossy as its first codec, and as fixed as all of them") {
  static_assert(q4_runs::loss == q4_0::loss && !q4_runs::lossless);
  static_assert(raw_runs_runs::loss == 0 && raw_runs_runs::lossless);
  static_assert(!q4_runs::fixed_rate && q4_inverted::fixed_rate && !q8_runs_inverted::fixed_rate);
  static_assert(!raw_runs_runs::attendable && !q4_runs::attendable);
  CHECK(q4_runs::name == "q4_0+runs");
  CHECK(q8_runs_inverted::name == "q8_0+runs+inverted");
  CHECK(chain_in_chain::name == "q4_0+inverted+runs+inverted");
}

TEST_CASE("the format ids of chains are for ever") {
  static_assert(detail::chain_format_id<identity>() == (0x4b95f515u | 0x80000000u));  // FNV-1a of four zeros
  constexpr std::array ids{q4_runs::format_id,
                           q4_inverted::format_id,
                           q8_runs_inverted::format_id,
                           raw_runs_runs::format_id,
                           inverted_then_runs::format_id,
                           chain_in_chain::format_id,
                           chain<q8_0, run_length>::format_id,
                           chain<q4_0, inverted, run_length, inverted>::format_id};
  for (std::size_t i = 0; i < ids.size(); ++i) {
    CHECK((ids[i] & 0x80000000u) != 0);
    CHECK(std::count(ids.begin(), ids.end(), ids[i]) == 1);
  }
}

TEST_CASE("a chain stores the sizes that cannot be known, and no others") {
  const layer_group group = small_group();
  const bytes raw(group.block_bytes());
  const std::size_t codes = q4_0::max_encoded_size(group);
  CHECK(encoded<q4_inverted>(group, raw).size() == codes + 1);

  const bytes zeros = encoded<raw_runs_runs>(group, raw);  // 4096 zeros: 17 runs, then 17 x 2 bytes of them
  std::uint32_t size = 0;
  std::memcpy(&size, zeros.data(), sizeof size);
  CHECK(size == 2 * ((raw.size() + 254) / 255));

  bytes first(codes), second(2 * codes);
  REQUIRE(q4_0::encode(group, raw, first));
  const auto runs = run_length::encode_bytes(first, second);
  REQUIRE(runs);
  second.resize(*runs);
  CHECK(encoded<q4_runs>(group, raw) == second);
}

TEST_CASE("a chain whose sizes lie is corrupt, and large ones are not believed") {
  const layer_group group = small_group();
  const bytes stored = encoded<q8_runs_inverted>(group, gaussian_block(group));
  bytes out(group.block_bytes());
  REQUIRE(q8_runs_inverted::decode(group, stored, out));
  for (const std::uint32_t size : {0u, 1u, 0x7fffffffu, 0xffffffffu}) {
    bytes bad = stored;
    std::memcpy(bad.data(), &size, sizeof size);
    CHECK(q8_runs_inverted::decode(group, bad, out).error().code == errc::corrupt);
  }
  for (std::size_t n = 0; n < 8; ++n)
    CHECK(q8_runs_inverted::decode(group, std::span(stored).first(n), out).error().code == errc::corrupt);
}

TEST_CASE("a size that no codec writes is refused before memory is taken for it") {
  using runs_watched = chain<identity, run_length, watched>;
  const layer_group group = small_group();
  bytes stored = encoded<runs_watched>(group, bytes(group.block_bytes())), out(group.block_bytes());
  const auto most = static_cast<std::uint32_t>(run_length::max_encoded_bytes(group.block_bytes()));
  for (const std::uint32_t size : {most + 1, 0x7fffffffu}) {
    std::memcpy(stored.data(), &size, sizeof size);
    CHECK(runs_watched::decode(group, stored, out).error().code == errc::corrupt);
  }
  CHECK(watched::most_asked == 0);
  std::memcpy(stored.data(), &most, sizeof most);
  CHECK_FALSE(runs_watched::decode(group, stored, out));
  CHECK(watched::most_asked == most);
}

TEST_CASE("a chain decodes to what its first codec alone would give") {
  const layer_group group = small_group();
  const bytes raw = gaussian_block(group);
  bytes codes(q4_0::max_encoded_size(group)), alone(raw.size()), chained(raw.size());
  REQUIRE(q4_0::encode(group, raw, codes));
  REQUIRE(q4_0::decode(group, codes, alone));
  REQUIRE(chain_in_chain::decode(group, encoded<chain_in_chain>(group, raw), chained));
  CHECK(chained == alone);
}

TEST_CASE("a chain says which groups it cannot encode") {
  layer_group group = small_group();
  CHECK(q4_inverted::supports(group));
  group.k.dim = 40;
  CHECK(q4_inverted::supports(group).error().code == errc::invalid_argument);
  group.k.dim = 64;
  group.tokens = 1u << 14;  // more bytes than `inverted` takes
  CHECK(q4_0::supports(group));
  CHECK(q4_inverted::supports(group).error().code == errc::invalid_argument);
}

#if __has_include(<zstd.h>)
TEST_CASE("q4_0 and zstd: the contract, the name, the id, and the size") {
  using q4_zstd = chain<q4_0, zstd<>>;
  static_assert(codec<q4_zstd> && q4_zstd::format_id == 0xe838faf7u);
  static_assert(chain<q8_0, zstd<9>>::format_id == 0xf5579f1du);
  CHECK(q4_zstd::name == "q4_0+zstd");
  const auto violated = codec_conformance<q4_zstd>();
  INFO(violated.value_or(""));
  CHECK_FALSE(violated);

  const layer_group group{.tokens = 64, .k = {4, 64, element::fp16}, .v = {4, 64, element::fp16}};
  const bytes raw = gaussian_block(group), stored = encoded<q4_zstd>(group, raw);
  CHECK(static_cast<double>(raw.size()) > 3.65 * static_cast<double>(stored.size()));
}
#endif
