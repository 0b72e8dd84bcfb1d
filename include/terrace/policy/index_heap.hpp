#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "terrace/core/index_list.hpp"

namespace terrace {

/// A binary heap of dense indices that knows where each of them is, so that any of them can leave. What an
/// index is worth, and its position, are kept by the caller, who passes his `books` to each call:
///
/// - `books.before(a, b)`: a must come out before b; a strict weak order
/// - `books.position(i)`: a reference to the position of i, which only the heap writes
///
/// `push` and `erase` are O(log n), `top` is O(1), 4 bytes an index. Only `reserve` allocates.
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

 private:
  template <class Books>
  void put(Books& books, std::uint32_t at, std::uint32_t i) noexcept {
    heap_[at] = i;
    books.position(i) = at;
  }
  template <class Books>
  void rise(Books& books, std::uint32_t at) noexcept {
    const std::uint32_t i = heap_[at];
    for (; at != 0 && books.before(i, heap_[(at - 1) / 2]); at = (at - 1) / 2)
      put(books, at, heap_[(at - 1) / 2]);
    put(books, at, i);
  }
  template <class Books>
  void sink(Books& books, std::uint32_t at) noexcept {
    const std::uint32_t i = heap_[at];
    for (std::uint32_t child = 2 * at + 1; child < size(); child = 2 * at + 1) {
      if (child + 1 < size() && books.before(heap_[child + 1], heap_[child])) ++child;
      if (!books.before(heap_[child], i)) break;
      put(books, at, heap_[child]);
      at = child;
    }
    put(books, at, i);
  }

  std::vector<std::uint32_t> heap_;
};

}  // namespace terrace
