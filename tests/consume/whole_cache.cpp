// A whole cache in a program that is not Terrace's, with the functions that it shares with others compiled apart.
#include <vector>

#include "terrace/terrace.hpp"

using namespace terrace;
using kv_cache = tiered_cache<tier<ram>, tier<ram, q8_0>, tier<directory, q4_0>, lru>;

int main() {
  context ctx{{.codec_threads = 1}};
  const kv_layout layout{{{.layers = 1, .tokens = 16, .k = {2, 64}, .v = {2, 64}}}};
  auto cache = kv_cache::open(ctx, layout, {.capacity = 1_MiB}, {.capacity = 1_MiB},
                              {.capacity = 1_MiB, .path = "cold"});
  if (!cache) return 1;
  auto sequence = cache->make_sequence();
  auto tokens = sequence.reserve(16);
  if (!tokens) return 2;
  std::vector<float> query(16 * 4 * 64), out(16 * 4 * 64);
  if (!ctx.sync_wait(stream(*cache, sequence, *tokens, 0, query, out))) return 3;
  sequence.commit(std::move(*tokens), 16);
  return ctx.sync_wait(cache->acquire(sequence.pages().rows[0])) ? 0 : 4;
}
