// A chat service in miniature: each turn of each conversation is a request of its own, which begins with what the
// cache already has. The numbers are made up; what is shared is real.
#include <cstdio>
#include <vector>

#include "terrace/terrace.hpp"
using namespace terrace;

using kv_cache = tiered_cache<tier<ram>, tier<ram>, prefix_aware>;

constexpr std::uint32_t layers = 2, kv_heads = 2, dim = 64;

int fail(const error& e) { return std::fprintf(stderr, "%s\n", e.message().c_str()), 1; }

// Stands in for the model: computes K and V of tokens [s.length(), tokens.size()), 64 at a time.
result<void> compute(sequence& s, const std::vector<token_id>& tokens) {
  while (s.length() < tokens.size()) {
    const auto left = tokens.size() - static_cast<std::size_t>(s.length());
    auto room = s.reserve(static_cast<std::uint32_t>(std::min<std::size_t>(left, 64)));
    if (!room) return failure{room.error()};
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

int main() {
  context ctx{{.codec_threads = 1}};
  const kv_layout layout{{{.layers = layers, .tokens = 64, .k = {kv_heads, dim}, .v = {kv_heads, dim}}}};
  auto cache = kv_cache::open(ctx, layout, {.capacity = 4_MiB}, {.capacity = 8_MiB});
  if (!cache) return fail(cache.error());
  prefix_index prefixes(*cache, {.chunks = 1024, .tenant_blocks = 400});

  std::vector<token_id> system_prompt(512);
  for (std::size_t i = 0; i < system_prompt.size(); ++i)
    system_prompt[i] = static_cast<token_id>(i * i % 997);

  std::vector<std::vector<token_id>> conversations(8, system_prompt);
  std::uint64_t computed = 0, asked = 0;
  for (std::uint32_t turn = 0; turn < 3; ++turn)
    for (std::uint32_t n = 0; n < conversations.size(); ++n) {
      std::vector<token_id>& tokens = conversations[n];
      for (token_id i = 0; i < 128; ++i) tokens.push_back(1000 * n + 200 * turn + i);  // question and answer
      const std::uint64_t tenant = n % 2;

      sequence request = cache->make_sequence();
      const std::uint64_t known = prefixes.adopt(request, tokens, tenant);
      if (auto done = compute(request, tokens); !done) return fail(done.error());
      prefixes.insert(request, tokens, tenant);

      asked += tokens.size();
      computed += tokens.size() - known;
    }
  const cache_stats s = cache->stats();
  std::printf("%llu tokens asked for, %llu computed; %llu blocks alive, %llu dropped; index %zu KiB\n",
              static_cast<unsigned long long>(asked), static_cast<unsigned long long>(computed),
              static_cast<unsigned long long>(s.blocks), static_cast<unsigned long long>(s.dropped),
              prefixes.stats().memory_bytes >> 10);
}
