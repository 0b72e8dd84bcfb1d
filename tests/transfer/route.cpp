#include "terrace/transfer/route.hpp"

#include <array>
#include <vector>

#include "catch.hpp"
#include "terrace/codec/q4_0.hpp"
#include "terrace/codec/q8_0.hpp"
#include "terrace/medium/nvme.hpp"
#include "terrace/medium/ram.hpp"
#include "terrace/tier.hpp"

using namespace terrace;

namespace {
using hot = tier<ram>;
using warm = tier<ram, q8_0>;
using cool = tier<nvme, q8_0>;
using raw_cool = tier<nvme>;

template <class From, class To>
result<std::size_t> carry(const layer_group& g, const_bytes source, mutable_bytes target,
                          mutable_bytes scratch) {
  return transcode(route_between<From, To>().what, any_codec::of<typename From::codec_type>(),
                   any_codec::of<typename To::codec_type>(), g, source, target, scratch);
}
}  // namespace

TEST_CASE("routes take the fewest steps") {
  // Encoded bytes that stay as they are travel straight between a slot and the disk.
  STATIC_REQUIRE(route_between<raw_cool, hot>().read);
  STATIC_REQUIRE(route_between<raw_cool, hot>().staging_buffers() == 0);
  STATIC_REQUIRE(route_between<raw_cool, hot>().what == route::work::none);
  STATIC_REQUIRE(route_between<hot, raw_cool>().write);
  STATIC_REQUIRE(route_between<warm, cool>().what == route::work::none);
  STATIC_REQUIRE(route_between<warm, cool>().staging_buffers() == 0);
  // A codec between two addresses needs no staging; between an address and a disk it needs one buffer.
  STATIC_REQUIRE(route_between<hot, warm>().what == route::work::encode);
  STATIC_REQUIRE(route_between<hot, warm>().staging_buffers() == 0);
  STATIC_REQUIRE(route_between<warm, hot>().what == route::work::decode);
  STATIC_REQUIRE(route_between<cool, hot>().staging_buffers() == 1);
  STATIC_REQUIRE(route_between<hot, cool>().staging_buffers() == 1);
  // From one codec to another by way of the raw block.
  STATIC_REQUIRE(route_between<warm, raw_cool>().what == route::work::decode);
  STATIC_REQUIRE(route_between<hot, hot>().what == route::work::copy);
  // What has no address has checksums; memory has none.
  STATIC_REQUIRE(route_between<hot, cool>().sum);
  STATIC_REQUIRE(route_between<cool, hot>().verify);
  STATIC_REQUIRE_FALSE(route_between<hot, cool>().verify);
  STATIC_REQUIRE_FALSE(route_between<cool, hot>().sum);
  STATIC_REQUIRE_FALSE(route_between<hot, warm>().sum);
  STATIC_REQUIRE_FALSE(route_between<warm, hot>().verify);
}

TEST_CASE("transcode is what the codecs say") {
  const layer_group g{.layers = 1, .tokens = 4, .k = {1, 64}, .v = {1, 64}};
  std::vector<std::byte> raw(g.block_bytes()), back(raw.size()), encoded(q8_0::max_encoded_size(g));
  for (std::size_t i = 0; i < raw.size(); ++i) raw[i] = static_cast<std::byte>(i % 2 == 0 ? i : 0x3c);
  const auto down = carry<hot, warm>(g, raw, encoded, {});
  REQUIRE(down);
  CHECK(*down == encoded.size());
  const auto up = carry<warm, hot>(g, encoded, back, {});
  REQUIRE(up);
  CHECK(*up == raw.size());
  std::vector<std::byte> want(raw.size());
  REQUIRE(q8_0::decode(g, encoded, want));
  CHECK(back == want);
  const auto copied = carry<hot, hot>(g, raw, back, {});
  REQUIRE(copied);
  CHECK(back == raw);
  CHECK_FALSE(carry<warm, hot>(g, std::span(encoded).first(10), back, {}));
}

TEST_CASE("between two codecs the raw block lies in the scratch buffer") {
  using quarter = tier<ram, q4_0>;
  STATIC_REQUIRE(route_between<warm, quarter>().what == route::work::recode);
  STATIC_REQUIRE(route_between<warm, quarter>().scratch);
  const layer_group g{.layers = 1, .tokens = 4, .k = {1, 64}, .v = {1, 64}};
  std::vector<std::byte> raw(g.block_bytes()), scratch(raw.size());
  std::vector<std::byte> eight(q8_0::max_encoded_size(g)), four(q4_0::max_encoded_size(g)), want(four.size());
  for (std::size_t i = 0; i < raw.size(); ++i) raw[i] = static_cast<std::byte>(i % 2 == 0 ? i * 5 : 0x3c);
  REQUIRE(q8_0::encode(g, raw, eight));
  const auto moved = carry<warm, quarter>(g, eight, four, scratch);
  REQUIRE(moved);
  CHECK(*moved == four.size());
  REQUIRE(q8_0::decode(g, eight, raw));
  REQUIRE(q4_0::encode(g, raw, want));
  CHECK(scratch == raw);
  CHECK(four == want);
  CHECK_FALSE(carry<warm, quarter>(g, const_bytes(eight).first(10), four, scratch));
}

TEST_CASE("a ladder's routes go down to any farther tier, and up to tier 0 only") {
  constexpr auto ways = routes_between(std::array{route_end::of<hot>(), route_end::of<warm>(),
                                                  route_end::of<cool>(), route_end::of<raw_cool>()});
  for (std::size_t from = 0; from < ways.size(); ++from) {
    for (std::size_t to = 0; to < ways.size(); ++to) {
      INFO(from << " to " << to);
      const route& r = ways[from][to];
      const bool any = r.read || r.write || r.what != route::work::none;
      CHECK(any == (from < to || (to == 0 && from != 0)));
    }
  }
  CHECK(ways[3][0].read);
  CHECK(ways[1][3].write);
}
