#pragma once
#include <cstdint>
#include <span>

namespace terrace {

/// The links of one element of an `index_list`.
struct index_link {
  static constexpr std::uint32_t none = 0xffffffffu;
  std::uint32_t previous = none;
  std::uint32_t next = none;
};

/// A doubly linked list of dense indices whose links live in an array owned elsewhere: every operation is O(1) and
/// allocates nothing. An index is in at most one list over the same links.
class index_list {
 public:
  static constexpr std::uint32_t none = index_link::none;

  bool empty() const noexcept { return head_ == none; }
  std::uint32_t size() const noexcept { return size_; }
  std::uint32_t front() const noexcept { return head_; }
  std::uint32_t back() const noexcept { return tail_; }

  template <class Links>
  void push_back(Links&& links, std::uint32_t i) noexcept {
    links[i] = {tail_, none};
    (tail_ == none ? head_ : links[tail_].next) = i;
    tail_ = i;
    ++size_;
  }
  template <class Links>
  void push_front(Links&& links, std::uint32_t i) noexcept {
    links[i] = {none, head_};
    (head_ == none ? tail_ : links[head_].previous) = i;
    head_ = i;
    ++size_;
  }
  /// Moves `i`, which is in the list, to its end.
  template <class Links>
  void move_to_back(Links&& links, std::uint32_t i) noexcept {
    const index_link link = links[i];
    if (link.next == none) return;
    links[link.next].previous = link.previous;
    (link.previous == none ? head_ : links[link.previous].next) = link.next;
    links[i] = {tail_, none};
    links[tail_].next = i;
    tail_ = i;
  }
  template <class Links>
  void erase(Links&& links, std::uint32_t i) noexcept {
    const index_link link = links[i];
    (link.previous == none ? head_ : links[link.previous].next) = link.next;
    (link.next == none ? tail_ : links[link.next].previous) = link.previous;
    --size_;
  }

 private:
  std::uint32_t head_ = none, tail_ = none, size_ = 0;
};

}  // namespace terrace
