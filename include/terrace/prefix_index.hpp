#pragma once
#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <unordered_map>
#include <vector>

#include "terrace/cache/planner.hpp"
#include "terrace/cache/store.hpp"
#include "terrace/core/index_list.hpp"
#include "terrace/core/mix64.hpp"
#include "terrace/sequence.hpp"

namespace terrace {

/// A token, as the model's vocabulary numbers it.
using token_id = std::uint32_t;

/// Hashes a chunk of tokens and what stands before it. It only finds candidates, whose tokens are then compared: a
/// collision costs time, and nothing else. Steps of splitmix64. O(tokens).
struct chained_hash {
  std::uint64_t operator()(std::uint64_t before, std::span<const token_id> tokens) const noexcept {
    std::uint64_t x = before;
    for (const token_id token : tokens) {
      x = (x ^ token) * 0x9e3779b97f4a7c15u;
      x ^= x >> 29;
    }
    return mix64(x);
  }
};

/// How a prefix index is set up.
struct prefix_index_options {
  std::size_t chunks = 4096;      ///< the most that it remembers; its memory is taken at once
  std::size_t tenant_blocks = 0;  ///< the most blocks of one tenant; 0: no limit of its own
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

  explicit basic_prefix_index(kv_store& cache, options o = {}) : planner_(&cache.control()), options_(o) {
    for (const layer_group& g : cache.layout().groups)
      if (!g.holds_tensors()) chunk_ = std::lcm(chunk_, std::size_t{g.tokens});
    for (const layer_group& g : cache.layout().groups)
      if (!g.holds_tensors()) blocks_a_chunk_ += g.block_rows() * (chunk_ / g.tokens);
    options_.chunks = std::max<std::size_t>(options_.chunks, 1);
    entries_.resize(options_.chunks);
    age_links_.resize(options_.chunks);
    sibling_links_.resize(options_.chunks);
    tokens_.resize(options_.chunks * chunk_);
    blocks_.resize(options_.chunks * blocks_a_chunk_);
    buckets_.assign(std::bit_ceil(options_.chunks), none);
    for (std::uint32_t e = 0; e < options_.chunks; ++e) free_.push_back(age_links_, e);
  }
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
    while (!tenants_.empty()) drop_tenant(tenants_.begin()->first);
  }

  prefix_index_stats stats() {
    sweep();
    prefix_index_stats all = counts_;
    all.chunks = options_.chunks - free_.size();
    all.blocks = all.chunks * blocks_a_chunk_;
    all.memory_bytes =
        options_.chunks * (overhead_bytes + chunk_ * sizeof(token_id) + blocks_a_chunk_ * sizeof(block_id)) +
        buckets_.size() * sizeof(std::uint32_t);
    return all;
  }

 private:
  static constexpr std::uint32_t none = index_link::none;
  struct entry {
    std::uint64_t hash = 0;  // of all tokens up to its end
    std::uint64_t tenant = 0;
    std::uint32_t parent = none;
    std::uint32_t next_in_bucket = none;
    index_list children{};
    bool alive = false;
  };

 public:
  /// Bytes of a chunk beside its tokens and blocks, and two buckets at most.
  static constexpr std::size_t overhead_bytes = sizeof(entry) + 2 * sizeof(index_link);

 private:
  struct place {
    std::uint32_t last = none;  // the deepest entry that matches
    std::size_t chunks = 0;
    std::uint64_t hash = 0;  // up to its end
  };

  std::span<block_id> blocks_of(std::uint32_t e) noexcept {
    return std::span(blocks_).subspan(e * blocks_a_chunk_, blocks_a_chunk_);
  }
  std::span<const block_id> blocks_of(std::uint32_t e) const noexcept {
    return std::span(blocks_).subspan(e * blocks_a_chunk_, blocks_a_chunk_);
  }
  std::size_t bucket_of(std::uint64_t hash) const noexcept { return hash & (buckets_.size() - 1); }

