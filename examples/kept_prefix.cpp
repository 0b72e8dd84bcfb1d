// A service that restarts: the KV of its system prompt is kept in a file, under names, and is not computed twice. Run
// it twice with the same FILE: the second run computes nothing, and its output differs by what q8_0 loses. The
// numbers are made up; what is kept is real.
#include <cstdio>
#include <numeric>
#include <string>
#include <vector>

#include "terrace/medium/nvme.hpp"
#include "terrace/terrace.hpp"
using namespace terrace;

using kv_cache = tiered_cache<tier<ram>, tier<nvme, q8_0>, lru>;

constexpr std::uint32_t layers = 4, heads = 8, kv_heads = 2, dim = 64;

int fail(const error& e) { return std::fprintf(stderr, "kept_prefix: %s\n", e.message().c_str()), 1; }

// A key for each chunk: a hash of the tokens up to its end. Good enough for texts of one's own; a service for
// strangers takes a 128-bit hash with a secret key, and starts it with the model's version and the tenant.
std::vector<block_key> keys_of(const std::vector<token_id>& tokens, std::size_t chunk) {
  std::vector<block_key> keys;
  block_key hash{.low = 0xcbf29ce484222325u, .high = 0x84222325cbf29ce4u};
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    hash.low = (hash.low ^ tokens[i]) * 0x100000001b3u;
    hash.high = (hash.high + tokens[i]) * 0xff51afd7ed558ccdu ^ hash.high >> 33;
    if ((i + 1) % chunk == 0) keys.push_back(hash);
  }
  return keys;
}

// Stands in for the model: computes K and V of tokens [s.length(), tokens.size()), 64 at a time.
result<void> compute(sequence& s, const std::vector<token_id>& tokens) {
  while (s.length() < tokens.size()) {
    const auto left = tokens.size() - static_cast<std::size_t>(s.length());
    auto room = s.reserve(static_cast<std::uint32_t>(std::min<std::size_t>(left, 64)));
    if (!room) return propagate(room.error());
    for (std::uint32_t t = 0; t < room->tokens(); ++t)
      for (std::uint32_t layer = 0; layer < layers; ++layer)
        for (std::uint32_t head = 0; head < kv_heads; ++head)
          for (std::uint32_t d = 0; d < dim; ++d) {
            const auto value = static_cast<float>((tokens[room->first_position() + t] + layer + d) % 32) / 32;
            room->k(layer).row<fp16>(t, head)[d] = to_fp16(value);
            room->v(layer).row<fp16>(t, head)[d] = to_fp16(-value);
          }
    const std::uint32_t computed = room->tokens();
    s.commit(std::move(*room), computed);
  }
  return {};
}

int main(int argc, char** argv) {
  if (argc != 2) return std::fprintf(stderr, "kept_prefix: usage: kept_prefix FILE\n"), 2;
  std::vector<token_id> prompt(2048);
  std::iota(prompt.begin(), prompt.end(), 1u);

  context ctx{{.codec_threads = 1}};
  const kv_layout layout{{{.layers = layers, .tokens = 64, .k = {kv_heads, dim}, .v = {kv_heads, dim}}}};
  auto cache =
      kv_cache::open(ctx, layout, {.capacity = 1_MiB}, {.capacity = 16_MiB, .path = argv[1], .keep = true});
  if (!cache) return fail(cache.error());

  const std::vector<block_key> keys = keys_of(prompt, layout.chunk_tokens());
  sequence request = cache->make_sequence();
  const auto known = adopt_named_prefix(*cache, request, keys);
  if (!known) return fail(known.error());
  if (auto done = compute(request, prompt); !done) return fail(done.error());
  if (auto named = name_prefix(*cache, request, keys); !named) return fail(named.error());
  if (auto done = ctx.sync_wait(cache->flush()); !done)
    return fail(done.error());  // it survives a crash from here

  std::vector<float> query(heads * dim, 0.125f), out(heads * dim);
  auto token = request.reserve(1);
  if (!token) return fail(token.error());
  for (std::uint32_t layer = 0; layer < layers; ++layer)
    if (auto done = ctx.sync_wait(stream(*cache, request, *token, layer, query, out)); !done)
      return fail(done.error());
  std::printf("%llu of %zu tokens were known; the first output of the last layer is %.6f\n",
              static_cast<unsigned long long>(*known), prompt.size(), static_cast<double>(out[0]));
}
