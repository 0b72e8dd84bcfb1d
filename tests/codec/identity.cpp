#include "terrace/codec/identity.hpp"

#include <cstddef>
#include <vector>

#include "catch.hpp"

using namespace terrace;

namespace {

layer_group small_group() {
  layer_group group;
  group.tokens = 4;
  group.k = group.v = {.heads = 2, .dim = 24, .type = element::bf16};
  group.layers_per_block = 3;
  return group;
}

}  // namespace

TEST_CASE("identity keeps every byte, both ways") {
  const layer_group group = small_group();
  std::vector<std::byte> raw(group.block_bytes());
  for (std::size_t i = 0; i < raw.size(); ++i) raw[i] = static_cast<std::byte>(i * 37);
  REQUIRE(identity::supports(group));
  REQUIRE(identity::max_encoded_size(group) == raw.size());

  std::vector<std::byte> encoded(raw.size() + 1, std::byte{0xaa});
  const auto written = identity::encode(group, raw, encoded);
  REQUIRE(written);
  CHECK(*written == raw.size());
  CHECK(encoded.back() == std::byte{0xaa});

  encoded.resize(*written);
  std::vector<std::byte> back(raw.size());
  REQUIRE(identity::decode(group, encoded, back));
  CHECK(back == raw);
}

TEST_CASE("identity refuses blocks of another size") {
  const layer_group group = small_group();
  std::vector<std::byte> block(group.block_bytes()), shorter(block.size() - 1), longer(block.size() + 1);
  CHECK(identity::encode(group, shorter, block).error().code == errc::invalid_argument);
  CHECK(identity::encode(group, block, shorter).error().code == errc::invalid_argument);
  CHECK(identity::decode(group, shorter, block).error().code == errc::corrupt);
  CHECK(identity::decode(group, longer, block).error().code == errc::corrupt);
  CHECK(identity::decode(group, block, shorter).error().code == errc::invalid_argument);
}