  std::uint32_t find(const place& after, std::uint64_t hash, std::span<const token_id> chunk,
                     std::uint64_t tenant) const noexcept {
    std::uint32_t e = buckets_[bucket_of(hash)];
    for (; e != none; e = entries_[e].next_in_bucket) {
      const entry& x = entries_[e];
      if (x.hash == hash && x.parent == after.last && x.tenant == tenant &&
          std::equal(chunk.begin(), chunk.end(), tokens_.begin() + static_cast<std::ptrdiff_t>(e * chunk_)))
        break;
    }
    return e;
  }
  // What policies know the n-th block of an entry by: never 0.
  std::uint64_t key_of(std::uint32_t e, std::size_t n) const noexcept {
    const std::uint64_t tenant = entries_[e].tenant;
    const std::array parts{static_cast<token_id>(n), static_cast<token_id>(tenant),
                           static_cast<token_id>(tenant >> 32)};
    return chained_hash{}(entries_[e].hash, parts) | 1u;
  }
  bool resident(std::uint32_t e) const noexcept {
    const auto blocks = blocks_of(e);
    return std::all_of(blocks.begin(), blocks.end(), [&](block_id id) { return planner_->resident(id); });
  }
  place walk(std::span<const token_id> tokens, std::uint64_t tenant) const {
    place at{.hash = options_.salt};
    for (; (at.chunks + 1) * chunk_ <= tokens.size(); ++at.chunks) {
      const auto chunk = tokens.subspan(at.chunks * chunk_, chunk_);
      const std::uint64_t hash = hash_(at.hash, chunk);
      const std::uint32_t e = find(at, hash, chunk, tenant);
      if (e == none || !resident(e)) break;
      at.last = e;
      at.hash = hash;
    }
    return at;
  }

  // Asked for just now, and more recently the nearer to the start: so the oldest of a tenant's has no child.
  void touch(std::uint32_t e) noexcept {
    for (; e != none; e = entries_[e].parent) {
      index_list& ages = tenants_.find(entries_[e].tenant)->second;
      ages.erase(age_links_, e);
      ages.push_back(age_links_, e);
    }
  }
  bool make_room(std::uint64_t tenant, std::uint32_t parent);
  std::uint32_t append(const place& after, std::uint64_t hash, std::span<const token_id> chunk,
                       std::uint64_t tenant);
  bool take_blocks(const sequence& s, std::size_t chunk, std::uint32_t e);
  void release_blocks(std::uint32_t e) noexcept;
  void erase_leaf(std::uint32_t e);
  void erase(std::uint32_t e);
  void sweep();

  planner* planner_;
  options options_;
  [[no_unique_address]] Hash hash_{};
  std::size_t chunk_ = 1, blocks_a_chunk_ = 0;
  std::vector<entry> entries_;
  std::vector<index_link> age_links_, sibling_links_;
  std::vector<token_id> tokens_;  // [entry][token]
  std::vector<block_id> blocks_;  // [entry][row][block]
  std::vector<std::uint32_t> buckets_;
  index_list free_;                                        // over age_links_, as are the tenants' lists:
  std::unordered_map<std::uint64_t, index_list> tenants_;  // their entries, the longest not asked for first
  std::vector<block_id> scratch_;
  prefix_index_stats counts_;
};

/// The index as it is used; the hash is a parameter for tests, which make it collide.
using prefix_index = basic_prefix_index<>;

