#pragma once
#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "terrace/core/bytes.hpp"
#include "terrace/core/config.hpp"
#include "terrace/medium/extent.hpp"

namespace terrace {

/// Hands out variable-sized runs of [0, capacity): the space allocator of every medium. It keeps its books
/// outside of the space, so that it serves a file as well as an arena. Two-level segregated fit (Masmano et
/// al., "TLSF: a new dynamic memory allocator for real-time systems", 2004): reserve and release are O(1),
/// neighbours that are free are always one run. Books grow to the largest number of runs ever alive and are
/// then reused.
///
/// The capacity can change, and nothing moves. So that what is in use and what is handed out never need more
/// than the capacity together, runs are handed out below a limit only: the highest one for which the limit and
/// what is in use beyond it fit into the capacity. It rises as runs beyond it are released, up to the capacity
/// itself; while more is used than the capacity it is 0.
class space {
 public:
  /// `granule` is a power of two: offsets and sizes are multiples of it.
  space(std::size_t capacity, std::size_t granule) : granule_shift_(std::countr_zero(granule)) {
    for (auto& row : heads_) row.fill(none);
    resize(capacity);
  }

  /// A run of at least `bytes`, or nothing: there may be enough room in all and still no run that is long
  /// enough.
  std::optional<extent> reserve(std::size_t bytes) {
    if (bytes == 0 || bytes > capacity() || bytes > 0xffffffffu) return std::nullopt;
    const std::uint64_t want = rounded(bytes) >> granule_shift_;
    const std::uint32_t found = find(want);
    if (found == none) return std::nullopt;
    unlist(found);
    nodes_[found].free = false;
    if (nodes_[found].size > want) set_free(cut(found, want));
    used_ += want << granule_shift_;
    return extent{nodes_[found].offset << granule_shift_, static_cast<std::uint32_t>(bytes), found};
  }

  /// The run of `bytes` at `offset`, a multiple of the granule, if all of it is free and within the limit. For what
  /// was there before: O(1) in ascending order, O(runs behind it) in any other.
  std::optional<extent> reserve_at(std::uint64_t offset, std::uint32_t bytes) {
    const std::uint64_t begin = offset >> granule_shift_;
    const std::uint64_t want = rounded(bytes) >> granule_shift_;
    if (bytes == 0 || begin << granule_shift_ != offset || begin > limit_ || want > limit_ - begin)
      return std::nullopt;
    std::uint32_t n = last_;
    while (n != none && nodes_[n].offset > begin) n = nodes_[n].previous;
    if (n == none || !nodes_[n].free || want > end(n) - begin) return std::nullopt;
    unlist(n);
    if (nodes_[n].offset != begin) {
      const std::uint32_t before = n;
      n = cut(before, begin - nodes_[before].offset);
      list(before);
    }
    nodes_[n].free = false;
    if (nodes_[n].size > want) set_free(cut(n, want));
    used_ += want << granule_shift_;
    return extent{offset, bytes, n};
  }

  void release(extent e) noexcept {
    const std::uint32_t n = e.node;
    TERRACE_ASSERT(n < nodes_.size() && !nodes_[n].free && nodes_[n].offset << granule_shift_ == e.offset,
                   "an extent was released that is not reserved");
    used_ -= nodes_[n].size << granule_shift_;
    if (nodes_[n].offset >= limit_) beyond_ -= nodes_[n].size;
    set_free(n);
    raise_limit();
  }

  /// From now on the capacity is what `capacity` holds of whole granules. O(runs beyond the lower of the old
  /// and the new limit).
  void resize(std::size_t capacity) {
    capacity_ = capacity >> granule_shift_;
    const std::uint64_t range = last_ == none ? 0 : end(last_);
    if (range < capacity_ && boundary_ != none && nodes_[last_].free) {
      nodes_[last_].size += capacity_ - range;
    } else if (range < capacity_) {
      const std::uint32_t added = new_node();
      nodes_[added] = {.offset = range, .size = capacity_ - range, .previous = last_, .free = true};
      if (last_ != none) nodes_[last_].next = added;
      if (boundary_ == none) boundary_ = added;
      last_ = added;
    }
    lower_limit();
    raise_limit();
  }

