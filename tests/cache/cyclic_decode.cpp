// A decode over more blocks than tier 0 holds, through the whole cache: the law of step_aware, and what a
// least-recently-used order makes of it.
#include <algorithm>
#include <cstdint>
#include <random>
#include <set>
#include <span>
#include <vector>

#include "catch.hpp"
#include "pattern.hpp"
#include "terrace/attention/stream.hpp"
#include "terrace/execution/sync_wait.hpp"
#include "terrace/medium/ram.hpp"
#include "terrace/policy/lru.hpp"
#include "terrace/policy/step_aware.hpp"
#include "terrace/testing/belady.hpp"
#include "terrace/testing/scripted.hpp"
#include "terrace/tiered_cache.hpp"

using namespace terrace;

namespace {

constexpr std::uint32_t layers = 4, depth = 12, blocks = layers * depth, tag = 3;
constexpr std::uint64_t warm_up = 2, steps = 5;
constexpr std::size_t window = 2;  // blocks of one acquire
constexpr std::uint32_t ahead = 4;

struct counts {
  std::uint64_t hits = 0, misses = 0, used = 0, late = 0;
};

// How a step brings its blocks.
enum class way {
  acquire,    // window after window, the bytes of each compared
  stream,     // up to six windows of one block, half of which are on their way
  prefetched  // the same, and layer_ahead asks for the front of the next layer
};
std::size_t passing_slots(way how) {
  return how == way::acquire ? window : 6 + (how == way::prefetched ? ahead : 0);
}

template <class Policy>
class decoding {
 public:
  // Tier 0 has a slot for the open block of each layer, and `slots` more.
  decoding(std::size_t slots, way how, inclusion below = inclusion::inclusive)
      : how_(how),
        cache_(std::move(*tiered_cache<tier<ram>, tier<scripted>, Policy>::open(
            context_, pattern::layout(layers), {.capacity = (slots + layers) * pattern::block_bytes},
            {.capacity = 2 * blocks * pattern::block_bytes, .script = &script_}, {},
            {.transfers = {.inclusions = {inclusion::automatic, below}}}))),
        text_(cache_.make_sequence()) {
    cache_.use(how == way::prefetched ? any_prefetcher(layer_ahead({.blocks = ahead})) : any_prefetcher());
    for (std::uint32_t n = 0; n < depth; ++n) REQUIRE(pattern::append(text_, 16, layers, tag));
    REQUIRE(pattern::append(text_, 1, layers, tag));
    REQUIRE(context_.sync_wait(cache_.flush()));
  }

  counts run() {
    cache_stats before;
    for (std::uint64_t step = 1; step <= warm_up + steps; ++step) {
      if (step == warm_up + 1) before = cache_.stats();
      cache_.advance_step(step);
      auto token = text_.reserve(1);
      REQUIRE(token);
      for (std::uint32_t layer = 0; layer < layers; ++layer) one_layer(*token, layer);
    }
    const cache_stats after = cache_.stats();
    return {.hits = after.tiers[0].hits - before.tiers[0].hits,
            .misses = after.misses - before.misses,
            .used = after.prefetch.used - before.prefetch.used,
            .late = after.prefetch.late - before.prefetch.late};
  }

 private:
  void one_layer(const reservation& token, std::uint32_t layer) {
    if (how_ != way::acquire) {
      REQUIRE(context_.sync_wait(stream(cache_, text_, token, layer, query_, out_,
                                        {.window_bytes = pattern::block_bytes, .attend = false})));
      return;
    }
    const auto ids = pattern::sealed(text_, layer);
    for (std::size_t i = 0; i < ids.size(); i += window) {
      auto held = context_.sync_wait(cache_.acquire(std::span(ids).subspan(i, window)));
      REQUIRE(held);
      for (std::size_t b = 0; b < window; ++b)
        REQUIRE(pattern::holds(cache_.layout().groups[0], (*held)[b].data, layer, i + b, tag, 16));
    }
  }

