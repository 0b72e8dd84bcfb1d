#pragma once
#include <algorithm>
#include <cstdint>
#include <span>
#include <string_view>

#include "terrace/policy/block_queue.hpp"
#include "terrace/policy/ghost_list.hpp"
#include "terrace/policy/policy.hpp"

namespace terrace {

/// S3-FIFO (J. Yang et al., SOSP 2023): three queues, none of which moves on a hit. A new block waits in the
/// small queue. From its front it moves to the main queue if it has been used often enough; otherwise it leaves, and
/// its key is remembered. A block whose key is remembered enters the main queue at once. At the front of the main
/// queue a block goes round again once for each of its (at most three) uses, and then leaves.
///
/// It need not know the size of the tier: when a victim is asked for, the tier is full, and the small queue gives one
/// if it holds at least its share of the blocks in charge. As many keys are remembered as the main queue's share of
/// the most blocks ever in charge at once. Private blocks (key 0) leave no ghost. All operations are amortised O(1):
/// each round that `victim` sends a block on has been paid for by a use.
class s3_fifo {
 public:
  static constexpr std::string_view name = "s3_fifo";
  struct options {
    double small = 0.1;               ///< share of the small queue
    std::uint8_t promotion_uses = 2;  ///< uses in the small queue that promote to the main queue
  };
  enum class queue : std::uint8_t { none, small, main };
  struct block_state {
    index_link link{};
    std::uint64_t key : block_place::key_bits = 0;
    std::uint64_t linked : 1 = false;
    std::uint64_t in_charge : 1 = false;
    std::uint64_t uses : 2 = 0;
    queue where : 2 = queue::none;
  };
  static_assert(sizeof(block_state) == 16);

  s3_fifo() noexcept = default;
  explicit s3_fifo(options o) noexcept : options_(o) {}

  void bind(std::span<block_state> states) {
    states_ = states;
    ghosts_.reserve(states.size() + 1);
  }

  void admit(std::uint32_t i, const block_info& info) noexcept {
    block_state& s = states_[i];
    if (info.why == block_info::admission::returned && s.where != queue::none) {
      queue_of(s).resume(states_, i);
    } else {
      enter(i, block_place::short_key(info.key));
    }
    most_ = std::max(most_, small_.size() + main_.size());
  }

  void remove(std::uint32_t i) noexcept { queue_of(states_[i]).suspend(states_, i); }
  void evict(std::uint32_t i) noexcept {
    block_state& s = states_[i];
    queue_of(s).erase(states_, i);
    if (s.where == queue::small && s.key != 0) ghosts_.push(s.key);
    s.where = queue::none;
  }

  void touch(std::uint32_t i, const block_use&) noexcept {
    block_state& s = states_[i];
    if (s.uses != most_uses) ++s.uses;
  }

  std::uint32_t victim() noexcept {
    for (;;) {
      const double blocks = small_.size() + main_.size();
      const bool from_small =
          main_.size() == 0 || (small_.size() != 0 && small_.size() >= blocks * options_.small);
      const std::uint32_t i = (from_small ? small_ : main_).front(states_);
      if (i == index_link::none) return i;
      block_state& s = states_[i];
      if (from_small && s.uses >= options_.promotion_uses) {
        small_.erase(states_, i);
        s.uses = 0;  // they have paid for the promotion
        s.where = queue::main;
        main_.push(states_, i);
      } else if (!from_small && s.uses != 0) {
        --s.uses;
        main_.refresh(states_, i);
      } else {
        return i;
      }
    }
  }

  void advance_step(std::uint64_t) noexcept {}

 private:
  static constexpr int most_uses = 3;  // two bits in the paper: more would keep a block for too long

  block_queue& queue_of(const block_state& s) noexcept { return s.where == queue::main ? main_ : small_; }

  void enter(std::uint32_t i, std::uint64_t key) noexcept {
    block_state& s = states_[i];
    queue_of(s).erase(states_, i);  // the place of the block that had this index before
    const bool comes_back = key != 0 && ghosts_.erase(key);
    s = block_state{};
    s.key = key & block_place::key_mask;
    s.where = comes_back ? queue::main : queue::small;
    queue_of(s).push(states_, i);
    // Only now, so that a block whose return pushes out the oldest ghost, its own, is still recognised.
    ghosts_.trim(static_cast<std::size_t>((1 - options_.small) * most_));
  }

  options options_;
  std::span<block_state> states_;
  block_queue small_, main_;
  ghost_list ghosts_;
  std::uint32_t most_ = 0;
};
static_assert(ghost_keeping_policy<s3_fifo>);

}  // namespace terrace
