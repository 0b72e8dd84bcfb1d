// What docs/quickstart.md says of requests that run beside one another, as a program.
#include <chrono>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "catch.hpp"
#include "medium/sandbox.hpp"
#include "pattern.hpp"
#include "terrace/execution/counting_scope.hpp"
#include "terrace/medium/nvme.hpp"
#include "terrace/terrace.hpp"

using namespace terrace;

namespace {

using kv_cache = tiered_cache<tier<ram>, tier<nvme>, lru>;

struct request {
  explicit request(kv_cache& cache, std::uint32_t tag) : tokens(cache.make_sequence()), query(64), out(64) {
    for (int chunk = 0; chunk < 8; ++chunk) REQUIRE(pattern::append(tokens, 64, 2, tag));
    auto room = tokens.reserve(1);
    REQUIRE(room);
    next.emplace(std::move(*room));
    pattern::write(*next, 2, tag);
  }
  request(request&&) = delete;

  sequence tokens;
  std::optional<reservation> next;
  std::vector<float> query, out;
  counting_scope work;  // what is under way for this request
  bool done = false, lost = false;
};

// Begins the attention of a layer; returns at once.
void begin(kv_cache& cache, request& r, std::uint32_t layer) {
  r.done = false;
  REQUIRE(r.work.spawn(stream(cache, r.tokens, *r.next, layer, r.query, r.out) |
                       ex::then([&]() noexcept { r.done = true; }) |
                       ex::upon_error([&](const block_error&) noexcept { r.lost = true; })));
}

}  // namespace

TEST_CASE("quickstart: two requests attend side by side, and one of them is given up") {
  context ctx;
  auto cache = kv_cache::open(ctx, pattern::layout(), {.capacity = 40 * pattern::block_bytes},
                              {.capacity = 256 * pattern::block_bytes});
  REQUIRE(cache);
  {
    request first(*cache, 1), second(*cache, 2);
    begin(*cache, first, 0);
    begin(*cache, second, 0);
    first.work.request_stop();  // its pins are returned, its loads cancelled
    while (!second.done && !second.lost) ctx.wait(context::clock::time_point::max());
    REQUIRE(ctx.sync_wait(first.work.join()));
    REQUIRE(ctx.sync_wait(second.work.join()));
    CHECK_FALSE(first.done);
    CHECK(second.done);
    first.next.reset();  // drops the token that was reserved
    first.tokens.release();
    second.tokens.commit(std::move(*second.next), 1);
    CHECK(second.tokens.length() == 513);
  }
  // A transfer that nobody waits for any more holds its block until it ends.
  while (cache->stats().pins != 0 && ctx.wait(context::clock::now() + std::chrono::seconds(5))) {
  }
  CHECK(cache->stats().pins == 0);
  CHECK(cache->stats().blocks == 0);
}
