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
  /// The most blocks of one tenant, rounded down to whole chunks, but at least one chunk; 0: no limit per tenant. A
  /// chunk has kv_layout::chunk_blocks blocks over all rows of layers: with 32 layers, for example, 32.
  std::size_t tenant_blocks = 0;
  std::uint64_t salt =
      0;  ///< begins every hash. A secret number keeps tenants from making collisions on purpose
};

/// What a prefix index holds, and what lookups have achieved.
struct prefix_index_stats {
  std::size_t chunks = 0;
  std::size_t blocks = 0;
  std::size_t memory_bytes = 0;      ///< of the index itself, without the blocks
  std::uint64_t asked_tokens = 0;    ///< by `adopt`
  std::uint64_t adopted_tokens = 0;  ///< of these
  std::uint64_t evicted = 0;         ///< chunks forgotten because of the index's size or a tenant's quota
  std::uint64_t expired = 0;         ///< chunks of which the cache has let a block go
};

inline namespace TERRACE_EX {

/// Which prefixes of token sequences the cache already holds, so that requests can share them.
///
///     prefix_index prefixes(cache);
///     sequence s = cache.make_sequence();
///     const std::uint64_t known = prefixes.adopt(s, prompt, tenant);   // by reference: nothing is copied
///     ... compute and commit prompt[known...], decode ...
///     prefixes.insert(s, tokens, tenant);                              // tokens: all of s, from the first on
///
/// It cuts sequences into chunks: the least number of tokens that fills whole blocks of every layer group. An entry
/// is one chunk of one tenant that follows one particular other entry (or stands at the start), with its tokens and
/// the blocks of all rows. So a hit means that every token before it is equal too: tokens are always compared, never
/// just hashes. Tenants are told apart by their numbers, which are compared as well: equal texts of two tenants share
/// nothing.
///
/// Blocks that it knows stay in the cache when no sequence refers to them (planner::cache_block), wherever the tiers'
/// policies have moved them. When room is needed, the policies choose which of them to drop; the chunks that follow
/// are then forgotten as well. When the index is full, the tenant with the most chunks gives up its least recently
/// asked-for chunk that no other builds on. Policies know its blocks by keys of their content, so that their ghosts
/// recognise a prefix that is recomputed.
///
/// One index serves one model over one cache, and a cache has one index. Owner thread only. It must end before the
/// cache does. Memory: for each of `chunks`, 4 bytes per token, 8 per block, and `overhead_bytes`; plus a hash map
/// node per tenant.
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

  /// The length of the longest prefix of `tokens` that is resident: a multiple of chunk_tokens(). Changes nothing:
  /// for schedulers that choose among requests or machines. O(tokens).
  std::uint64_t match(std::span<const token_id> tokens, std::uint64_t tenant = 0) const {
    return walk(tokens, tenant).chunks * chunk_;
  }
  /// Begins an empty sequence with the longest prefix of `tokens` that is resident in any tier, by reference, and
  /// returns its length in tokens. An engine that wants the logits of the last token asks for all but that one.
  /// O(tokens). Preconditions: `s` is an empty sequence of this cache, without a reservation.
  std::uint64_t adopt(sequence& s, std::span<const token_id> tokens, std::uint64_t tenant = 0);
  /// Remembers the sealed chunks of `s`, whose tokens these are. Known chunks are left as they are, unless they are
  /// no longer resident: then they are replaced. Returns how many tokens of `s` are known now: fewer than its sealed
  /// ones if the index or the tenant's quota is full of this very text, or if `s` has forgotten blocks. O(tokens).
  std::uint64_t insert(const sequence& s, std::span<const token_id> tokens, std::uint64_t tenant = 0);

  /// Forgets everything of a tenant; blocks that no sequence refers to are let go. O(chunks of the tenant).
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

  /// Bytes per chunk besides its tokens and blocks; hash buckets, at most two per chunk, are not included.
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
  // The key by which policies know the n-th block of an entry: never 0.
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
  // Erases an entry and all that build on it.
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

/// The index that engines use; the hash is a parameter only so that tests can make it collide.
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
  // Walks from the last chunk to the first. An entry holds its blocks row after row; the result holds, row after row,
  // the blocks of all chunks.
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
  // What is resident can be shared, except by another cache's sequence.
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

// Room for one more chunk of a tenant, after `parent`. False: nothing can go except what the chunk must follow.
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

// Gives the entry the blocks of a chunk of `s`. False: some of them are forgotten, or belong to another entry.
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

// Erases entries of which the cache has let a block go.
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
