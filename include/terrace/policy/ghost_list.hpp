#pragma once
#include <bit>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "terrace/core/index_list.hpp"

namespace terrace {

/// The keys of blocks that have left a tier, oldest first, each with a `Note` of what a policy remembers about it.
/// Keys outlive indices, which are recycled. `push`, `take`, `erase` and `contains` are O(1) expected; a ghost takes
/// about 30 bytes plus its note, and only `reserve` allocates.
template <class Note>
class noted_ghost_list {
 public:
  /// Makes room for `capacity` ghosts. It never shrinks, and keeps the existing ghosts. O(capacity).
  void reserve(std::size_t capacity) {
    if (capacity <= nodes_.size()) return;
    const std::size_t before = nodes_.size();
    nodes_.resize(capacity);
    buckets_.assign(std::bit_ceil(capacity), none);
    for (std::uint32_t n = keys_.front(); n != none; n = nodes_[n].link.next) chain(n);
    for (std::size_t n = before; n < capacity; ++n) free_.push_back(links(), static_cast<std::uint32_t>(n));
  }

  std::size_t size() const noexcept { return keys_.size(); }
  bool contains(std::uint64_t key) const noexcept { return at(key) != none; }

  /// Remembers `key` as the newest. If there is no room, the oldest is forgotten.
  void push(std::uint64_t key, const Note& note = {}) noexcept {
    erase(key);
    push_new(key, note);
  }
  /// The same, and cheaper. Precondition: `key` is not remembered.
  void push_new(std::uint64_t key, const Note& note = {}) noexcept {
    if (nodes_.empty()) return;
    if (free_.empty()) forget(keys_.front());
    const std::uint32_t n = free_.front();
    free_.erase(links(), n);
    nodes_[n].key = key;
    nodes_[n].note = note;
    keys_.push_back(links(), n);
    chain(n);
  }

  /// Forgets `key`, and returns its note if it was remembered.
  std::optional<Note> take(std::uint64_t key) noexcept {
    const std::uint32_t n = at(key);
    return n == none ? std::nullopt : std::optional(forget(n));
  }
  /// Forgets the oldest, and returns its note. Precondition: there is one.
  Note take_oldest() noexcept { return forget(keys_.front()); }

  /// Forgets `key`. Returns false if it was not remembered.
  bool erase(std::uint64_t key) noexcept {
    const std::uint32_t n = at(key);
    if (n != none) forget(n);
    return n != none;
  }

  /// Forgets the oldest until there are at most `limit`.
  void trim(std::size_t limit) noexcept {
    while (keys_.size() > limit) forget(keys_.front());
  }

 private:
  static constexpr std::uint32_t none = index_link::none;
  struct node {
    std::uint64_t key = 0;
    index_link link;
    std::uint32_t next_in_bucket = none;
    [[no_unique_address]] Note note{};
  };
  struct node_links {
    std::vector<node>& nodes;
    index_link& operator[](std::uint32_t n) const noexcept { return nodes[n].link; }
  };
  node_links links() noexcept { return {nodes_}; }

  // Keys may be hashes or small numbers: a multiplication spreads both (Knuth's multiplicative hashing).
  std::size_t bucket_of(std::uint64_t key) const noexcept {
    return static_cast<std::size_t>((key * 0x9e3779b97f4a7c15u) >> 32) & (buckets_.size() - 1);
  }
  std::uint32_t at(std::uint64_t key) const noexcept {
    if (buckets_.empty()) return none;
    std::uint32_t n = buckets_[bucket_of(key)];
    while (n != none && nodes_[n].key != key) n = nodes_[n].next_in_bucket;
    return n;
  }
  void chain(std::uint32_t n) noexcept {
    std::uint32_t& first = buckets_[bucket_of(nodes_[n].key)];
    nodes_[n].next_in_bucket = first;
    first = n;
  }
  Note forget(std::uint32_t n) noexcept {
    std::uint32_t* link = &buckets_[bucket_of(nodes_[n].key)];
    while (*link != n) link = &nodes_[*link].next_in_bucket;
    *link = nodes_[n].next_in_bucket;
    keys_.erase(links(), n);
    free_.push_back(links(), n);
    return nodes_[n].note;
  }

  std::vector<node> nodes_;
  std::vector<std::uint32_t> buckets_;
  index_list keys_, free_;  // every node is in one of them
};

/// Only keys.
struct no_note {};
using ghost_list = noted_ghost_list<no_note>;

}  // namespace terrace