template <class Hash>
std::uint64_t basic_prefix_index<Hash>::adopt(sequence& s, std::span<const token_id> tokens,
                                              std::uint64_t tenant) {
  TERRACE_ASSERT(s.length() == 0, "only an empty sequence can begin with a prefix that is known");
  sweep();
  const place at = walk(tokens, tenant);
  counts_.asked_tokens += tokens.size();
  counts_.adopted_tokens += at.chunks * chunk_;
  scratch_.resize(at.chunks * blocks_a_chunk_);
  // From the end to the start, and within a chunk row after row: gathered into row after row over all chunks.
  std::size_t c = at.chunks;
  for (std::uint32_t e = at.last; e != none; e = entries_[e].parent) {
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
  s.append_shared(at.chunks * chunk_, scratch_);
  touch(at.last);
  return at.chunks * chunk_;
}

template <class Hash>
std::uint64_t basic_prefix_index<Hash>::insert(const sequence& s, std::span<const token_id> tokens,
                                               std::uint64_t tenant) {
  TERRACE_ASSERT(tokens.size() >= s.length(), "a sequence is inserted with all of its tokens");
  sweep();
  const std::size_t sealed = static_cast<std::size_t>(s.length()) / chunk_;
  place at = walk(tokens.first(sealed * chunk_), tenant);
  touch(at.last);
  for (; at.chunks < sealed; ++at.chunks) {
    const auto chunk = tokens.subspan(at.chunks * chunk_, chunk_);
    const std::uint64_t hash = hash_(at.hash, chunk);
    std::uint32_t e = find(at, hash, chunk, tenant);
    if (e != none && !resident(e)) {
      release_blocks(e);
      if (!take_blocks(s, at.chunks, e)) {
        erase(e);
        break;
      }
    } else if (e == none) {
      if (!make_room(tenant, at.last)) break;
      e = append(at, hash, chunk, tenant);
      if (!take_blocks(s, at.chunks, e)) {
        erase(e);
        break;
      }
    }
    at.last = e;
    at.hash = hash;
  }
  touch(at.last);
  return at.chunks * chunk_;
}

// Room for one more chunk of a tenant, after `parent`. False: nothing can go but what it is to follow.
template <class Hash>
bool basic_prefix_index<Hash>::make_room(std::uint64_t tenant, std::uint32_t parent) {
  const auto oldest_of = [&](const index_list& ages) {
    const std::uint32_t e = ages.front();
    return e == parent || !entries_[e].children.empty() ? none : e;
  };
  const auto own = tenants_.find(tenant);
  const std::size_t blocks = own == tenants_.end() ? 0 : own->second.size() * blocks_a_chunk_;
  const bool over_quota = options_.tenant_blocks != 0 && blocks + blocks_a_chunk_ > options_.tenant_blocks;
  if (!over_quota && !free_.empty()) return true;
  if (over_quota && blocks == 0) return false;
  std::uint32_t victim = none;
  if (over_quota) {
    victim = oldest_of(own->second);
  } else {
    const auto largest = std::max_element(tenants_.begin(), tenants_.end(), [](const auto& a, const auto& b) {
      return a.second.size() < b.second.size();
    });
    victim = oldest_of(largest->second);
  }
  if (victim == none) return false;
  erase_leaf(victim);
  ++counts_.evicted;
  return true;
}

template <class Hash>
std::uint32_t basic_prefix_index<Hash>::append(const place& after, std::uint64_t hash,
                                               std::span<const token_id> chunk, std::uint64_t tenant) {
  const std::uint32_t e = free_.front();
  free_.erase(age_links_, e);
  std::uint32_t& bucket = buckets_[bucket_of(hash)];
  entries_[e] = {
      .hash = hash, .tenant = tenant, .parent = after.last, .next_in_bucket = bucket, .alive = true};
  bucket = e;
  std::copy(chunk.begin(), chunk.end(), tokens_.begin() + static_cast<std::ptrdiff_t>(e * chunk_));
  std::fill(blocks_of(e).begin(), blocks_of(e).end(), block_id{});
  tenants_[tenant].push_back(age_links_, e);
  if (after.last != none) entries_[after.last].children.push_back(sibling_links_, e);
  return e;
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

template <class Hash>
void basic_prefix_index<Hash>::erase_leaf(std::uint32_t e) {
  entry& x = entries_[e];
  release_blocks(e);
  std::uint32_t* link = &buckets_[bucket_of(x.hash)];
  while (*link != e) link = &entries_[*link].next_in_bucket;
  *link = x.next_in_bucket;
  if (x.parent != none) entries_[x.parent].children.erase(sibling_links_, e);
  const auto own = tenants_.find(x.tenant);
  own->second.erase(age_links_, e);
  if (own->second.empty()) tenants_.erase(own);
  x = {};
  free_.push_back(age_links_, e);
}

// With all that build on it, without recursion: texts are long.
template <class Hash>
void basic_prefix_index<Hash>::erase(std::uint32_t e) {
  for (std::uint32_t at = e;;) {
    while (!entries_[at].children.empty()) at = entries_[at].children.front();
    const std::uint32_t parent = entries_[at].parent;
    erase_leaf(at);
    if (at == e) return;
    at = parent;
  }
}

// Entries of which the cache has let a block go.
template <class Hash>
void basic_prefix_index<Hash>::sweep() {
  std::vector<std::uint32_t>& expired = planner_->expired_entries();
  for (const std::uint32_t e : expired) {
    if (!entries_[e].alive) continue;
    erase(e);
    ++counts_.expired;
  }
  expired.clear();
}

template <class Hash>
void basic_prefix_index<Hash>::drop_tenant(std::uint64_t tenant) {
  sweep();
  for (auto own = tenants_.find(tenant); own != tenants_.end(); own = tenants_.find(tenant))
    erase(own->second.front());
}

}  // namespace TERRACE_EX
}  // namespace terrace
