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

/// The verbs of a cache, whatever its tiers: what `tiered_cache` inherits, and what code takes that does not
/// care how the ladder is composed. For the thread that owns the context.
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
  /// Likewise with its first `tokens` tokens alone, even while a reservation is open: for computing anew what comes
  /// after them. Errors: invalid_argument for more tokens than it has, or where they end within a block of some
  /// group.
  result<sequence> fork(const sequence& s, std::uint64_t tokens) { return s.fork(++sequences_, tokens); }

  /// Brings sealed blocks to where attention can read them, and pins them: a sender of a lease
  /// (cache/acquire.hpp). `ids` must stay until it completes.
  acquire_sender acquire(std::span<const block_id> ids, lease_form form = lease_form::raw) noexcept {
    return {*planner_, ids, form};
  }
  /// Begins to bring blocks without pinning them; returns how many loads were begun. Never waits.
  std::size_t prefetch(std::span<const block_id> ids, lease_form form = lease_form::raw) {
    return planner_->prefetch(ids, form);
  }
  /// Gives a sealed block a name that outlives the process where a tier keeps (`.keep` in its options), and a
  /// reference of its own: a block with a name stays when no sequence refers to it any more, until `forget`. Errors:
  /// invalid_argument where the block is not sealed, has another name, or another block has this one. O(1).
  result<void> name(block_id id, block_key key) { return planner_->name(id, key); }
  /// The block of that name: of this cache, or of an earlier one whose flush has covered it. O(1).
  std::optional<block_id> find(block_key key) const noexcept { return planner_->find(key); }
  /// Calls f(key, id) for each name that there is, of earlier caches as well: what an engine that starts again does not
  /// know any more it can `forget`, afterwards. O(names).
  template <class F>
  void for_each_name(F&& f) const {
    planner_->for_each_name(f);
  }
  /// Where a block's tokens stand: for engines that compute anew what a block_error names. Of the last block of a
  /// suspended sequence what lies behind its length may be anything. Nothing where the block is gone. O(groups).
  std::optional<block_range> range_of(block_id id) const noexcept {
    const block_record* const r = planner_->find_record(id);
    if (r == nullptr) return std::nullopt;
    return terrace::range_of(layout(), *r);
  }
  /// Whether this block is alive and some tier has it, or soon will. O(tiers).
  bool resident(block_id id) const noexcept { return planner_->resident(id); }
  /// Takes the name away, and its reference. Nothing where there is none.
  void forget(block_key key) { planner_->forget(key); }

  /// A sender that completes when every block sealed before has been stored in a tier below tier 0, and every block
  /// that had a name before is durable in a tier that keeps: it survives a crash of the process and of the machine.
  /// Names that were forgotten before do not come back then. What is sealed and named later does not hold it up;
  /// flushes that begin while one is under way are answered together after it. Errors: out_of_capacity where there is
  /// no room for that, what a tier has failed with where one is set aside or its sync fails (deadline where it
  /// hangs), lost as long as a block with a name is, while the others are made durable (`for_each_name` and
  /// `resident` tell which; `restore` it, or `forget` its name). Asked to stop, it completes with set_stopped, and
  /// what it had begun goes on.
  flush_sender flush() noexcept { return flush_sender(*planner_); }
  /// The engine's clock: the step that begins now. It never goes back.
  void advance_step(std::uint64_t step) { planner_->advance_step(step); }

  /// Room to compute a lost block anew, under its id (cache/restoration.hpp): one that an acquire has named in a
  /// block_error. Where a tier still has it, as one that does not answer in time, what is written is as good as new and
  /// takes its place. Drives the context while a transfer on its way may free a slot. Errors: invalid_argument where
  /// the block is gone, was never sealed, or is in tier 0 or on its way there; unavailable where it has come there, or
  /// gone, while room was made; out_of_capacity as for `reserve`.
  result<restoration> restore(block_id id) { return take_room(restoration_room(*planner_, id)); }
  /// The same as a sender of a restoration (cache/room.hpp), which never blocks.
  room_sender<restoration_room> restore_async(block_id id) noexcept {
    return room_sender(restoration_room(*planner_, id));
  }
  /// Gives up the copy of a block in a tier below tier 0: for engines that find damage themselves (a memory error, a
  /// check of their own). It is never served again and counts as lost there; other copies stay. Errors:
  /// invalid_argument where there is no such copy, unavailable while it is pinned or moved. O(1) but for what policies
  /// do.
  result<void> report_damaged(block_id id, std::size_t tier) { return planner_->report_damaged(id, tier); }

  /// Which prefetcher streams ask; `layer_ahead` until told otherwise, none with `any_prefetcher{}`.
  void use(any_prefetcher p) { prefetcher_ = std::move(p); }
  any_prefetcher& prefetcher() noexcept { return prefetcher_; }

  /// Gives a tier another capacity while the cache is at work: memory pressure, or room to spare. In tier 0 it is
  /// slots and staging together. Returns at once; where blocks must leave, they do so as transfers and pins allow,
  /// and `stats().tiers[tier].resident_bytes` shows how far that is. Nothing that is referred to is dropped: while the
  /// tiers below have no room, blocks stay. Errors: invalid_argument below one block and staging in tier 0,
  /// unavailable where the medium cannot be resized, else what the medium says; then nothing has changed.
  result<void> resize(std::size_t tier, std::size_t bytes) { return planner_->resize(tier, bytes); }

  cache_stats stats() const { return planner_->stats(); }
  /// How a tier, and the whole cache, do their work now: what works, what is set aside since when and until when, and
  /// what it has failed with (cache/tier_health.hpp). O(tiers).
  tier_health health(std::size_t tier) const { return planner_->health(tier); }
  cache_health health() const { return planner_->health(); }

  /// For streams: what decides where blocks go, and buffers that outlive a stream.
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
