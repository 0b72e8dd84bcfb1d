#include "terrace/codec/any_codec.hpp"

#include <vector>

#include "catch.hpp"
#include "terrace/codec/fp8.hpp"
#include "terrace/codec/identity.hpp"
#include "terrace/codec/q4_0.hpp"
#include "terrace/codec/q8_0.hpp"

using namespace terrace;

TEMPLATE_TEST_CASE("a codec as a value does and says what the codec does", "", identity, fp8, q8_0, q4_0) {
  constexpr any_codec erased = any_codec::of<TestType>();
  STATIC_REQUIRE(erased.name == TestType::name);
  STATIC_REQUIRE(erased.format_id == TestType::format_id);
  STATIC_REQUIRE(erased.loss == TestType::loss);
  STATIC_REQUIRE(erased.fixed_rate == TestType::fixed_rate);

  const layer_group g{.layers = 1, .tokens = 4, .k = {1, 64}, .v = {1, 32}};
  const layer_group odd{.layers = 1, .tokens = 4, .k = {1, 40}};
  CHECK(erased.supports(g));
  CHECK(erased.supports(odd).has_value() == TestType::supports(odd).has_value());
  CHECK(erased.max_encoded_size(g) == TestType::max_encoded_size(g));

  std::vector<std::byte> raw(g.block_bytes()), back(raw.size()), want_back(raw.size());
  std::vector<std::byte> out(TestType::max_encoded_size(g)), want(out.size());
  for (std::size_t i = 0; i < raw.size(); ++i) raw[i] = static_cast<std::byte>(i % 2 == 0 ? i * 7 : 0x3c);
  const auto written = erased.encode(g, raw, out);
  REQUIRE(written);
  REQUIRE(*written == *TestType::encode(g, raw, want));
  CHECK(out == want);
  REQUIRE(erased.decode(g, out, back));
  REQUIRE(TestType::decode(g, want, want_back));
  CHECK(back == want_back);
  CHECK_FALSE(erased.decode(g, const_bytes(out).first(out.size() - 1), back));
}
