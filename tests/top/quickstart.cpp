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
#include "terrace/testing/scripted.hpp"

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

TEST_CASE("quickstart: what is lost is computed anew, and asked for again") {
  using store = tiered_cache<tier<ram>, tier<scripted>, lru>;
  context ctx{{.codec_threads = 0}};
  medium_script script;
  const kv_layout layout = pattern::layout();
  auto cache = store::open(ctx, layout, {.capacity = 12 * pattern::block_bytes},
                           {.capacity = 64 * pattern::block_bytes, .script = &script});
  REQUIRE(cache);
  sequence sequence = cache->make_sequence();
  for (int i = 0; i < 8; ++i) REQUIRE(pattern::append(sequence, 16, 2, 1));
  REQUIRE(ctx.sync_wait(cache->flush()));
  auto token = sequence.reserve(1);
  REQUIRE(token);
  pattern::write(*token, 2, 1);
  const std::vector<float> query(64, 0.25f);
  std::vector<float> expected(64), out(64);
  REQUIRE(ctx.sync_wait(stream(*cache, sequence, *token, 1, query, expected)));

  for (const std::uint32_t layer : {0u, 1u}) {  // layer 0 pushes layer 1 out
    script.flip_reads = layer;                  // one of layer 1 comes damaged
    auto done = ctx.sync_wait(stream(*cache, sequence, *token, layer, query, out));
    if (layer == 0) continue;
    REQUIRE_FALSE(done);
    REQUIRE_FALSE(done.error().lost.empty());
    done.error().rest.release();
    const std::uint64_t chunk = layout.chunk_tokens();
    for (const lost_block& lost : done.error().lost) {
      const auto range = cache->range_of(lost.id);
      REQUIRE(range);
      auto past = cache->fork(sequence, range->first_token / chunk * chunk);
      REQUIRE(past);
      auto room =
          past->reserve(static_cast<std::uint32_t>(range->first_token + range->tokens - past->length()));
      REQUIRE(room);
      pattern::write(*room, range->first_layer + range->layers, 1);
      auto anew = cache->restore(lost.id);
      REQUIRE(anew);
      REQUIRE(room->copy_to(*anew));
      std::move(*anew).complete();
    }
    REQUIRE(ctx.sync_wait(stream(*cache, sequence, *token, layer, query, out)));
    CHECK(out == expected);
  }
}
