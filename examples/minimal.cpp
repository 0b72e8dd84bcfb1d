// A decode loop over a KV cache that is larger than its hot tier. The numbers are made up; the path of a
// block is real.
#include <cstdio>
#include <vector>

#include "terrace/medium/nvme.hpp"  // opt-in: uses liburing where present
#include "terrace/terrace.hpp"
using namespace terrace;

using kv_cache = tiered_cache<tier<ram>,         // hot: fp16, attention reads it in place
                              tier<ram, q8_0>,   // warm: half the bytes
                              tier<nvme, q8_0>,  // cool: io_uring, O_DIRECT
                              lru>;              // who leaves first

constexpr std::uint32_t steps = 2048, layers = 4, heads = 8, kv_heads = 2, dim = 64;

int fail(const error& e) { return std::fprintf(stderr, "%s\n", e.message().c_str()), 1; }

// Stands in for the model: makes a token's query, and writes its key and value in place.
void project(std::uint32_t step, std::uint32_t layer, std::vector<float>& query, const plane_rows& k,
             const plane_rows& v) {
  for (std::size_t i = 0; i < query.size(); ++i)
    query[i] = static_cast<float>((i * 7 + step + layer) % 13) / 13;
  for (std::uint32_t head = 0; head < kv_heads; ++head)
    for (std::uint32_t d = 0; d < dim; ++d) {
      k.row<fp16>(0, head)[d] = to_fp16(static_cast<float>((step * 31 + d) % 17) / 17);
      v.row<fp16>(0, head)[d] = to_fp16(static_cast<float>(step) / steps);
    }
}

int main() {
  context ctx{{.codec_threads = 1}};
  const kv_layout layout{{{.layers = layers, .tokens = 64, .k = {kv_heads, dim}, .v = {kv_heads, dim}}}};
  auto cache = kv_cache::open(ctx, layout, {.capacity = 1_MiB}, {.capacity = 1_MiB}, {.capacity = 8_MiB});
  if (!cache) return fail(cache.error());

  auto sequence = cache->make_sequence();
  std::vector<float> query(heads * dim), out(heads * dim);
  for (std::uint32_t step = 0; step < steps; ++step) {
    cache->advance_step(step);
    auto token = sequence.reserve(1);  // out_of_capacity shows here
    if (!token) return fail(token.error());
    for (std::uint32_t layer = 0; layer < layers; ++layer) {
      project(step, layer, query, token->k(layer), token->v(layer));
      auto done = ctx.sync_wait(stream(*cache, sequence, *token, layer, query, out));
      if (!done) return fail(done.error());  // names the lost blocks
    }
    sequence.commit(std::move(*token), 1);
  }
  for (const tier_stats& t : cache->stats().tiers)
    std::printf("%-5.*s %-9.*s %6zu KiB resident, %llu hits, %llu loads\n", static_cast<int>(t.medium.size()),
                t.medium.data(), static_cast<int>(t.codec.size()), t.codec.data(), t.resident_bytes >> 10,
                static_cast<unsigned long long>(t.hits), static_cast<unsigned long long>(t.loads));
}