  way how_;
  context context_{{.codec_threads = 0}};  // else hits depend on when the pool has checked what was read
  medium_script script_;
  tiered_cache<tier<ram>, tier<scripted>, Policy> cache_;
  sequence text_;
  std::vector<float> query_ = std::vector<float>(64), out_ = std::vector<float>(64);
};

// Of the steps that are counted.
std::uint64_t optimum(std::size_t slots) {
  std::vector<std::uint64_t> keys;
  for (std::uint64_t n = 0; n < (warm_up + steps) * blocks; ++n) keys.push_back(n % blocks);
  const std::vector<bool> hits = belady(keys, slots);
  return static_cast<std::uint64_t>(
      std::count(hits.begin() + static_cast<std::ptrdiff_t>(warm_up * blocks), hits.end(), true));
}

// The most hits that any order of evictions gives, by trying each.
std::size_t best_of_all_choices(std::span<const std::uint64_t> keys, std::set<std::uint64_t> resident,
                                std::size_t capacity) {
  if (keys.empty()) return 0;
  if (resident.count(keys[0]) != 0) return 1 + best_of_all_choices(keys.subspan(1), resident, capacity);
  if (resident.size() < capacity) {
    resident.insert(keys[0]);
    return best_of_all_choices(keys.subspan(1), resident, capacity);
  }
  std::size_t best = 0;
  for (const std::uint64_t victim : resident) {
    std::set<std::uint64_t> rest = resident;
    rest.erase(victim);
    rest.insert(keys[0]);
    best = std::max(best, best_of_all_choices(keys.subspan(1), rest, capacity));
  }
  return best;
}

}  // namespace

TEST_CASE("belady: hits as often as the best of all choices") {
  std::mt19937 random(5);
  for (int round = 0; round < 40; ++round) {
    std::vector<std::uint64_t> keys(10);
    for (std::uint64_t& key : keys) key = random() % 5;
    for (std::size_t capacity = 1; capacity <= 5; ++capacity) {
      const std::vector<bool> hits = belady(keys, capacity);
      CHECK(static_cast<std::size_t>(std::count(hits.begin(), hits.end(), true)) ==
            best_of_all_choices(keys, {}, capacity));
    }
  }
  CHECK(belady({}, 4).empty());
}

TEST_CASE("a cyclic decode: step_aware hits what Belady's optimum hits in the slots that windows leave") {
  for (const way how : {way::acquire, way::stream, way::prefetched})
    for (const std::size_t slots : {16u, 24u, 32u, 40u, blocks - 1}) {
      const counts c = decoding<step_aware>(slots, how).run();
      CAPTURE(static_cast<int>(how), slots);
      CHECK(c.hits >= optimum(slots - passing_slots(how)));
      CHECK(c.hits <= optimum(slots));
    }
}

TEST_CASE(
    "a cyclic decode: above an exclusive tier step_aware hits as much in the slots that are not kept free") {
  for (const way how : {way::acquire, way::stream, way::prefetched})
    for (const std::size_t slots : {24u, 32u, 40u}) {
      const counts c = decoding<step_aware>(slots, how, inclusion::exclusive).run();
      // An eighth of tier 0, rounded up, and one block that is on its way out without need.
      const std::size_t kept_free = (slots + layers) / 8 + 2;
      CAPTURE(static_cast<int>(how), slots);
      CHECK(c.hits >= optimum(slots - passing_slots(how) - kept_free));
      CHECK(c.hits <= optimum(slots));
    }
}

TEST_CASE("a cyclic decode: a least-recently-used order hits nothing") {
  for (const way how : {way::acquire, way::stream, way::prefetched})
    for (const std::size_t slots : {16u, 24u, 32u, 40u}) {
      const counts c = decoding<lru>(slots, how).run();
      CAPTURE(static_cast<int>(how), slots);
      CHECK(c.hits == 0);
    }
}

TEST_CASE("a cyclic decode: each demand is a hit, a miss, or a prefetch that came in time") {
  for (const std::size_t slots : {16u, 24u, 40u}) {
    CAPTURE(slots);
    const counts by_use = decoding<lru>(slots, way::prefetched).run();
    const counts by_schedule = decoding<step_aware>(slots, way::prefetched).run();
    for (const counts& c : {by_use, by_schedule})
      CHECK(c.hits + c.misses + c.used - c.late == steps * blocks);
    CHECK(by_use.used > 0);
    const counts alone = decoding<step_aware>(slots, way::stream).run();
    CHECK(alone.hits + alone.misses == steps * blocks);
    CHECK(alone.used == 0);
  }
}

TEST_CASE("a cyclic decode: a tier that holds the whole context misses nothing") {
  const counts c = decoding<step_aware>(blocks, way::acquire).run();
  CHECK(c.hits == steps * blocks);
  CHECK(c.misses == 0);
}
