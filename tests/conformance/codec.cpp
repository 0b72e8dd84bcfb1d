#include <algorithm>

#include "catch.hpp"
#include "terrace/codec/chain.hpp"
#include "terrace/codec/fp8.hpp"
#include "terrace/codec/identity.hpp"
#include "terrace/codec/q4_0.hpp"
#include "terrace/codec/q8_0.hpp"
#include "terrace/medium/ram.hpp"
#include "terrace/testing/archetypes.hpp"
#include "terrace/testing/codec_conformance.hpp"
#include "terrace/tier.hpp"

using namespace terrace;

namespace {

// Each is one requirement short of a codec.
struct format_id_is_signed : codec_archetype {
  static constexpr int format_id = 7;
};
struct format_id_is_an_enumerator : codec_archetype {
  enum : std::uint32_t { format_id = 7 };
};
struct name_is_an_array : codec_archetype {
  static constexpr char name[] = "archetype";
};
struct lossless_is_a_number : codec_archetype {
  static constexpr int lossless = 1;
};
struct loss_is_wide : codec_archetype {
  static constexpr int loss = 0;
};
struct lossless_with_a_loss : codec_archetype {
  static constexpr std::uint8_t loss = 3;
};
struct lossy_without_a_loss : codec_archetype {
  static constexpr bool lossless = false;
};
struct fixed_rate_is_unknown : codec_archetype {
  static constexpr const char* fixed_rate = "perhaps";
};
struct attendable_is_unknown : codec_archetype {
  static constexpr int attendable = 0;
};
struct supports_says_no_reason : codec_archetype {
  static bool supports(const layer_group&) noexcept;
};
struct supports_may_throw : codec_archetype {
  static result<void> supports(const layer_group&);
};
struct size_is_32_bits : codec_archetype {
  static std::uint32_t max_encoded_size(const layer_group&) noexcept;
};
struct size_may_throw : codec_archetype {
  static std::size_t max_encoded_size(const layer_group&);
};
struct encode_cannot_fail : codec_archetype {
  static std::size_t encode(const layer_group&, const_bytes, mutable_bytes) noexcept;
};
struct encode_may_throw : codec_archetype {
  static result<std::size_t> encode(const layer_group&, const_bytes, mutable_bytes);
};
struct encode_has_state : codec_archetype {
  result<std::size_t> encode(const layer_group&, const_bytes, mutable_bytes) noexcept;
};
struct decode_says_a_size : codec_archetype {
  static result<std::size_t> decode(const layer_group&, const_bytes, mutable_bytes) noexcept;
};
struct decode_may_throw : codec_archetype {
  static result<void> decode(const layer_group&, const_bytes, mutable_bytes);
};
struct decode_writes_its_input : codec_archetype {
  static result<void> decode(const layer_group&, mutable_bytes, mutable_bytes) noexcept;
};

template <class C>
concept makes_a_tier = requires {
  typename tier<ram, C>;
};
static_assert(makes_a_tier<codec_archetype> && !makes_a_tier<int>);
static_assert(!codec<format_id_is_signed> && !makes_a_tier<format_id_is_signed>);
static_assert(!codec<format_id_is_an_enumerator> && !codec<name_is_an_array>);
static_assert(!codec<lossless_is_a_number> && !codec<loss_is_wide>);
static_assert(!codec<lossless_with_a_loss> && !codec<lossy_without_a_loss>);
static_assert(!codec<fixed_rate_is_unknown> && !codec<attendable_is_unknown>);
static_assert(!codec<supports_says_no_reason> && !codec<supports_may_throw>);
static_assert(!codec<size_is_32_bits> && !codec<size_may_throw>);
static_assert(!codec<encode_cannot_fail> && !codec<encode_may_throw> && !codec<encode_has_state>);
static_assert(!codec<decode_says_a_size> && !codec<decode_may_throw> && !codec<decode_writes_its_input>);

static_assert(!tier<ram, codec_archetype>::attendable && tier<ram, identity>::attendable);

// Models of the concept that break the contract. The suite must say which sentence.
struct forgets_a_byte : codec_archetype {
  static result<std::size_t> encode(const layer_group& g, const_bytes raw, mutable_bytes out) noexcept {
    auto written = codec_archetype::encode(g, raw, out);
    if (written) out[raw.size() / 2] = std::byte{0};
    return written;
  }
};
struct writes_beyond : codec_archetype {
  static result<void> decode(const layer_group& g, const_bytes in, mutable_bytes raw) noexcept {
    if (auto decoded = codec_archetype::decode(g, in, raw); !decoded) return decoded;
    *(raw.data() + raw.size()) = std::byte{1};
    return {};
  }
};
struct takes_any_size : codec_archetype {
  static result<std::size_t> encode(const layer_group&, const_bytes raw, mutable_bytes) noexcept {
    return raw.size();
  }
};
struct blames_the_caller : codec_archetype {
  static result<void> decode(const layer_group& g, const_bytes in, mutable_bytes raw) noexcept {
    if (in.size() != raw.size()) return fail(errc::invalid_argument, "not my bytes");
    return codec_archetype::decode(g, in, raw);
  }
};
struct drifts : codec_archetype {  // each passage makes every byte smaller
  static constexpr bool lossless = false;
  static constexpr std::uint8_t loss = 9;
  static result<void> decode(const layer_group& g, const_bytes in, mutable_bytes raw) noexcept {
    if (auto decoded = codec_archetype::decode(g, in, raw); !decoded) return decoded;
    for (std::byte& b : raw) b >>= 1;
    return {};
  }
};
struct refuses_without_a_word : codec_archetype {
  static result<void> supports(const layer_group&) noexcept { return fail(errc::invalid_argument, ""); }
};
struct supports_nothing : codec_archetype {
  static result<void> supports(const layer_group&) noexcept { return fail(errc::invalid_argument, "No."); }
};
struct is_not_of_fixed_rate : codec_archetype {
  static std::size_t max_encoded_size(const layer_group& g) noexcept { return g.block_bytes() + 1; }
};

}  // namespace

