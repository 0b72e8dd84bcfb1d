#pragma once
#include <algorithm>
#include <cstdint>
#include <span>
#include <string_view>

#include "terrace/policy/block_queue.hpp"
#include "terrace/policy/ghost_list.hpp"
#include "terrace/policy/policy.hpp"

namespace terrace {

/// 2Q (T. Johnson and D. Shasha, VLDB 1994, the full version): a new block waits in a short queue (A1in), where
/// further uses in quick succession count for nothing. If it is asked for again after it has left, while its key is
/// remembered (A1out), it has proved that it comes back, and joins the main queue (Am), an LRU queue. So a scan
/// passes through without evicting what is used over and over.
///
/// It need not know the size of the tier: when a victim is asked for, the tier is full, and A1in gives one if it
/// holds more than its share of the blocks in charge. The ghosts' share is of the most blocks ever in charge at once.
/// Private blocks (key 0) leave no ghost. All operations are amortised O(1).
class two_queue {
 public:
  static constexpr std::string_view name = "two_queue";
  struct options {
    double in = 0.25;  ///< Kin: the share of A1in
    double out = 0.5;  ///< Kout: how many keys A1out remembers, as a share of the blocks
  };
  enum class queue : std::uint8_t { none, in, main };
  struct block_state {
    index_link link{};
    std::uint64_t key : block_place::key_bits = 0;
    std::uint64_t linked : 1 = false;
    std::uint64_t in_charge : 1 = false;
    queue where : 2 = queue::none;
  };
  static_assert(sizeof(block_state) == 16);

  two_queue() noexcept = default;
  explicit two_queue(options o) noexcept : options_(o) {}

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
    most_ = std::max(most_, in_.size() + main_.size());
  }

  void remove(std::uint32_t i) noexcept { queue_of(states_[i]).suspend(states_, i); }
  void evict(std::uint32_t i) noexcept {
    block_state& s = states_[i];
    queue_of(s).erase(states_, i);
    if (s.where == queue::in && s.key != 0) ghosts_.push(s.key);
    s.where = queue::none;
  }

  void touch(std::uint32_t i, const block_use&) noexcept {
    if (states_[i].where == queue::main) main_.refresh(states_, i);
  }

  std::uint32_t victim() noexcept {
    const double blocks = in_.size() + main_.size();
    const bool from_in = in_.size() > blocks * options_.in || main_.size() == 0;
    return (from_in ? in_ : main_).front(states_);
  }

  void advance_step(std::uint64_t) noexcept {}

 private:
  block_queue& queue_of(const block_state& s) noexcept { return s.where == queue::main ? main_ : in_; }

  void enter(std::uint32_t i, std::uint64_t key) noexcept {
    block_state& s = states_[i];
    queue_of(s).erase(states_, i);  // the place of the block that had this index before
    const bool comes_back = key != 0 && ghosts_.erase(key);
    s = block_state{};
    s.key = key & block_place::key_mask;
    s.where = comes_back ? queue::main : queue::in;
    queue_of(s).push(states_, i);
    // Only now, so that a block whose return pushes out the oldest ghost, its own, is still recognised.
    ghosts_.trim(static_cast<std::size_t>(options_.out * most_));
  }

  options options_;
  std::span<block_state> states_;
  block_queue in_, main_;
  ghost_list ghosts_;
  std::uint32_t most_ = 0;
};
static_assert(ghost_keeping_policy<two_queue>);

}  // namespace terrace
