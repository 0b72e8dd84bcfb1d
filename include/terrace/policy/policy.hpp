#pragma once
#include <concepts>
#include <cstdint>
#include <span>
#include <string_view>
#include <type_traits>

namespace terrace {

/// What an LLM cache knows about a block, and a web cache does not. Filled in by the cache; a policy uses what it
/// needs.
struct block_info {
  /// Why a block enters the policy's charge.
  enum class admission : std::uint8_t {
    first,     ///< its first copy in this tier
    ahead,     ///< its first copy in this tier, loaded by a prefetch: it has not been used yet
    returned,  ///< it was pinned meanwhile, or did not leave after all: the policy may give it back its place
  };
  std::uint64_t key = 0;  ///< names the content: equal in all tiers, and for equal prefixes; 0 if unknown
  std::uint32_t parent = 0xffffffffu;  ///< index of the block before it, if it has one
  std::uint32_t depth = 0;             ///< blocks before it in its sequence
  std::uint32_t row = 0;               ///< which row of layers it belongs to
  std::uint32_t turn = 0;    ///< how often its sequence had been continued when the block was written
  std::uint32_t bytes = 0;   ///< size in this tier
  float recompute_cost = 0;  ///< relative cost of recomputing it
  float reload_cost = 0;     ///< relative cost of bringing it back from the tier that also has it
  float mass =
      0;  ///< the share of the softmax mass that it drew when it was last weighed; 0 if none is known
  admission why = admission::first;
};

/// One use of a block.
struct block_use {
  std::uint64_t step = 0;
  float mass = 0;  ///< its exact share of the softmax mass, the mean over query heads; 0 if unknown
};

/// An eviction policy decides which block leaves a tier first; each tier has its own instance.
///
/// It is in charge of a block only between `admit` and `remove`, and the cache ensures that every block in its charge
/// is free to leave at once: a block is removed while it is pinned or in transit, and admitted again afterwards
/// (`admission::returned`). The bookkeeping for a block is one `block_state`, which the cache keeps in an array
/// indexed by block; what a policy wrote there stays while the block is out of its charge. Nobody clears it when the
/// block dies: an index that is admitted as `first` or `ahead` may still have the state of another block. A policy
/// allocates nothing after `bind`, and has no clock but the step.
///
/// - `P(options)`, `name`
/// - `bind(states)`: the array, again when it has grown; the old contents come along. `block_state` is
///   trivial to copy.
/// - `admit(i, info)`: precondition: i is not in charge. `remove(i)`: precondition: it is. Both amortised
///   O(1) or O(log n), and so is
/// - `touch(i, use)`: i was used. It may be out of the policy's charge (pinned): then only its state changes.
/// - `victim()`: the index that should leave first, or `index_link::none`. It stays in charge until removed.
/// - `advance_step(t)`: the engine's clock. It never goes back.
template <class P>
concept eviction_policy = std::is_trivially_copyable_v<typename P::block_state> &&
    std::default_initializable<typename P::block_state> && std::constructible_from<P, typename P::options> &&
    requires(P p, std::uint32_t i, const block_info& info, const block_use& use,
             std::span<typename P::block_state> states, std::uint64_t step) {
  { P::name } -> std::convertible_to<std::string_view>;
  p.bind(states);
  p.admit(i, info);
  p.touch(i, use);
  p.remove(i);
  { p.victim() } -> std::same_as<std::uint32_t>;
  p.advance_step(step);
};

/// A policy that wants to know which removals are evictions: one with ghosts, that is, remembered keys of blocks that
/// the tier has evicted for room and that may be asked for again. `evict(i)`: i leaves the tier as a victim. It is
/// called instead of `remove`, with the same precondition; if the block comes back later, it is as
/// `admission::first`.
template <class P>
concept ghost_keeping_policy = eviction_policy<P> && requires(P p, std::uint32_t i) {
  p.evict(i);
};

/// Block `i` leaves the tier: tells the policy through the function that it has.
template <eviction_policy P>
constexpr void evict_from(P& policy, std::uint32_t i) {
  if constexpr (ghost_keeping_policy<P>)
    policy.evict(i);
  else
    policy.remove(i);
}

/// A policy that wants to know what share of the softmax mass a block drew. Attention knows it only after the use was
/// reported, when all blocks of the row have been merged; `weigh(i, use)` then delivers it in `use.mass`, to the tier
/// that the block was read from. Not for every block: when many queries attend at once, it is not computed.
template <class P>
concept mass_weighing_policy = eviction_policy<P> && requires(P p, std::uint32_t i, const block_use& use) {
  p.weigh(i, use);
};

}  // namespace terrace
