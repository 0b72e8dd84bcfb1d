#include "terrace/core/layout.hpp"

#include <string_view>

#include "catch.hpp"

using namespace terrace;

namespace {
const layer_group kv{.first_layer = 0, .layers = 4, .tokens = 16, .k = {2, 64}, .v = {2, 64}};

std::string_view complaint(kv_layout layout) {
  const auto good = validate(layout);
  return good ? "" : good.error().text;
}
layer_group with(layer_group g, auto change) {
  change(g);
  return g;
}
}  // namespace

TEST_CASE("tensor pages are blocks of one plane that no layer has") {
  const layer_group pages = tensor_pages(element::fp32, 1024);
  CHECK(pages.holds_tensors());
  CHECK(pages.block_bytes() == 4096);
  CHECK(pages.block_rows() == 0);
  CHECK(pages.planes() == 1);
  CHECK(tensor_pages(element::fp16).block_bytes() == 128u * 1024);

  CHECK(complaint({{pages}}).empty());
  CHECK(kv_layout{{pages}}.layers() == 0);
  const kv_layout both{{kv, pages, tensor_pages(element::fp16, 64)}};
  CHECK(complaint(both).empty());
  CHECK(both.layers() == 4);
  CHECK(both.token_bytes() == kv_layout{{kv}}.token_bytes());
  CHECK(both.largest_block() == kv.block_bytes());
  for (std::uint32_t layer = 0; layer < 4; ++layer) CHECK(both.group_of(layer) == 0);
}

TEST_CASE("the group of a layer") {
  const layer_group second = with(kv, [](auto& g) { g.first_layer = 4, g.layers = 2; });
  const kv_layout layout{{kv, second, tensor_pages(element::fp16)}};
  REQUIRE(complaint(layout).empty());
  CHECK(layout.layers() == 6);
  CHECK(layout.group_of(3) == 0);
  CHECK(layout.group_of(4) == 1);
  CHECK(layout.group_of(5) == 1);
}

TEST_CASE("a layout that cannot be says why in one sentence") {
  const layer_group pages = tensor_pages(element::fp16, 64);
  CHECK(complaint({}).find("at least one group") != std::string_view::npos);
  CHECK(complaint({{pages, kv}}).find("behind all groups of layers") != std::string_view::npos);
  CHECK(complaint({{with(kv, [](auto& g) { g.first_layer = 1; })}}).find("without a gap") !=
        std::string_view::npos);
  CHECK(complaint({{kv, kv}}).find("without a gap") != std::string_view::npos);
  CHECK(complaint({{with(kv, [](auto& g) { g.layers_per_block = 3; })}}).find("divide") !=
        std::string_view::npos);
  CHECK(complaint({{with(kv, [](auto& g) { g.tokens = 0; })}}).find("at least one token") !=
        std::string_view::npos);
  CHECK(complaint({{tensor_pages(element::fp16, 0)}}).find("at least one token") != std::string_view::npos);
  CHECK(complaint({{tensor_pages(element::fp32, 1u << 30)}}).find("2 GiB") != std::string_view::npos);

  // Products that are small, or nothing, modulo 2^64.
  for (const plane huge : {plane{1u << 31, 1u << 31}, plane{308761441, 14586017}})
    CHECK(complaint({{with(kv, [&](auto& g) { g.k = huge; })}}).find("2 GiB") != std::string_view::npos);
  const auto half = with(kv, [](auto& g) { g.layers = 1u << 31; });
  auto other = half;
  other.first_layer = half.layers;
  CHECK(complaint({{half, other}}).find("2^32 layers") != std::string_view::npos);

  for (const layer_group& wrong : {
           with(pages, [](auto& g) { g.tokens = 2; }), with(pages, [](auto& g) { g.k.heads = 2; }),
           with(pages, [](auto& g) { g.v = g.k; }), with(pages, [](auto& g) { g.layers_per_block = 2; }),
           with(pages, [](auto& g) { g.keep.window = 8; }),
           with(kv, [](auto& g) { g.layers = 0; }),  // layers that somebody forgot
       })
    CHECK(complaint({{wrong}}).find("what tensor_pages makes") != std::string_view::npos);
}
