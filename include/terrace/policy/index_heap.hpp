#pragma once
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "terrace/core/index_list.hpp"

namespace terrace {

/// A heap of dense indices that knows where each of them is, so that any of them can leave. What an index is worth
/// stands beside it, in an `Entry` of 16 bytes with a member `index`; each has four children, which share a cache line.
/// So a level costs one read from memory, and not one for each child that is compared. `Before{}(a, b)`, a strict weak
/// order, says that entry a must come out before b.
///
/// `push`, `erase` and `update` are O(log n), all else is O(1), 20 bytes an index. Only `reserve` allocates.
template <class Entry, class Before>
class index_heap {
  static_assert(sizeof(Entry) == 16, "four children of a heap are to fill a cache line");

 public:
  /// Makes room for the indices below `capacity`.
  void reserve(std::size_t capacity) {
    if (capacity <= slots_.size()) return;
    lines_.resize((root + capacity) / children + 1);
    slots_.resize(capacity, nowhere);
  }

  std::uint32_t size() const noexcept { return end_ - root; }
  bool contains(std::uint32_t i) const noexcept { return slots_[i] != nowhere; }
  /// The index that comes out first, or `index_link::none`.
  std::uint32_t top() const noexcept { return size() == 0 ? index_link::none : at(root).index; }

  /// Precondition: `e.index` is not in the heap, and there is room.
  void push(const Entry& e) noexcept { rise(end_++, e); }
  /// Precondition: `i` is in the heap.
  void erase(std::uint32_t i) noexcept {
    const std::uint32_t hole = std::exchange(slots_[i], nowhere);
    const Entry last = at(--end_);
    if (last.index != i) place(hole, last);
  }
  /// What an index is worth has changed to what `e` says. Precondition: it is in the heap.
  void update(const Entry& e) noexcept { place(slots_[e.index], e); }

 private:
  // The root stands at the end of the first line, so that the children of one entry begin a line.
  static constexpr std::uint32_t children = 4, root = children - 1, nowhere = 0;
  struct alignas(64) line {
    std::array<Entry, children> entries;
  };
  static constexpr std::uint32_t parent(std::uint32_t slot) noexcept { return slot / children + root - 1; }
  static constexpr std::uint32_t first_child(std::uint32_t slot) noexcept {
    return children * (slot - root + 1);
  }

  Entry& at(std::uint32_t slot) noexcept { return lines_[slot / children].entries[slot % children]; }
  const Entry& at(std::uint32_t slot) const noexcept {
    return lines_[slot / children].entries[slot % children];
  }
  void put(std::uint32_t slot, const Entry& e) noexcept {
    at(slot) = e;
    slots_[e.index] = slot;
  }
  // `e` takes the place of what is in `slot`, or one above or below. What is there says which, in a line that is written
  // anyway: so an entry that comes out later than before, and has no children, costs no other.
  void place(std::uint32_t slot, const Entry& e) noexcept {
    if (Before{}(e, at(slot)))
      rise(slot, e);
    else
      sink(slot, e);
  }
  void rise(std::uint32_t slot, const Entry& e) noexcept {
    for (; slot != root && Before{}(e, at(parent(slot))); slot = parent(slot)) put(slot, at(parent(slot)));
    put(slot, e);
  }
  void sink(std::uint32_t slot, const Entry& e) noexcept {
    for (std::uint32_t child = first_child(slot); child < end_; child = first_child(slot)) {
      const std::uint32_t end = std::min(child + children, end_);
      Entry first = at(child);
      for (std::uint32_t other = child + 1; other < end; ++other)
        if (const Entry& o = at(other); Before{}(o, first)) {
          first = o;
          child = other;
        }
      if (!Before{}(first, e)) break;
      put(slot, first);
      slot = child;
    }
    put(slot, e);
  }

  std::vector<line> lines_;
  // By index. Apart from what else is kept of an index, as those that move on the way of another one write here.
  std::vector<std::uint32_t> slots_;
  std::uint32_t end_ = root;
};

}  // namespace terrace