  std::size_t capacity() const noexcept { return capacity_ << granule_shift_; }
  std::size_t used() const noexcept { return used_; }
  /// Runs are handed out in [0, limit()). What lies beyond and is free, or is released there, is not needed
  /// for the time being.
  std::size_t limit() const noexcept { return limit_ << granule_shift_; }
  /// What is in use beyond the limit. It is 0 exactly while nothing in use reaches beyond the capacity; then the
  /// limit is the capacity.
  std::size_t overhang() const noexcept { return beyond_ << granule_shift_; }
  /// f(offset, bytes) for each free run, as far as it lies beyond `from`. O(runs from there on).
  template <class F>
  void for_each_free(std::uint64_t from, F f) const {
    from >>= granule_shift_;
    for (std::uint32_t n = last_; n != none && end(n) > from; n = nodes_[n].previous) {
      const std::uint64_t begin = std::max(nodes_[n].offset, from);
      if (nodes_[n].free) f(begin << granule_shift_, (end(n) - begin) << granule_shift_);
    }
  }
  /// What a reservation of `bytes` takes away.
  std::size_t rounded(std::size_t bytes) const noexcept {
    return align_up(bytes, std::size_t{1} << granule_shift_);
  }

 private:
  static constexpr std::uint32_t none = 0xffffffffu;
  static constexpr unsigned second_bits =
      4;  // 16 lists for every power of two: at most 1/16 is lost to rounding
  static constexpr unsigned second = 1u << second_bits;

  struct node {
    std::uint64_t offset = 0, size = 0;                // in granules
    std::uint32_t previous = none, next = none;        // neighbours in space
    std::uint32_t list_prev = none, list_next = none;  // neighbours in the list of their size
    bool free = false;  // and then in a list, unless it lies beyond the limit; no run straddles that
  };
  struct bin {
    unsigned first, second;
  };

  static bin bin_of(std::uint64_t size) noexcept {
    if (size < second) return {0, static_cast<unsigned>(size)};
    const unsigned top = static_cast<unsigned>(std::bit_width(size)) - 1;
    return {top - second_bits + 1, static_cast<unsigned>(size >> (top - second_bits)) - second};
  }

  // The shortest list whose every run is long enough; failing that, a run of the very list that `want` falls
  // into.
  std::uint32_t find(std::uint64_t want) const noexcept {
    const unsigned shift = want < second ? 0 : static_cast<unsigned>(std::bit_width(want)) - 1 - second_bits;
    const bin b = bin_of(want + (std::uint64_t{1} << shift) - 1);
    if (b.first < heads_.size()) {
      if (const unsigned row = second_map_[b.first] & (~0u << b.second); row != 0)
        return heads_[b.first][static_cast<unsigned>(std::countr_zero(row))];
      const std::uint64_t rows = b.first + 1 < 64 ? first_map_ & (~std::uint64_t{0} << (b.first + 1)) : 0;
      if (rows != 0) {
        const auto first = static_cast<unsigned>(std::countr_zero(rows));
        return heads_[first][static_cast<unsigned>(std::countr_zero(second_map_[first]))];
      }
    }
    const bin own = bin_of(want);
    for (std::uint32_t n = heads_[own.first][own.second]; n != none; n = nodes_[n].list_next)
      if (nodes_[n].size >= want) return n;
    return none;
  }

  void list(std::uint32_t n) noexcept {
    const bin b = bin_of(nodes_[n].size);
    std::uint32_t& head = heads_[b.first][b.second];
    nodes_[n].list_prev = none;
    nodes_[n].list_next = head;
    if (head != none) nodes_[head].list_prev = n;
    head = n;
    first_map_ |= std::uint64_t{1} << b.first;
    second_map_[b.first] |= 1u << b.second;
  }

  void unlist(std::uint32_t n) noexcept {
    const node& x = nodes_[n];
    const bin b = bin_of(x.size);
    if (x.list_prev != none)
      nodes_[x.list_prev].list_next = x.list_next;
    else
      heads_[b.first][b.second] = x.list_next;
    if (x.list_next != none) nodes_[x.list_next].list_prev = x.list_prev;
    if (heads_[b.first][b.second] == none) {
      second_map_[b.first] &= ~(1u << b.second);
      if (second_map_[b.first] == 0) first_map_ &= ~(std::uint64_t{1} << b.first);
    }
  }

