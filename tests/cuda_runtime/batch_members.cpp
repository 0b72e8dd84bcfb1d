#include <memory>
#include <vector>

#include "catch.hpp"
#include "engine.hpp"
#include "terrace/cuda/batch.hpp"
#include "terrace/cuda/pinned_ram.hpp"
#include "terrace/cuda/vram.hpp"
#include "terrace/policy/lru.hpp"
#include "terrace/tiered_cache.hpp"

// Who is in a device batch, and what may happen to them between its windows.

using namespace terrace;

namespace {

constexpr std::size_t block = pattern::block_bytes;
constexpr std::uint32_t layers = 2;
using ladder = tiered_cache<tier<vram>, tier<pinned_ram>, lru>;

}  // namespace

TEST_CASE("a device batch looks at nobody that it does not name any more, and notices who was changed") {
  context ctx;
  engine device;
  auto cache = ladder::open(ctx, pattern::layout(layers), {.capacity = 64 * block, .stream = device.stream},
                            {.capacity = 256 * block});
  REQUIRE(cache);
  auto made = cuda::batch::make(*cache, {.sequences = 4, .pages = 4, .window_bytes = 2 * block});
  REQUIRE(made);
  cuda::batch& b = **made;
  std::vector<std::unique_ptr<sequence>> all;
  const auto add = [&](std::uint32_t tokens) {
    all.push_back(std::make_unique<sequence>(cache->make_sequence()));
    for (std::uint32_t at = 0; at < tokens; at += 16)
      REQUIRE(device.append(*all.back(), std::min(16u, tokens - at), layers, 1));
  };
  const auto rest = [&](std::uint32_t layer) {
    std::uint32_t pages = 0;
    while (auto w = b.next(layer, device.stream)) pages += w->page_count();
    return pages;
  };
  const auto noticed = [&] {
    return rest(0) == 0 && b.failure() && b.failure()->code == errc::invalid_argument;
  };
  add(7 * 16 + 3);
  add(5 * 16 + 3);
  add(3 * 16);
  REQUIRE(b.assign(std::vector<sequence*>{all[0].get(), all[1].get()}));
  CHECK(rest(0) == 8 + 6);
  {
    const auto window = b.next(0, device.stream);
    REQUIRE(window);
    const auto refused = b.assign(std::vector<sequence*>{all[2].get()});
    REQUIRE_FALSE(refused);
    CHECK(refused.error().code == errc::invalid_argument);
  }
  REQUIRE(b.assign(std::vector<sequence*>{all[1].get(), all[2].get()}));
  all[0].reset();
  CHECK(rest(0) == 6 + 3);

  {
    auto own = all[1]->reserve(40);  // which is not the batch's
    REQUIRE(own);
    CHECK(noticed());
  }
  CHECK(rest(0) == 6 + 3);
  CHECK_FALSE(b.failure());

  REQUIRE(b.next(0, device.stream));
  REQUIRE(all[1]->truncate(32));
  CHECK(noticed());
  CHECK(rest(0) == 2 + 3);  // begun anew
  CHECK_FALSE(b.failure());
  // Between layers nothing has to be begun anew but what was under way for the next.
  REQUIRE(device.append(*all[2], 16, layers, 1));
  CHECK(rest(1) == 2 + 4);
  CHECK_FALSE(b.failure());
}