// A byte codec for chains that needs no library: the bytes, and their number modulo 256.
struct counted {
  static constexpr std::uint32_t format_id = 0x7003;
  static constexpr std::string_view name = "counted";
  static constexpr bool lossless = true;
  static constexpr bool fixed_rate = false;
  static std::size_t max_encoded_bytes(std::size_t n) noexcept { return n + 1; }
  static result<std::size_t> encode_bytes(const_bytes in, mutable_bytes out) noexcept {
    if (out.size() <= in.size()) return fail(errc::invalid_argument, "no room for the number");
    std::copy(in.begin(), in.end(), out.begin());
    out[in.size()] = static_cast<std::byte>(in.size());
    return in.size() + 1;
  }
  static result<void> decode_bytes(const_bytes in, mutable_bytes out) noexcept {
    if (in.size() != out.size() + 1 || in.back() != static_cast<std::byte>(out.size()))
      return fail(errc::corrupt, "not so many bytes");
    std::copy(in.begin(), in.end() - 1, out.begin());
    return {};
  }
};

TEMPLATE_TEST_CASE("a codec keeps its contract", "", identity, q8_0, q4_0, fp8, codec_archetype,
                   (chain<fp8, counted>), (chain<q4_0, counted, counted>)) {
  for (std::uint32_t seed = 1; seed <= 4; ++seed) {
    const auto violated = codec_conformance<TestType>({.seed = seed});
    INFO(violated.value_or(""));
    CHECK_FALSE(violated);
  }
}

TEST_CASE("the suite names the sentence that a codec breaks") {
  CHECK(codec_conformance<forgets_a_byte>() == "a lossless codec gives back what it was given");
  CHECK(codec_conformance<writes_beyond>() == "decode writes nothing outside of its spans");
  CHECK(codec_conformance<takes_any_size>() ==
        "a block of another size than its group's is an invalid argument to encode");
  CHECK(codec_conformance<blames_the_caller>() == "bytes that encode cannot have written are corrupt");
  CHECK(codec_conformance<drifts>() == "encoding what was decoded gives the same encoded bytes");
  CHECK(codec_conformance<refuses_without_a_word>() ==
        "supports() says in a sentence what cannot be encoded");
  CHECK(codec_conformance<supports_nothing>() == "a codec supports groups of some kind");
  CHECK(codec_conformance<is_not_of_fixed_rate>() ==
        "an output that is smaller than max_encoded_size is an invalid argument to encode");
}
