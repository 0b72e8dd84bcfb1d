#pragma once
#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "terrace/cache/acquire.hpp"
#include "terrace/cache/block_range.hpp"
#include "terrace/cache/planner.hpp"
#include "terrace/cache/restoration.hpp"
#include "terrace/cache/room.hpp"
#include "terrace/prefetch/layer_ahead.hpp"
#include "terrace/sequence.hpp"

namespace terrace {
inline namespace TERRACE_EX {

class stream_workspace_pool;

/// The operations of a cache, whatever its tiers: `tiered_cache` inherits it, and code that does not care how the
/// ladder is composed takes it. Owner thread only.
class kv_store {
 public:
  kv_store(kv_store&&) noexcept = default;
  kv_store& operator=(kv_store&&) noexcept = default;

  context& owner() noexcept { return planner_->owner(); }
  const kv_layout& layout() const noexcept { return planner_->layout(); }

  /// An empty sequence. It must end before the cache does.
  sequence make_sequence() { return sequence(*planner_, ++sequences_); }
  /// A sequence with the same tokens that shares every block (sequence::fork).
  sequence fork(const sequence& s) { return s.fork(++sequences_); }
  /// The same with only its first `tokens` tokens, even while a reservation is open: for recomputing what follows
  /// them. Errors: invalid_argument for more tokens than it has, or if they end inside a block of some group.
  result<sequence> fork(const sequence& s, std::uint64_t tokens) { return s.fork(++sequences_, tokens); }

  /// Brings sealed blocks to where attention can read them, and pins them: a sender of a lease (cache/acquire.hpp).
  /// `ids` must stay valid until it completes.
  acquire_sender acquire(std::span<const block_id> ids, lease_form form = lease_form::raw) noexcept {
    return {*planner_, ids, form};
  }
  /// Starts loading blocks without pinning them, and returns how many loads it started. Never waits.
  std::size_t prefetch(std::span<const block_id> ids, lease_form form = lease_form::raw) {
    return planner_->prefetch(ids, form);
  }
  /// Gives a sealed block a name, which outlives the process if a tier keeps (`.keep` in its options). The name holds
  /// a reference of its own: a named block stays until `forget`, even when no sequence refers to it any more. Errors:
  /// invalid_argument if the key is all zeros, or the block is not sealed or has another name, or another block has
  /// this name; unavailable once a forged header in a store has used up the numbers that stores give names. O(1).
  result<void> name(block_id id, block_key key) { return planner_->name(id, key); }
  /// The block with that name, given in this cache, or in an earlier one whose flush covered it. O(1).
  std::optional<block_id> find(block_key key) const noexcept { return planner_->find(key); }
  /// Calls f(key, id) for every name, those of earlier caches included, so that a restarted engine can find names it
  /// no longer knows and `forget` them, after this call has returned. O(names).
  template <class F>
  void for_each_name(F&& f) const {
    planner_->for_each_name(f);
  }
  /// Which tokens of which layers a block holds: for engines that recompute what a block_error names. In the last
  /// block of a suspended sequence, whatever lies past the sequence's length is unspecified. Empty if the block is
  /// gone. O(groups).
  std::optional<block_range> range_of(block_id id) const noexcept {
    const block_record* const r = planner_->find_record(id);
    if (r == nullptr) return std::nullopt;
    return terrace::range_of(layout(), *r);
  }
  /// Whether this block is alive and some tier has it or is about to. O(tiers).
  bool resident(block_id id) const noexcept { return planner_->resident(id); }
  /// Removes the name and its reference. Does nothing if there is no such name.
  void forget(block_key key) { planner_->forget(key); }

  /// A sender that completes when every block sealed before it started is stored in a tier below tier 0, and every
  /// block named before it started is durable in a tier that keeps: it survives a crash of the process and of the
  /// machine. Names forgotten before it started then do not come back. Blocks sealed or named later do not delay it;
  /// flushes that start while one is under way are answered together after it. Errors: out_of_capacity if there is no
  /// room for that; the error of a tier that is set aside or whose sync fails (deadline if the sync hangs); lost as
  /// long as a named block is lost (`for_each_name` and `resident` tell which; `restore` it, or `forget` its name), or
  /// the cause if one cannot be read now; all others are durable in both cases. When asked to stop, it completes with
  /// set_stopped, and the work that it started goes on.
  flush_sender flush() noexcept { return flush_sender(*planner_); }
  /// The engine's clock: the step that begins now. Steps never go back.
  void advance_step(std::uint64_t step) { planner_->advance_step(step); }

  /// Room to recompute a lost block under its id (cache/restoration.hpp): one that an acquire named in a block_error.
  /// If a tier still has it, for example one that does not answer in time, what is written counts as exact and takes
  /// the place of that copy. Drives the context while a transfer under way may free a slot. Errors: invalid_argument
  /// if the block is gone, was never sealed, or is in tier 0 or on its way there; unavailable if it arrived there, or
  /// was let go, while room was made; out_of_capacity as for `reserve`.
  result<restoration> restore(block_id id) { return take_room(restoration_room(*planner_, id)); }
  /// The same as a sender of a restoration (cache/room.hpp), which never blocks.
  room_sender<restoration_room> restore_async(block_id id) noexcept {
    return room_sender(restoration_room(*planner_, id));
  }
  /// Gives up the copy of a block in a tier below tier 0: for engines that detect damage themselves (a memory error,
  /// a check of their own). It is never served again and counts as lost there; other copies stay. Errors:
  /// invalid_argument if there is no such copy, unavailable while it is pinned or in transit. O(1), apart from what
  /// policies do.
  result<void> report_damaged(block_id id, std::size_t tier) { return planner_->report_damaged(id, tier); }

  /// The prefetcher that streams ask: `layer_ahead` by default, none with `any_prefetcher{}`.
  void use(any_prefetcher p) { prefetcher_ = std::move(p); }
  any_prefetcher& prefetcher() noexcept { return prefetcher_; }

  /// Changes a tier's capacity while the cache is in use: under memory pressure, or with room to spare. In tier 0 it
  /// covers slots and staging together. Returns at once; blocks that must leave do so as transfers and pins allow,
  /// and `stats().tiers[tier].resident_bytes` shows the progress. Nothing that is referred to is dropped: while the
  /// tiers below have no room, blocks stay. Errors, after which nothing has changed: invalid_argument if tier 0 could
  /// not hold one block and its staging, or there is no such tier; unavailable if the medium cannot be resized;
  /// otherwise the medium's error.
  result<void> resize(std::size_t tier, std::size_t bytes) { return planner_->resize(tier, bytes); }

  cache_stats stats() const { return planner_->stats(); }
  /// The present health of a tier, and of the whole cache: what works, what is set aside, since when and until when,
  /// and the last error (cache/tier_health.hpp). O(tiers).
  tier_health health(std::size_t tier) const { return planner_->health(tier); }
  cache_health health() const { return planner_->health(); }

  /// For streams: the planner, which decides where blocks go, and buffers that outlive a stream.
  planner& control() noexcept { return *planner_; }
  stream_workspace_pool& workspaces() noexcept { return *workspaces_; }

 protected:
  kv_store(planner& p, stream_workspace_pool& w) noexcept : planner_(&p), workspaces_(&w) {}

 private:
  planner* planner_;
  stream_workspace_pool* workspaces_;
  any_prefetcher prefetcher_ = layer_ahead{};
  std::uint32_t sequences_ = 0;
};

}  // namespace TERRACE_EX
}  // namespace terrace
