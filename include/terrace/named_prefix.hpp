#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "terrace/core/block.hpp"
#include "terrace/core/result.hpp"
#include "terrace/kv_store.hpp"
#include "terrace/sequence.hpp"

/// Prefixes that outlive the process: names for the blocks of a sequence, so that a cache opened over the same tiers
/// can begin a request with what an earlier cache computed.
///
///     const std::vector<block_key> keys = your_hashes(prompt);  // one a chunk of layout.chunk_tokens() tokens
///     sequence s = cache.make_sequence();
///     auto known = adopt_named_prefix(cache, s, keys);            // tokens that need not be computed
///     ... compute and commit the rest ...
///     auto named = name_prefix(cache, s, keys);
///     auto done = ctx.sync_wait(cache.flush());                   // from here on it survives a crash
///
/// keys[n] identifies the first n + 1 chunks: 128 bits of a hash of all their tokens, of the model, of how KV is laid
/// out and split among ranks, and of the tenant if tenants may not share. Unlike in `prefix_index`, tokens are not
/// compared here: an engine that serves strangers should use a hash with a secret key (SipHash-128, BLAKE2, HMAC), or
/// one of them might find a text whose key collides with another's.
///
/// Named blocks stay in the cache, in whichever tier, until `forget_prefix`: their number is up to the engine. Owner
/// thread only; each call is O(blocks of the prefix).
namespace terrace {
inline namespace TERRACE_EX {

/// The name of the n-th block of a chunk, counted row after row.
constexpr block_key key_in_chunk(block_key chunk, std::size_t n) noexcept {
  std::uint64_t mixed = (n + 1) * 0x9e3779b97f4a7c15u;  // spreads neighbours over all bits
  mixed ^= mixed >> 32;
  return {.low = chunk.low ^ mixed, .high = chunk.high};
}

/// How many tokens of a prefix have resident blocks under these names: whole chunks, from the first on. Changes
/// nothing: for schedulers, and for ranks that must agree on their minimum.
inline std::uint64_t match_named_prefix(const kv_store& cache, std::span<const block_key> chunks) {
  const std::size_t blocks = cache.layout().chunk_blocks();
  std::size_t c = 0;
  const auto whole = [&] {
    for (std::size_t n = 0; n < blocks; ++n)
      if (const auto id = cache.find(key_in_chunk(chunks[c], n)); !id || !cache.resident(*id)) return false;
    return blocks != 0;
  };
  while (c < chunks.size() && whole()) ++c;
  return c * cache.layout().chunk_tokens();
}

/// Begins an empty sequence with the longest named prefix, by reference, and returns its length in tokens. Damage
/// shows when a block is read: it is then lost. Errors: invalid_argument if a name belongs to a block of another row
/// or layout. Precondition: `s` is an empty sequence of this cache, without a reservation.
inline result<std::uint64_t> adopt_named_prefix(kv_store& cache, sequence& s,
                                                std::span<const block_key> chunks) {
  TERRACE_ASSERT(s.length() == 0, "only an empty sequence can begin with a prefix that has names");
  const std::uint64_t tokens = match_named_prefix(cache, chunks);
  const std::size_t chunk = cache.layout().chunk_tokens();
  std::vector<block_id> blocks;
  std::size_t first = 0;  // of the row's blocks in a chunk
  for (std::size_t row = 0; row < s.pages().rows.size(); ++row) {
    const std::size_t each = chunk / s.pages().group(row).tokens;
    for (std::size_t c = 0; c < tokens / chunk; ++c)
      for (std::size_t n = first; n < first + each; ++n)
        blocks.push_back(*cache.find(key_in_chunk(chunks[c], n)));
    first += each;
  }
  if (auto shared = s.append_shared(tokens, blocks); !shared) return propagate(shared.error());
  return tokens;
}

/// Names the sealed chunks of `s`, at most as many as there are keys, and returns how many tokens have names now:
/// fewer if `s` has forgotten blocks. What another sequence has already named is left as it is, unless no tier has it
/// any more. Errors: invalid_argument if a block has another name; the chunks before it keep the names they got.
inline result<std::uint64_t> name_prefix(kv_store& cache, const sequence& s,
                                         std::span<const block_key> chunks) {
  const std::size_t chunk = cache.layout().chunk_tokens();
  const std::size_t sealed = std::min<std::size_t>(chunks.size(), s.length() / chunk);
  for (std::size_t c = 0; c < sealed; ++c) {
    std::size_t n = 0;
    for (std::size_t row = 0; row < s.pages().rows.size(); ++row) {
      const std::size_t each = chunk / s.pages().group(row).tokens;
      for (std::size_t i = c * each; i < (c + 1) * each; ++i) {
        const block_id id = s.pages().rows[row][i];
        const block_key key = key_in_chunk(chunks[c], n++);
        const std::optional<block_id> known = cache.find(key);
        if (known && cache.resident(*known)) continue;
        if (!id.valid()) return c * chunk;
        if (known) cache.forget(key);
        if (auto named = cache.name(id, key); !named) return propagate(named.error());
      }
    }
  }
  return sealed * chunk;
}

/// Removes the names of these chunks: blocks that no sequence refers to are let go, and the next flush makes the
/// removal durable. Chunks without names are skipped.
inline void forget_prefix(kv_store& cache, std::span<const block_key> chunks) {
  const std::size_t blocks = cache.layout().chunk_blocks();
  for (const block_key chunk : chunks)
    for (std::size_t n = 0; n < blocks; ++n) cache.forget(key_in_chunk(chunk, n));
}

}  // namespace TERRACE_EX
}  // namespace terrace
