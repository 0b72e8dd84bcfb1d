#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "terrace/core/index_list.hpp"

namespace terrace {

/// A heap of dense indices that knows where each of them is, so that any of them can leave. Each has four children:
/// what they are worth lies anywhere in memory, and four reads at once cost little more than one. What an
/// index is worth, and its position, are kept by the caller, who passes his `books` to each call:
///
/// - `books.before(a, b)`: a must come out before b; a strict weak order
/// - `books.position(i)`: a reference to the position of i, which only the heap writes
///
/// `push`, `erase` and `update` are O(log n), `top` is O(1), 4 bytes an index. Only `reserve` allocates.
class index_heap {
 public:
  /// Makes room for `capacity` indices.
  void reserve(std::size_t capacity) { heap_.reserve(capacity); }

  std::uint32_t size() const noexcept { return static_cast<std::uint32_t>(heap_.size()); }
  /// The index that comes out first, or `index_link::none`.
  std::uint32_t top() const noexcept { return heap_.empty() ? index_link::none : heap_.front(); }

  /// Precondition: `i` is not in the heap, and there is room.
  template <class Books>
  void push(Books&& books, std::uint32_t i) noexcept {
    heap_.push_back(i);
    rise(books, size() - 1);
  }
  /// Precondition: `i` is in the heap, and is worth what it was when it was pushed.
  template <class Books>
  void erase(Books&& books, std::uint32_t i) noexcept {
    const std::uint32_t hole = books.position(i);
    const std::uint32_t last = heap_.back();
    heap_.pop_back();
    if (last == i) return;
    put(books, hole, last);
    rise(books, hole);
    sink(books, books.position(last));
  }
  /// What `i` is worth has changed. Precondition: it is in the heap, and nothing else has changed since.
  template <class Books>
  void update(Books&& books, std::uint32_t i) noexcept {
    rise(books, books.position(i));
    sink(books, books.position(i));
  }

 private:
  template <class Books>
  void put(Books& books, std::uint32_t at, std::uint32_t i) noexcept {
    heap_[at] = i;
    books.position(i) = at;
  }
  template <class Books>
  void rise(Books& books, std::uint32_t at) noexcept {
    const std::uint32_t i = heap_[at];
    for (; at != 0 && books.before(i, heap_[parent(at)]); at = parent(at)) put(books, at, heap_[parent(at)]);
    put(books, at, i);
  }
  template <class Books>
  void sink(Books& books, std::uint32_t at) noexcept {
    const std::uint32_t i = heap_[at];
    for (std::uint32_t child = first_child(at); child < size(); child = first_child(at)) {
      const std::uint32_t end = std::min(child + children, size());
      for (std::uint32_t other = child + 1; other < end; ++other)
        if (books.before(heap_[other], heap_[child])) child = other;
      if (!books.before(heap_[child], i)) break;
      put(books, at, heap_[child]);
      at = child;
    }
    put(books, at, i);
  }

  static constexpr std::uint32_t children = 4;
  static constexpr std::uint32_t parent(std::uint32_t at) noexcept { return (at - 1) / children; }
  static constexpr std::uint32_t first_child(std::uint32_t at) noexcept { return children * at + 1; }

  std::vector<std::uint32_t> heap_;
};

}  // namespace terrace
