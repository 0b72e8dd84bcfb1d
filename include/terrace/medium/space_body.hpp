#pragma once
// The functions of medium/space.hpp.
#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <optional>

#include "terrace/core/config.hpp"
#include "terrace/medium/space.hpp"

namespace terrace {

TERRACE_BODY space::space(std::size_t capacity, std::size_t granule)
    : granule_shift_(std::countr_zero(granule)) {
  for (auto& row : heads_) row.fill(none);
  resize(capacity);
}

TERRACE_BODY std::optional<extent> space::reserve(std::size_t bytes) {
  if (bytes == 0 || bytes > capacity() || bytes > 0xffffffffu) return std::nullopt;
  const std::uint64_t want = rounded(bytes) >> granule_shift_;
  const std::uint32_t found = find(want);
  if (found == none) return std::nullopt;
  const std::uint32_t n = take(found, nodes_[found].offset, want);
  return extent{nodes_[n].offset << granule_shift_, static_cast<std::uint32_t>(bytes), n};
}

TERRACE_BODY std::optional<extent> space::reserve_behind(std::optional<extent> before, std::size_t bytes) {
  if (bytes == 0 || bytes > capacity() || bytes > 0xffffffffu) return std::nullopt;
  const std::uint64_t want = rounded(bytes) >> granule_shift_;
  std::uint32_t found = before ? nodes_[before->node].next : none;
  std::uint64_t gap = 0;
  if (found == none || !nodes_[found].free || nodes_[found].offset >= limit_ || nodes_[found].size < want) {
    const std::size_t most = std::min(most_order_bytes, capacity() / orders);
    gap = most / (want << granule_shift_) * want;  // whole ones of this size
    found = gap == 0 ? none : find(gap + want);
  }
  if (found == none) return reserve(bytes);
  const std::uint32_t n = take(found, nodes_[found].offset + gap, want);
  return extent{nodes_[n].offset << granule_shift_, static_cast<std::uint32_t>(bytes), n};
}

TERRACE_BODY std::uint32_t space::take(std::uint32_t n, std::uint64_t begin, std::uint64_t want) {
  unlist(n);
  if (nodes_[n].offset != begin) {
    const std::uint32_t before = n;
    n = cut(before, begin - nodes_[before].offset);
    list(before);
  }
  nodes_[n].free = false;
  if (nodes_[n].size > want) set_free(cut(n, want));
  used_ += want << granule_shift_;
  // There is at most one free run between runs in use: room for that many nodes is made here, so that it need not be
  // made later.
  if (const std::size_t most = 2 * ++taken_ + 4; most > nodes_.capacity()) nodes_.reserve(2 * most);
  return n;
}

TERRACE_BODY std::optional<extent> space::reserve_at(std::uint64_t offset, std::uint32_t bytes) {
  const std::uint64_t begin = offset >> granule_shift_;
  const std::uint64_t want = rounded(bytes) >> granule_shift_;
  if (bytes == 0 || begin << granule_shift_ != offset || begin > limit_ || want > limit_ - begin)
    return std::nullopt;
  std::uint32_t n = last_;
  while (n != none && nodes_[n].offset > begin) n = nodes_[n].previous;
  if (n == none || !nodes_[n].free || want > end(n) - begin) return std::nullopt;
  n = take(n, begin, want);
  return extent{offset, bytes, n};
}

TERRACE_BODY void space::release(extent e) noexcept {
  const std::uint32_t n = e.node;
  TERRACE_ASSERT(n < nodes_.size() && !nodes_[n].free && nodes_[n].offset << granule_shift_ == e.offset,
                 "an extent was released that is not reserved");
  used_ -= nodes_[n].size << granule_shift_;
  --taken_;
  if (nodes_[n].offset >= limit_) beyond_ -= nodes_[n].size;
  set_free(n);
  raise_limit();
}

TERRACE_BODY void space::resize(std::size_t capacity) {
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

TERRACE_BODY std::size_t space::rounded(std::size_t bytes) const noexcept {
  return align_up(bytes, std::size_t{1} << granule_shift_);
}

TERRACE_BODY space::bin space::bin_of(std::uint64_t size) noexcept {
  if (size < second) return {0, static_cast<unsigned>(size)};
  const unsigned top = static_cast<unsigned>(std::bit_width(size)) - 1;
  return {top - second_bits + 1, static_cast<unsigned>(size >> (top - second_bits)) - second};
}

TERRACE_BODY std::uint32_t space::find(std::uint64_t want) const noexcept {
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

TERRACE_BODY void space::list(std::uint32_t n) noexcept {
  const bin b = bin_of(nodes_[n].size);
  std::uint32_t& head = heads_[b.first][b.second];
  nodes_[n].list_prev = none;
  nodes_[n].list_next = head;
  if (head != none) nodes_[head].list_prev = n;
  head = n;
  first_map_ |= std::uint64_t{1} << b.first;
  second_map_[b.first] |= 1u << b.second;
}

TERRACE_BODY void space::unlist(std::uint32_t n) noexcept {
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

TERRACE_BODY void space::set_free(std::uint32_t n) noexcept {
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

TERRACE_BODY void space::raise_limit() {
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

TERRACE_BODY void space::lower_limit() {
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

TERRACE_BODY std::uint32_t space::new_node() {
  if (recycled_ == none) {
    nodes_.emplace_back();
    return static_cast<std::uint32_t>(nodes_.size() - 1);
  }
  const std::uint32_t n = recycled_;
  recycled_ = nodes_[n].list_next;
  return n;
}

TERRACE_BODY std::uint32_t space::cut(std::uint32_t n, std::uint64_t keep) {
  const std::uint32_t rest = new_node();
  node& left = nodes_[n];
  nodes_[rest] = {.offset = left.offset + keep, .size = left.size - keep, .previous = n, .next = left.next};
  (left.next == none ? last_ : nodes_[left.next].previous) = rest;
  left.next = rest;
  left.size = keep;
  return rest;
}

TERRACE_BODY void space::absorb(std::uint32_t left, std::uint32_t right) noexcept {
  const std::uint32_t after = nodes_[right].next;
  nodes_[left].size += nodes_[right].size;
  nodes_[left].next = after;
  (after == none ? last_ : nodes_[after].previous) = left;
  nodes_[right].list_next = recycled_;
  nodes_[right].free = false;
  recycled_ = right;
}

}  // namespace terrace
