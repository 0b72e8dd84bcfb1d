#pragma once
#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "terrace/core/index_list.hpp"
#include "terrace/core/mix64.hpp"

namespace terrace {

/// A token's number in the model's vocabulary.
using token_id = std::uint32_t;

/// Hashes a chunk of tokens together with the hash of what precedes it. It only finds candidates, whose tokens are
/// then compared: a collision only costs time. Uses the steps of splitmix64. O(tokens).
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

/// The texts that a prefix_index knows, as a tree of chunks of equal length. An entry is one chunk of tokens of one
/// tenant that follows one particular other entry, or stands at the start: so whoever reaches an entry has compared
/// every token before it. It knows nothing of blocks; its user, who does, says which entries are usable and when to
/// erase them.
///
/// Entries are dense numbers below the capacity. Memory is allocated at the start: 4 bytes per token, and for each
/// chunk `overhead_bytes` and at most two buckets of 4 bytes; plus a hash map node per tenant. Members are O(1)
/// expected unless stated otherwise.
template <class Hash = chained_hash>
class prefix_tree {
 public:
  static constexpr std::uint32_t none = index_link::none;

  /// A position in a text.
  struct place {
    std::uint32_t last =
        none;                ///< the entry of the chunk before; none at the start, and when it is not known
    std::size_t chunks = 0;  ///< before this place
    std::uint64_t hash = 0;  ///< of all tokens before it
  };

  /// Preconditions: both numbers are at least 1. `salt` begins every hash.
  prefix_tree(std::size_t capacity, std::size_t chunk_tokens, std::uint64_t salt)
      : chunk_(chunk_tokens), salt_(salt) {
    entries_.resize(capacity);
    age_links_.resize(capacity);
    sibling_links_.resize(capacity);
    tokens_.resize(capacity * chunk_);
    buckets_.assign(std::bit_ceil(capacity), none);
    for (std::uint32_t e = 0; e < capacity; ++e) free_.push_back(age_links_, e);
  }

  std::size_t chunk_tokens() const noexcept { return chunk_; }
  std::size_t capacity() const noexcept { return entries_.size(); }
  std::size_t size() const noexcept { return entries_.size() - free_.size(); }
  bool alive(std::uint32_t e) const noexcept { return entries_[e].alive; }
  /// Of a living entry: the entry before it, its tenant, and the hash of all tokens up to its end.
  std::uint32_t parent(std::uint32_t e) const noexcept { return entries_[e].parent; }
  std::uint64_t tenant(std::uint32_t e) const noexcept { return entries_[e].tenant; }
  std::uint64_t hash(std::uint32_t e) const noexcept { return entries_[e].hash; }
  std::size_t memory_bytes() const noexcept {
    return entries_.size() * (overhead_bytes + chunk_ * sizeof(token_id)) +
           buckets_.size() * sizeof(std::uint32_t);
  }

  place start() const noexcept { return {.hash = salt_}; }
  /// The place after the next chunk, which is the first tokens of `rest`. O(tokens of a chunk). Precondition: `rest`
  /// holds at least a chunk.
  place next(const place& at, std::span<const token_id> rest, std::uint64_t tenant) const noexcept {
    const auto chunk = rest.first(chunk_);
    const std::uint64_t up_to_here = hash_(at.hash, chunk);
    return {find(at.last, up_to_here, chunk, tenant), at.chunks + 1, up_to_here};
  }
  /// The farthest place in `tokens` that can be reached through entries for which `usable(entry)` is true. O(tokens).
  template <class Usable>
  place walk(std::span<const token_id> tokens, std::uint64_t tenant, Usable&& usable) const {
    place at = start();
    while ((at.chunks + 1) * chunk_ <= tokens.size()) {
      const place further = next(at, tokens.subspan(at.chunks * chunk_), tenant);
      if (further.last == none || !usable(further.last)) break;
      at = further;
    }
    return at;
  }

