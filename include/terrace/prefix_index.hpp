#pragma once
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <vector>

#include "terrace/cache/planner.hpp"
#include "terrace/kv_store.hpp"
#include "terrace/prefix_tree.hpp"
#include "terrace/sequence.hpp"

namespace terrace {

/// How a prefix index is set up.
struct prefix_index_options {
  std::size_t chunks = 4096;  ///< the most that it remembers; its memory is taken at once
  /// The most blocks of one tenant, in whole chunks, one at least; 0: no limit of its own. A chunk has a block of
  /// each row of layers (kv_layout::chunk_blocks): with 32 layers, 32 of them.
  std::size_t tenant_blocks = 0;
  std::uint64_t salt =
      0;  ///< begins every hash. A secret number keeps tenants from making collisions on purpose
};

/// What a prefix index holds, and what came of asking it.
struct prefix_index_stats {
  std::size_t chunks = 0;
  std::size_t blocks = 0;
  std::size_t memory_bytes = 0;      ///< of the index, not of the blocks
  std::uint64_t asked_tokens = 0;    ///< by `adopt`
  std::uint64_t adopted_tokens = 0;  ///< of these
  std::uint64_t evicted = 0;         ///< chunks forgotten because of the index's size or a tenant's quota
  std::uint64_t expired = 0;         ///< chunks of which the cache has let a block go
};

inline namespace TERRACE_EX {

/// Which prefixes of token sequences the cache holds already: sharing between requests.
///
///     prefix_index prefixes(cache);
///     sequence s = cache.make_sequence();
///     const std::uint64_t known = prefixes.adopt(s, prompt, tenant);   // by reference: nothing is copied
///     ... compute and commit prompt[known...], decode ...
///     prefixes.insert(s, tokens, tenant);                              // tokens: all of s, from the first on
///
/// It cuts sequences into chunks: the least number of tokens that fills whole blocks of every layer group. An entry is
/// one chunk after one particular other entry (or at the start, for one tenant), with its tokens and the blocks of all
/// rows. So a hit means that every token before it is equal too: tokens are compared, never hashes alone. Tenants are
/// told apart by their numbers, which are compared as well: equal texts of two tenants share nothing.
///
/// Blocks that it knows stay in the cache when no sequence refers to them (planner::cache_block), wherever the tiers'
/// policies have moved them, and are dropped by those policies' choice when room is needed; the chunks that follow are
/// forgotten then as well. Where it is full, the tenant with the most chunks gives the one that was not asked for
/// longest and that no other builds on. Policies know its blocks by keys of their content, so that their ghosts
/// recognise a prefix that is computed anew.
///
/// For one model over one cache, and one index for each cache; owner thread only. It must end before the cache does.
/// Memory: for each of `chunks` 4 bytes a token, 8 a block, and `overhead_bytes`; a hash map's node for each tenant.
template <class Hash = chained_hash>
class basic_prefix_index {
 public:
  using options = prefix_index_options;

  explicit basic_prefix_index(kv_store& cache, options o = {})
      : planner_(&cache.control()),
        chunk_(cache.layout().chunk_tokens()),
        blocks_a_chunk_(std::max<std::size_t>(cache.layout().chunk_blocks(), 1)),
        most_of_tenant_(o.tenant_blocks == 0 ? std::numeric_limits<std::size_t>::max()
                                             : std::max<std::size_t>(1, o.tenant_blocks / blocks_a_chunk_)),
        known_(std::max<std::size_t>(o.chunks, 1), chunk_, o.salt),
        blocks_(known_.capacity() * blocks_a_chunk_) {}
  basic_prefix_index(basic_prefix_index&&) = delete;
  ~basic_prefix_index() { clear(); }

  /// Tokens of one chunk.
  std::size_t chunk_tokens() const noexcept { return chunk_; }

  /// How many of the first of `tokens` are there: a multiple of chunk_tokens(). Changes nothing: for schedulers
  /// that choose among requests or machines. O(tokens).
  std::uint64_t match(std::span<const token_id> tokens, std::uint64_t tenant = 0) const {
    return walk(tokens, tenant).chunks * chunk_;
  }
  /// Begins an empty sequence with the longest prefix of `tokens` that is resident in any tier, by reference, and
  /// returns its tokens. Where an engine wants the logits of the last token, it asks for all but that one.
  /// O(tokens). Preconditions: `s` is an empty sequence of this cache, without a reservation.
  std::uint64_t adopt(sequence& s, std::span<const token_id> tokens, std::uint64_t tenant = 0);
  /// Remembers the sealed chunks of `s`, whose tokens these are. What is known already is left as it is, and where
  /// it is not resident any more it is replaced. Returns the tokens of `s` that are known now, which are fewer than its
  /// sealed ones where the index or the tenant's quota is full of this very text, or where `s` has forgotten blocks.
  /// O(tokens).
  std::uint64_t insert(const sequence& s, std::span<const token_id> tokens, std::uint64_t tenant = 0);

  /// Forgets all that a tenant has; blocks that no sequence refers to are let go. O(chunks of the tenant).
  void drop_tenant(std::uint64_t tenant);
  void clear() {
    while (const auto tenant = known_.any_tenant()) drop_tenant(*tenant);
  }

  prefix_index_stats stats() {
    sweep();
    prefix_index_stats all = counts_;
    all.chunks = known_.size();
    all.blocks = all.chunks * blocks_a_chunk_;
    all.memory_bytes = known_.memory_bytes() + blocks_.size() * sizeof(block_id);
    return all;
  }

  /// Bytes of a chunk beside its tokens and blocks, and two buckets at most.
  static constexpr std::size_t overhead_bytes = prefix_tree<Hash>::overhead_bytes;

 private:
  using place = typename prefix_tree<Hash>::place;
  static constexpr std::uint32_t none = index_link::none;

  std::span<block_id> blocks_of(std::uint32_t e) noexcept {
    return std::span(blocks_).subspan(e * blocks_a_chunk_, blocks_a_chunk_);
  }
  std::span<const block_id> blocks_of(std::uint32_t e) const noexcept {
    return std::span(blocks_).subspan(e * blocks_a_chunk_, blocks_a_chunk_);
  }
  // What policies know the n-th block of an entry by: never 0.
  std::uint64_t key_of(std::uint32_t e, std::size_t n) const noexcept {
    const std::uint64_t tenant = known_.tenant(e);
    const std::array parts{static_cast<token_id>(n), static_cast<token_id>(tenant),
                           static_cast<token_id>(tenant >> 32)};
    return chained_hash{}(known_.hash(e), parts) | 1u;
  }
  bool resident(std::uint32_t e) const noexcept {
    const auto blocks = blocks_of(e);
    return std::all_of(blocks.begin(), blocks.end(), [&](block_id id) { return planner_->resident(id); });
  }
  place walk(std::span<const token_id> tokens, std::uint64_t tenant) const {
    return known_.walk(tokens, tenant, [&](std::uint32_t e) { return resident(e); });
  }

  bool make_room(std::uint64_t tenant, std::uint32_t parent);
  bool take_blocks(const sequence& s, std::size_t chunk, std::uint32_t e);
  void release_blocks(std::uint32_t e) noexcept;
  // With all that builds on it.
  void erase(std::uint32_t e) {
    known_.erase(e, [&](std::uint32_t each) { release_blocks(each); });
  }
  void sweep();

  planner* planner_;
  std::size_t chunk_, blocks_a_chunk_, most_of_tenant_;
  prefix_tree<Hash> known_;
  std::vector<block_id> blocks_;  // [entry][row][block]
  std::vector<block_id> scratch_;
  prefix_index_stats counts_;
};

/// The index as it is used; the hash is a parameter for tests, which make it collide.
using prefix_index = basic_prefix_index<>;

template <class Hash>
std::uint64_t basic_prefix_index<Hash>::adopt(sequence& s, std::span<const token_id> tokens,
                                              std::uint64_t tenant) {
  TERRACE_ASSERT(s.length() == 0, "only an empty sequence can begin with a prefix that is known");
  TERRACE_ASSERT(s.pages().owner == planner_, "a sequence can begin with blocks of its own cache alone");
  sweep();
  const place at = walk(tokens, tenant);
  counts_.asked_tokens += tokens.size();
  scratch_.resize(at.chunks * blocks_a_chunk_);
  // From the end to the start, and within a chunk row after row: gathered into row after row over all chunks.
  std::size_t c = at.chunks;
  for (std::uint32_t e = at.last; e != none; e = known_.parent(e)) {
    --c;
    std::size_t from = 0, to = 0;
    for (std::size_t row = 0; row < s.pages().rows.size(); ++row) {
      const std::size_t each = chunk_ / s.pages().group(row).tokens;
      std::copy_n(blocks_of(e).begin() + static_cast<std::ptrdiff_t>(from), each,
                  scratch_.begin() + static_cast<std::ptrdiff_t>(to + c * each));
      from += each;
      to += at.chunks * each;
    }
  }
  // What is resident can be shared: but by another cache's sequence.
  if (auto shared = s.append_shared(at.chunks * chunk_, scratch_); !shared) return 0;
  counts_.adopted_tokens += at.chunks * chunk_;
  known_.touch(at.last);
  return at.chunks * chunk_;
}

template <class Hash>
std::uint64_t basic_prefix_index<Hash>::insert(const sequence& s, std::span<const token_id> tokens,
                                               std::uint64_t tenant) {
  TERRACE_ASSERT(tokens.size() >= s.length(), "a sequence is inserted with all of its tokens");
  sweep();
  const std::size_t sealed = static_cast<std::size_t>(s.length()) / chunk_;
  place at = walk(tokens.first(sealed * chunk_), tenant);
  known_.touch(at.last);
  while (at.chunks < sealed) {
    const auto rest = tokens.subspan(at.chunks * chunk_);
    place further = known_.next(at, rest, tenant);
    if (further.last == none) {
      if (!make_room(tenant, at.last)) break;
      further.last = known_.append(at, further.hash, rest, tenant);
    } else if (resident(further.last)) {
      at = further;
      continue;
    }
    release_blocks(further.last);
    if (!take_blocks(s, at.chunks, further.last)) {
      erase(further.last);
      break;
    }
    at = further;
  }
  known_.touch(at.last);
  return at.chunks * chunk_;
}

// Room for one more chunk of a tenant, after `parent`. False: nothing can go but what it is to follow.
template <class Hash>
bool basic_prefix_index<Hash>::make_room(std::uint64_t tenant, std::uint32_t parent) {
  const std::optional<std::uint32_t> victim = known_.gives_way(tenant, parent, most_of_tenant_);
  if (!victim) return false;
  if (*victim != none) {
    erase(*victim);
    ++counts_.evicted;
  }
  return true;
}

// The blocks of a chunk of `s` become the entry's. False: some of them are forgotten, or another entry's.
template <class Hash>
bool basic_prefix_index<Hash>::take_blocks(const sequence& s, std::size_t chunk, std::uint32_t e) {
  const page_table& pages = s.pages();
  std::size_t n = 0;
  for (std::size_t row = 0; row < pages.rows.size(); ++row) {
    const std::size_t each = chunk_ / pages.group(row).tokens;
    for (std::size_t i = chunk * each; i < (chunk + 1) * each; ++i) {
      const block_id id = pages.rows[row][i];
      if (!id.valid() || planner_->record(id.index).cached != none) return false;
      planner_->cache_block(id.index, e, key_of(e, n));
      blocks_of(e)[n++] = id;
    }
  }
  return true;
}

template <class Hash>
void basic_prefix_index<Hash>::release_blocks(std::uint32_t e) noexcept {
  for (block_id& id : blocks_of(e)) {
    if (id.valid()) {
      const block_record& r = planner_->record(id.index);
      if (r.generation == id.generation && r.cached == e) planner_->uncache_block(id.index);
    }
    id = {};
  }
}

// Entries of which the cache has let a block go.
template <class Hash>
void basic_prefix_index<Hash>::sweep() {
  std::vector<std::uint32_t>& expired = planner_->expired_entries();
  for (const std::uint32_t e : expired) {
    if (!known_.alive(e)) continue;
    erase(e);
    ++counts_.expired;
  }
  expired.clear();
}

template <class Hash>
void basic_prefix_index<Hash>::drop_tenant(std::uint64_t tenant) {
  sweep();
  for (std::uint32_t e = known_.oldest_of(tenant); e != none; e = known_.oldest_of(tenant)) erase(e);
}

}  // namespace TERRACE_EX
}  // namespace terrace
