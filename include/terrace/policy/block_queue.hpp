#pragma once
#include <cstdint>
#include <span>

#include "terrace/core/index_list.hpp"

namespace terrace {

/// The place of a block in a `block_queue`: what every `block_state` of a policy with such queues has.
struct block_place {
  /// Policies with ghosts keep this many bits of a key beside their flags: 16 bytes per block in total. Among ten
  /// million keys, two are then equal with a probability of 1 in 1400; the only effect is that one of them gets the
  /// other's place.
  static constexpr unsigned key_bits = 56;
  static constexpr std::uint64_t key_mask = (std::uint64_t{1} << key_bits) - 1;
  /// The key with its high bits folded in. 0, a private block, stays 0, and no other key becomes 0.
  static constexpr std::uint64_t short_key(std::uint64_t key) noexcept {
    const std::uint64_t folded = (key ^ (key >> key_bits)) & key_mask;
    return key != 0 && folded == 0 ? 1 : folded;
  }

  index_link link;
  bool linked = false;     ///< has a place in a queue
  bool in_charge = false;  ///< may leave the tier now
};

/// A queue of blocks, oldest first, in which a block keeps its place while it is pinned. Otherwise every queue would
/// be a least-recently-used one, as each use of a block pins and releases it. A block whose turn came while it was
/// pinned gives up its place, and comes back at the front. All operations are O(1); `front` is amortised over
/// `suspend`, as each block that it passes has been suspended since it was last passed.
class block_queue {
 public:
  /// Blocks in charge; pinned ones are not counted.
  std::uint32_t size() const noexcept { return in_charge_; }

  /// Adds `i` at the back, in charge. Precondition: it has no place in any queue.
  template <class State>
  void push(std::span<State> states, std::uint32_t i) noexcept {
    link_back(states, i);
    states[i].in_charge = true;
    ++in_charge_;
  }
  /// `i` is pinned: out of charge. Precondition: this queue is in charge of it.
  template <class State>
  void suspend(std::span<State> states, std::uint32_t i) noexcept {
    states[i].in_charge = false;
    --in_charge_;
  }
  /// `i` is in charge again, in its old place. Precondition: it was suspended in this queue.
  template <class State>
  void resume(std::span<State> states, std::uint32_t i) noexcept {
    if (!states[i].linked) {
      order_.push_front(links<State>{states}, i);
      states[i].linked = true;
    }
    states[i].in_charge = true;
    ++in_charge_;
  }
  /// Moves `i` to the back, pinned or not.
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