  std::uint64_t end(std::uint32_t n) const noexcept { return nodes_[n].offset + nodes_[n].size; }

  // Makes one run of `n` and its free neighbours on the same side of the limit.
  void set_free(std::uint32_t n) noexcept {
    const bool within = nodes_[n].offset < limit_;
    const auto joins = [&](std::uint32_t neighbour) {
      return neighbour != none && nodes_[neighbour].free && (nodes_[neighbour].offset < limit_) == within;
    };
    if (const std::uint32_t before = nodes_[n].previous; joins(before)) {
      if (within) unlist(before);
      absorb(before, n);
      n = before;
    }
    if (const std::uint32_t after = nodes_[n].next; joins(after)) {
      if (within) unlist(after);
      absorb(n, after);
    }
    nodes_[n].free = true;
    if (within) list(n);
  }

  // Over runs in use it rises without cost, over free ones as far as the capacity has room.
  void raise_limit() {
    while (boundary_ != none && limit_ + beyond_ <= capacity_) {
      const std::uint32_t n = boundary_;
      if (!nodes_[n].free) {
        beyond_ -= nodes_[n].size;
        limit_ += nodes_[n].size;
        boundary_ = nodes_[n].next;
        continue;
      }
      const std::uint64_t room = capacity_ - limit_ - beyond_;
      if (room == 0) return;
      if (nodes_[n].size > room) nodes_[cut(n, room)].free = true;
      limit_ += nodes_[n].size;
      boundary_ = nodes_[n].next;
      set_free(n);
    }
  }
  void lower_limit() {
    while (limit_ != 0 && limit_ + beyond_ > capacity_) {
      std::uint32_t n = boundary_ == none ? last_ : nodes_[boundary_].previous;
      if (!nodes_[n].free) {
        beyond_ += nodes_[n].size;
      } else {
        unlist(n);
        const std::uint64_t excess = limit_ + beyond_ - capacity_;
        if (nodes_[n].size > excess) {
          const std::uint32_t rest = cut(n, nodes_[n].size - excess);
          list(n);
          n = rest;
          nodes_[n].free = true;
        }
      }
      boundary_ = n;
      limit_ = nodes_[n].offset;
    }
  }

  std::uint32_t new_node() {
    if (recycled_ == none) {
      nodes_.emplace_back();
      return static_cast<std::uint32_t>(nodes_.size() - 1);
    }
    const std::uint32_t n = recycled_;
    recycled_ = nodes_[n].list_next;
    return n;
  }

  // Leaves `keep` granules to `n` and returns the run of the others, which is in no list.
  std::uint32_t cut(std::uint32_t n, std::uint64_t keep) {
    const std::uint32_t rest = new_node();
    node& left = nodes_[n];
    nodes_[rest] = {.offset = left.offset + keep, .size = left.size - keep, .previous = n, .next = left.next};
    (left.next == none ? last_ : nodes_[left.next].previous) = rest;
    left.next = rest;
    left.size = keep;
    return rest;
  }

  // Makes one run of two neighbours and recycles the second one's node.
  void absorb(std::uint32_t left, std::uint32_t right) noexcept {
    const std::uint32_t after = nodes_[right].next;
    nodes_[left].size += nodes_[right].size;
    nodes_[left].next = after;
    (after == none ? last_ : nodes_[after].previous) = left;
    nodes_[right].list_next = recycled_;
    nodes_[right].free = false;
    recycled_ = right;
  }

  int granule_shift_;
  std::uint64_t capacity_ = 0, limit_ = 0;  // in granules
  std::uint64_t beyond_ = 0;                // in use beyond the limit, in granules
  std::size_t used_ = 0;                    // in bytes
  std::vector<node> nodes_;
  std::uint32_t last_ = none;      // the run at the end of the space
  std::uint32_t boundary_ = none;  // the first run beyond the limit
  std::uint32_t recycled_ = none;
  std::uint64_t first_map_ = 0;
  std::array<unsigned, 64> second_map_{};
  std::array<std::array<std::uint32_t, second>, 64> heads_{};
};

}  // namespace terrace
