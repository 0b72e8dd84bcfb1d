// What each policy hits in a decode over a context larger than tier 0. Every step streams the blocks of all layers in
// order, so the accesses are a cyclic scan; all of it goes through a real cache over RAM and disk.
//
// A hit is a demanded block that has been in tier 0 since its last use. A block that a prefetch brought is not a hit;
// those are printed beside the rows. The limit is Belady's optimum over the same accesses, with forced insertion, and
// with as many slots as tier 0 has for keeping blocks: the slots of the windows in flight (and of prefetches, if any)
// only pass blocks through, for Belady as for the policies.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "report.hpp"
#include "terrace/medium/nvme.hpp"
#include "terrace/terrace.hpp"
#include "terrace/testing/belady.hpp"

namespace {

using namespace terrace;

using policies = one_of<lru, fifo, two_queue, s3_fifo, sieve, attention_weighted, step_aware>;
using kv_cache = tiered_cache<tier<ram>, tier<nvme>, policies>;

constexpr std::uint32_t layers = 8, heads = 1, dim = 64, tokens = 16;  // blocks of 4 KiB
constexpr std::uint32_t blocks_a_layer = 64, blocks = layers * blocks_a_layer;
constexpr std::uint64_t warm_up = 2, steps = 8;
constexpr std::size_t window = 2;    // slots that a window of a stream takes
constexpr std::uint32_t ahead = 16;  // blocks that layer_ahead asks for

// Slots that the windows of a stream take at once: attention/stream_run.hpp.
std::size_t in_flight(std::size_t slots) {
  return window * std::clamp<std::size_t>(slots / (8 * window), 6, 12);
}

struct counts {
  std::uint64_t hits = 0, brought = 0;
};

[[noreturn]] void give_up(const error& e) {
  std::fprintf(stderr, "cyclic_decode: %s\n", e.message().c_str());
  std::exit(1);
}

// Tier 0 has `slots` slots besides those of the layers' open blocks.
counts decode(std::string_view policy, std::size_t slots, bool prefetch) {
  context ctx;
  const kv_layout layout{{{.layers = layers, .tokens = tokens, .k = {heads, dim}, .v = {heads, dim}}}};
  const std::size_t block = layout.largest_block();
  auto cache = kv_cache::open(ctx, layout, {.capacity = (slots + layers) * block},
                              {.capacity = 2 * blocks * block}, {.choice = *policies::index_of(policy)});
  if (!cache) give_up(cache.error());
  cache->use(prefetch ? any_prefetcher(layer_ahead({.blocks = ahead})) : any_prefetcher());

  sequence text = cache->make_sequence();
  for (std::uint32_t n = 0; n <= blocks_a_layer; ++n) {
    const std::uint32_t count = n == blocks_a_layer ? 1 : tokens;
    auto filled = text.reserve(count);
    if (!filled) give_up(filled.error());
    text.commit(std::move(*filled), count);
  }
  if (auto saved = ctx.sync_wait(cache->flush()); !saved) give_up(saved.error());

  const std::vector<float> query(dim);
  std::vector<float> out(dim);
  cache_stats before;
  for (std::uint64_t step = 1; step <= warm_up + steps; ++step) {
    if (step == warm_up + 1) before = cache->stats();
    cache->advance_step(step);
    auto token = text.reserve(1);  // dropped without a commit: the context stays as long as it is
    if (!token) give_up(token.error());
    for (std::uint32_t layer = 0; layer < layers; ++layer) {
      auto done = ctx.sync_wait(
          stream(*cache, text, *token, layer, query, out, {.window_bytes = window * block, .attend = false}));
      if (!done) give_up(done.error());
    }
  }
  const cache_stats after = cache->stats();
  return {.hits = after.tiers[0].hits - before.tiers[0].hits,
          .brought = after.prefetch.used - before.prefetch.used};
}

std::uint64_t optimum(std::size_t slots) {
  std::vector<std::uint64_t> keys;
  for (std::uint64_t n = 0; n < (warm_up + steps) * blocks; ++n) keys.push_back(n % blocks);
  const std::vector<bool> hits = belady(keys, slots);
  std::uint64_t count = 0;
  for (std::size_t n = warm_up * blocks; n < hits.size(); ++n) count += hits[n] ? 1 : 0;
  return count;
}

double share(std::uint64_t count) { return static_cast<double>(count) / static_cast<double>(steps * blocks); }

std::string text_of(const char* format, auto... values) {
  char text[160];
  std::snprintf(text, sizeof text, format, values...);
  return text;
}

}  // namespace

int main(int argc, char** argv) {
  bench::report out("cyclic_decode", argc, argv);
  for (const bool prefetch : {false, true})
    for (const std::size_t percent : {25u, 50u, 75u}) {
      const std::size_t slots = blocks * percent / 100;
      const std::size_t passing = in_flight(slots) + (prefetch ? ahead : 0);
      const double limit = share(optimum(slots - passing));
      out.note(
          text_of("%zu slots for %u blocks, %zu of them for windows%s; the optimum with all of them is %.3f",
                  slots, blocks, passing, prefetch ? " and prefetches" : "", share(optimum(slots))));
      std::string brought = "brought ahead:";
      for (const std::string_view policy : policies::names) {
        const std::string name =
            text_of("%zu%%%s, ", percent, prefetch ? " and layer_ahead" : "") + std::string(policy);
        if (!out.wanted(name)) continue;
        const counts c = decode(policy, slots, prefetch);
        const bool promised = policy == step_aware::name;
        out.add({.name = name,
                 .unit = "hits an access",
                 .limit_name = "Belady",
                 .goal = promised ? std::optional(1.0) : std::nullopt},
                share(c.hits), limit);
        brought += text_of(" %.3f", share(c.brought));
      }
      if (prefetch) out.note(brought);
    }
  return out.finish();
}
