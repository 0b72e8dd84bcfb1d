#pragma once
#include <cstdint>
#include <span>

#include "terrace/core/index_list.hpp"

namespace terrace {

/// Where a block stands in a `block_queue`: what every `block_state` of a policy with such queues has.
struct block_place {
  /// Policies with ghosts keep so many bits of a key beside their flags: 16 bytes a block in all. Among ten million
  /// keys two are then equal with a probability of 1 in 1400; one of them gets the other's place, and no more than
  /// that.
  static constexpr unsigned key_bits = 56;
  static constexpr std::uint64_t key_mask = (std::uint64_t{1} << key_bits) - 1;
  /// The key with its high bits folded in. 0, a private block, stays 0, and nothing else becomes it.
  static constexpr std::uint64_t short_key(std::uint64_t key) noexcept {
    const std::uint64_t folded = (key ^ (key >> key_bits)) & key_mask;
    return key != 0 && folded == 0 ? 1 : folded;
  }

  index_link link;
  bool linked = false;     ///< has a place in a queue
  bool in_charge = false;  ///< may leave the tier now
};

/// A queue of blocks, oldest first, in which a block keeps its place while it is pinned. Without that every
/// queue would be a least-recently-used one, as each use of a block pins it and gives it back. A block whose
/// turn came while it was pinned gives up its place, and comes back to the front. All operations are O(1),
/// `front` amortised over `suspend`: each block that it passes has been suspended since it was last passed.
class block_queue {
 public:
  /// Blocks in charge; the pinned ones are not counted.
  std::uint32_t size() const noexcept { return in_charge_; }

  /// `i` enters at the back, in charge. Precondition: it has no place in any queue.
  template <class State>
  void push(std::span<State> states, std::uint32_t i) noexcept {
    link_back(states, i);
    states[i].in_charge = true;
    ++in_charge_;
  }
  /// `i` is pinned: out of charge. Precondition: it is in the charge of this queue.
  template <class State>
  void suspend(std::span<State> states, std::uint32_t i) noexcept {
    states[i].in_charge = false;
    --in_charge_;
  }
  /// `i` is in charge again, at its place. Precondition: it was suspended in this queue.
  template <class State>
  void resume(std::span<State> states, std::uint32_t i) noexcept {
    if (!states[i].linked) {
      order_.push_front(links<State>{states}, i);
      states[i].linked = true;
    }
    states[i].in_charge = true;
    ++in_charge_;
  }
  /// `i` goes to the back, pinned or not.
  template <class State>
  void refresh(std::span<State> states, std::uint32_t i) noexcept {
    if (states[i].linked)
      order_.move_to_back(links<State>{states}, i);
    else
      link_back(states, i);
  }
  /// `i` loses its place, pinned or not.
  template <class State>
  void erase(std::span<State> states, std::uint32_t i) noexcept {
    unlink(states, i);
    if (states[i].in_charge) suspend(states, i);
  }
  /// The oldest one in charge, or `index_link::none`.
  template <class State>
  std::uint32_t front(std::span<State> states) noexcept {
    while (!order_.empty() && !states[order_.front()].in_charge) unlink(states, order_.front());
    return order_.front();
  }

 private:
  template <class State>
  struct links {
    std::span<State> states;
    index_link& operator[](std::uint32_t i) const noexcept { return states[i].link; }
  };
  template <class State>
  void link_back(std::span<State> states, std::uint32_t i) noexcept {
    order_.push_back(links<State>{states}, i);
    states[i].linked = true;
  }
  template <class State>
  void unlink(std::span<State> states, std::uint32_t i) noexcept {
    if (!states[i].linked) return;
    order_.erase(links<State>{states}, i);
    states[i].linked = false;
  }

  index_list order_;
  std::uint32_t in_charge_ = 0;
};

}  // namespace terrace