  /// Marks `e` and all entries before it as just asked for, those nearer to the start as more recent: so nothing
  /// builds on a tenant's oldest entry. `e` may be none. O(entries before it).
  void touch(std::uint32_t e) noexcept {
    for (; e != none; e = entries_[e].parent) {
      index_list& ages = tenants_.find(entries_[e].tenant)->second;
      ages.erase(age_links_, e);
      ages.push_back(age_links_, e);
    }
  }
  /// The entry to erase so that there is room for a chunk of `tenant` after `parent`: `none` if there is room
  /// already, nullopt if no entry can go. A tenant that has `most_of_tenant` chunks gives up its least recently
  /// asked-for one; if the tree is full, the tenant with the most chunks does. O(tenants).
  std::optional<std::uint32_t> gives_way(std::uint64_t tenant, std::uint32_t parent,
                                         std::size_t most_of_tenant) const {
    const auto own = tenants_.find(tenant);
    const std::size_t owned = own == tenants_.end() ? 0 : own->second.size();
    const bool over_quota = owned >= most_of_tenant;
    if (!over_quota && !free_.empty()) return none;
    if (over_quota && owned == 0) return std::nullopt;
    const auto giver =
        over_quota ? own
                   : std::max_element(tenants_.begin(), tenants_.end(), [](const auto& a, const auto& b) {
                       return a.second.size() < b.second.size();
                     });
    const std::uint32_t oldest = giver->second.front();
    if (oldest == parent || !entries_[oldest].children.empty()) return std::nullopt;
    return oldest;
  }
  /// A new entry for the first chunk of `rest`, which `next(at, rest, tenant)` did not find; `hash` is the one it
  /// returned. Precondition: there is room. O(tokens of a chunk).
  std::uint32_t append(const place& at, std::uint64_t hash, std::span<const token_id> rest,
                       std::uint64_t tenant) {
    const std::uint32_t e = free_.front();
    free_.erase(age_links_, e);
    entry& x = entries_[e];  // as erase_leaf left it
    x.hash = hash;
    x.tenant = tenant;
    x.parent = at.last;
    x.next_in_bucket = std::exchange(buckets_[bucket_of(hash)], e);
    x.alive = true;
    std::copy_n(rest.begin(), chunk_, tokens_of(e));
    tenants_[tenant].push_back(age_links_, e);
    if (at.last != none) entries_[at.last].children.push_back(sibling_links_, e);
    return e;
  }

  /// Erases `e` and all that build on it, leaves first; `forget(entry)` is called before each is erased. O(entries).
  template <class Forget>
  void erase(std::uint32_t e, Forget&& forget) {
    for (std::uint32_t at = e;;) {  // without recursion: texts are long
      while (!entries_[at].children.empty()) at = entries_[at].children.front();
      const std::uint32_t before = entries_[at].parent;
      forget(at);
      erase_leaf(at);
      if (at == e) return;
      at = before;
    }
  }
  /// A tenant's least recently asked-for entry, or none.
  std::uint32_t oldest_of(std::uint64_t tenant) const {
    const auto own = tenants_.find(tenant);
    return own == tenants_.end() ? none : own->second.front();
  }
  /// Some tenant that has entries.
  std::optional<std::uint64_t> any_tenant() const {
    return tenants_.empty() ? std::nullopt : std::optional(tenants_.begin()->first);
  }

 private:
  struct entry {
    std::uint64_t hash = 0;  // of all tokens up to its end
    std::uint64_t tenant = 0;
    std::uint32_t parent = none;
    std::uint32_t next_in_bucket = none;
    index_list children{};
    bool alive = false;
  };

 public:
  /// Bytes per chunk besides its tokens.
  static constexpr std::size_t overhead_bytes = sizeof(entry) + 2 * sizeof(index_link);

 private:
  std::size_t bucket_of(std::uint64_t hash) const noexcept { return hash & (buckets_.size() - 1); }
  auto tokens_of(std::uint32_t e) noexcept {
    return tokens_.begin() + static_cast<std::ptrdiff_t>(e * chunk_);
  }
  auto tokens_of(std::uint32_t e) const noexcept {
    return tokens_.begin() + static_cast<std::ptrdiff_t>(e * chunk_);
  }

  std::uint32_t find(std::uint32_t parent, std::uint64_t hash, std::span<const token_id> chunk,
                     std::uint64_t tenant) const noexcept {
    std::uint32_t e = buckets_[bucket_of(hash)];
    for (; e != none; e = entries_[e].next_in_bucket) {
      const entry& x = entries_[e];
      if (x.hash == hash && x.parent == parent && x.tenant == tenant &&
          std::equal(chunk.begin(), chunk.end(), tokens_of(e)))
        break;
    }
    return e;
  }
  void erase_leaf(std::uint32_t e) {
    entry& x = entries_[e];
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

  std::size_t chunk_;
  std::uint64_t salt_;
  [[no_unique_address]] Hash hash_{};
  std::vector<entry> entries_;
  std::vector<index_link> age_links_, sibling_links_;
  std::vector<token_id> tokens_;  // [entry][token]
  std::vector<std::uint32_t> buckets_;
  index_list free_;                                        // over age_links_, as are the tenants' lists:
  std::unordered_map<std::uint64_t, index_list> tenants_;  // their entries, least recently asked for first
};

}  // namespace terrace
