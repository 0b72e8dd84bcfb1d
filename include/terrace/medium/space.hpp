#pragma once
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
class space {
 public:
  /// `granule` is a power of two: offsets and sizes are multiples of it.
  space(std::size_t capacity, std::size_t granule) : granule_shift_(std::countr_zero(granule)) {
    for (auto& row : heads_) row.fill(none);
    const std::uint64_t granules = capacity >> granule_shift_;
    capacity_ = granules << granule_shift_;
    if (granules == 0) return;
    nodes_.push_back({.offset = 0, .size = granules});
    insert_free(0);
  }

  /// A run of at least `bytes`, or nothing: there may be enough room in all and still no run that is long
  /// enough.
  std::optional<extent> reserve(std::size_t bytes) {
    if (bytes == 0 || bytes > capacity_ || bytes > 0xffffffffu) return std::nullopt;
    const std::uint64_t want = (bytes + (std::size_t{1} << granule_shift_) - 1) >> granule_shift_;
    const std::uint32_t found = find(want);
    if (found == none) return std::nullopt;
    remove_free(found);
    if (nodes_[found].size > want) split(found, want);
    used_ += want << granule_shift_;
    return extent{nodes_[found].offset << granule_shift_, static_cast<std::uint32_t>(bytes), found};
  }

  void release(extent e) noexcept {
    std::uint32_t n = e.node;
    TERRACE_ASSERT(n < nodes_.size() && !nodes_[n].free && nodes_[n].offset << granule_shift_ == e.offset,
                   "an extent was released that is not reserved");
    used_ -= nodes_[n].size << granule_shift_;
    if (const std::uint32_t before = nodes_[n].previous; before != none && nodes_[before].free) {
      remove_free(before);
      n = absorb(before, n);
    }
    if (const std::uint32_t after = nodes_[n].next; after != none && nodes_[after].free) {
      remove_free(after);
      n = absorb(n, after);
    }
    insert_free(n);
  }

  std::size_t capacity() const noexcept { return capacity_; }
  std::size_t used() const noexcept { return used_; }
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
    bool free = false;
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

  void insert_free(std::uint32_t n) noexcept {
    const bin b = bin_of(nodes_[n].size);
    std::uint32_t& head = heads_[b.first][b.second];
    nodes_[n].free = true;
    nodes_[n].list_prev = none;
    nodes_[n].list_next = head;
    if (head != none) nodes_[head].list_prev = n;
    head = n;
    first_map_ |= std::uint64_t{1} << b.first;
    second_map_[b.first] |= 1u << b.second;
  }

  void remove_free(std::uint32_t n) noexcept {
    node& x = nodes_[n];
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
    x.free = false;
  }

  void split(std::uint32_t n, std::uint64_t keep) {
    std::uint32_t rest;
    if (recycled_ != none) {
      rest = recycled_;
      recycled_ = nodes_[rest].list_next;
    } else {
      rest = static_cast<std::uint32_t>(nodes_.size());
      nodes_.emplace_back();
    }
    node& left = nodes_[n];
    nodes_[rest] = {.offset = left.offset + keep, .size = left.size - keep, .previous = n, .next = left.next};
    if (left.next != none) nodes_[left.next].previous = rest;
    left.next = rest;
    left.size = keep;
    insert_free(rest);
  }

  // Makes one run of two neighbours and recycles the second one's node.
  std::uint32_t absorb(std::uint32_t left, std::uint32_t right) noexcept {
    nodes_[left].size += nodes_[right].size;
    nodes_[left].next = nodes_[right].next;
    if (nodes_[right].next != none) nodes_[nodes_[right].next].previous = left;
    nodes_[right].list_next = recycled_;
    recycled_ = right;
    return left;
  }

  int granule_shift_;
  std::size_t capacity_ = 0, used_ = 0;
  std::vector<node> nodes_;
  std::uint32_t recycled_ = none;
  std::uint64_t first_map_ = 0;
  std::array<unsigned, 64> second_map_{};
  std::array<std::array<std::uint32_t, second>, 64> heads_{};
};

}  // namespace terrace
