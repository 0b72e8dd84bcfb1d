#pragma once
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <forward_list>
#include <memory>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "terrace/cache/keeping.hpp"
#include "terrace/cache/lease.hpp"
#include "terrace/cache/planner_options.hpp"
#include "terrace/cache/requests.hpp"
#include "terrace/cache/residency.hpp"
#include "terrace/cache/stats.hpp"
#include "terrace/cache/tier_control.hpp"
#include "terrace/core/layout.hpp"
#include "terrace/execution/context.hpp"
#include "terrace/execution/timer.hpp"
#include "terrace/execution/watched_clock.hpp"
#include "terrace/transfer/job.hpp"

namespace terrace {

/// Decides where blocks go: write-behind, demotion, promotion, who waits for whom. One instance serves one cache, on
/// its owner thread. It moves no bytes (transfer_port does) and ranks no blocks (the tiers' policies do).
///
/// Its rules:
/// - If the next tier is inclusive, a sealed block is written behind to it as soon as there is room. In tier 0 the
///   policy has charge only of blocks that a farther tier has too, so the slot of any of them can be taken at once.
/// - If it is exclusive, blocks leave tier 0 for it shortly before their room is needed, and what comes back from an
///   exclusive tier leaves it. The capacities add up, at the cost of moving more bytes.
/// - A farther tier that needs room takes its policy's victim: it lets it go if a still farther tier has it,
///   otherwise it moves it there first. A block that a sequence refers to never leaves the last tier.
/// - Slots for all blocks of an acquire are reserved together, first come, first served; only the first in line holds
///   anything, so two half-served acquires never wait for each other. An acquire waits only for transfers, never for
///   a lease to be released: when nothing is on its way and there is still no slot, it is refused with
///   out_of_capacity. Room for writing (room_request) has a line of its own with the same rule, but takes its slots
///   one by one.
/// - A worse copy never replaces a better one; a lossy copy is written to a tier once, not over itself.
/// - A transfer that passes its deadline has failed for those who wait for it. Its extents stay in quarantine until
///   it really ends, because until then it may still write them.
/// - A copy whose bytes are wrong is given up. One that could not be read for another reason stays, and is doubtful
///   until a read of it succeeds: it may be read again, but does not count as saving the block.
/// - A tier that fails is set aside and tried again later (cache/tier_health.hpp). Blocks that would go down to it go
///   to the next tier that works, or stay where they are.
class planner final : public transfer_listener {
 public:
  /// `tiers`, nearest first, and what they point at must outlive the planner.
  planner(context& ctx, kv_layout layout, std::span<tier_control* const> tiers, transfer_port& transfers,
          planner_options o);
  planner(const planner&) = delete;
  ~planner();

  context& owner() noexcept { return context_; }
  const kv_layout& layout() const noexcept { return layout_; }
  std::size_t tiers() const noexcept { return tiers_.size(); }
  std::uint64_t step() const noexcept { return step_; }

  // --- Writing: what sequences call.

  /// A new open block with a slot in tier 0 and one reference. Empty while a transfer under way may still free a
  /// slot, including one begun for this purpose. No transfer is waited for beyond planner_options::deadline.
  /// out_of_capacity as soon as none can free a slot, and, before anything leaves tier 0, for more than its capacity.
  result<std::optional<std::uint32_t>> try_open_block(std::uint16_t group, std::uint16_t row,
                                                      std::uint32_t parent, std::uint32_t depth,
                                                      std::uint32_t turn = 0);
  /// The same, but blocks meanwhile (wait_for_transfer).
  result<std::uint32_t> open_block(std::uint16_t group, std::uint16_t row, std::uint32_t parent,
                                   std::uint32_t depth, std::uint32_t turn = 0);
  /// Room in tier 0 for something that is not a block, until it is given back. Errors and waits as for open_block.
  result<extent> borrow(std::size_t bytes);
  /// Drives the context until something has happened: other completions run within this call.
  void wait_for_transfer() { context_.wait(context_.now() + std::chrono::seconds(1)); }
  /// Lets the request take room at once if it can and the line is empty; otherwise queues it. `done` may be called
  /// within this call.
  void request(room_request& r);
  /// Withdraws a request whose `done` has not been called. `give_up` gives back what it has taken, for the next one
  /// in line.
  template <class GiveUp>
  void cancel(room_request& r, GiveUp&& give_up) {
    writers_.erase(r);
    give_up();
    pump();
  }
  void give_back(extent borrowed) noexcept {
    tiers_[0]->release(borrowed);
    pump();
  }
  /// Where an open block is written. Precondition: it is open.
  std::byte* open_data(std::uint32_t block) noexcept;
  /// What was copied into an open block has that fidelity.
  void lower_fidelity(std::uint32_t block, fidelity of) noexcept {
    fidelity& own = blocks_.copy(block, 0).quality;
    if (of < own) own = of;
  }
  /// From here the block is immutable and may leave tier 0, once `wake` is called.
  void seal(std::uint32_t block);
  void add_ref(std::uint32_t block);
  /// Dropping the last reference lets the block go from every tier, unless it is cached. Those who wait for its room
  /// get it after `wake`.
  void drop_ref(std::uint32_t block);
  /// Does what has become possible after blocks were sealed and references dropped. Other completions run within this
  /// call, so the caller must have finished its own work before.
  void wake() { pump(); }
  block_id id_of(std::uint32_t block) const noexcept { return blocks_.id_of(block); }
  /// How many indices blocks have ever had: `record` takes those below it.
  std::size_t indices() const noexcept { return blocks_.size(); }
  const block_record& record(std::uint32_t block) const noexcept { return blocks_[block]; }
  /// The same by id; nullptr if that block is gone, or goes as soon as transfers let it.
  const block_record* find_record(block_id id) const noexcept {
    const block_record* found = blocks_.find(id);
    return found != nullptr && found->wanted() ? found : nullptr;
  }
  /// What a tier has of a block, even if it is absent; and where.
  const block_copy& copy(std::uint32_t block, std::size_t tier) const noexcept {
    return blocks_.copy(block, tier);
  }
  extent where(std::uint32_t block, std::size_t tier) const noexcept { return blocks_.where(block, tier); }

  // --- Blocks that stay when nobody refers to them (planner_cached.hpp): for prefix_index.

  /// From now on the block stays when its last reference is dropped, until its room is needed; policies know it by
  /// `key`. The index knows it by `entry`. Precondition: it is sealed, and not cached.
  void cache_block(std::uint32_t block, std::uint32_t entry, std::uint64_t key);
  /// The end of that. Precondition: it is cached.
  void uncache_block(std::uint32_t block);
  /// Whether this block is alive and some tier has it or is about to. O(tiers).
  bool resident(block_id id) const noexcept;
  /// The entries of cached blocks that have been let go since this was last emptied, one for each block: never more
  /// than there were cached blocks.
  std::vector<std::uint32_t>& expired_entries() noexcept { return expired_; }

  // --- Reading.

  /// Serves the request, or puts it in line. `done` may be called within this call.
  void request(acquire_request& r);
  /// Withdraws a request whose `done` has not been called: its pins are returned; loads that nobody else wants are
  /// dropped if they have not begun, and otherwise go on as prefetches.
  void cancel(acquire_request& r);
  /// Unpins and recycles. The other end of `lease`.
  void release(lease_record* record);
  void release(lease_record* record, std::uint8_t tier);
  /// Starts loading those blocks that attention cannot read now, without pinning them. Returns how many loads it
  /// started.
  std::size_t prefetch(std::span<const block_id> wanted, lease_form form);

  /// Whether an acquire would now take a slot of tier 0 for this block.
  bool needs_slot(block_id id, lease_form form) const noexcept;
  /// How attention would read a block now; without data if it could not. Nothing is pinned: for measurements only.
  leased_block readable_now(block_id id, lease_form form) noexcept;

  // --- Hints, time, sizes, accounts (planner_upkeep.hpp).

  /// Applies `h` to these blocks; see sequence::hint. O(blocks log hints).
  /// `partial`: the range that was hinted at has blocks that are not whole, and so not among these.
  hint_outcome hint_blocks(std::span<const block_id> blocks, const hint& h, bool partial);
  /// Tells the policies of the tiers that have the block what share of the softmax mass it drew in this step; if
  /// several sequences of a batch read it, the sum of their shares.
  void weigh(std::uint32_t block, float mass);
  /// Whether the policy wants to be told.
  bool weighs() const noexcept { return tiers_[0]->what.weighs; }
  void advance_step(std::uint64_t step);
  /// See kv_store::resize.
  result<void> resize(std::size_t tier, std::size_t bytes);
  void flush(flush_request& r);
  /// Withdraws a flush whose `done` has not been called. Stores begun for it go on.
  void cancel(flush_request& r);
  cache_stats stats() const;
  /// See kv_store::health.
  tier_health health(std::size_t tier) const { return tiers_[tier]->breaker.health(); }
  cache_health health() const;
  std::size_t hot_capacity() const noexcept { return tiers_[0]->capacity(); }
  /// Where the slots of tier 0 begin; it never changes.
  const std::byte* hot_data() const noexcept { return tiers_[0]->address({}); }
  std::byte* hot_address(extent e) noexcept { return tiers_[0]->address(e); }
  /// The most bytes that an encoded block of `g` takes in any tier that attention reads without decoding; 0 if all
  /// such tiers hold raw blocks.
  std::size_t most_encoded_bytes(const layer_group& g) const noexcept {
    std::size_t most = 0;
    for (const tier_control* t : tiers_)
      if (t->what.readable && !t->what.raw) most = std::max(most, t->what.codec.max_encoded_size(g));
    return most;
  }
  /// Whether tier 0 is in host or device memory.
  reach hot_reach() const noexcept { return tiers_[0]->what.addressable; }
  /// Copies between addresses of tier 0.
  result<void> copy_hot(std::byte* to, const std::byte* from, std::size_t bytes) {
    return tiers_[0]->copy_within(to, from, bytes);
  }
  std::size_t hot_bytes() const noexcept { return tiers_[0]->used() + transfers_.staging_in_use(); }
  void note_hot_bytes() noexcept { hot_peak_ = hot_peak_ < hot_bytes() ? hot_bytes() : hot_peak_; }

  // --- Names, and what outlives the process (planner_durability.hpp).

  /// See kv_store::name, find and forget.
  result<void> name(block_id id, block_key key);
  std::optional<block_id> find(block_key key) const noexcept;
  void forget(block_key key);
  template <class F>
  void for_each_name(F&& f) const {
    for (const auto& [key, index] : names_) f(key, blocks_.id_of(index));
  }
  /// Adopts the blocks that the media have kept. Called once, before anything else.
  void adopt_kept();

  // --- Damage and repair (planner_restore.hpp).

  /// See kv_store::report_damaged.
  result<void> report_damaged(block_id id, std::size_t tier);
  /// Whether a block can be recomputed: it is sealed, and tier 0 neither has it nor is receiving it.
  bool restorable(block_id id) const noexcept;
  /// See kv_store::restore. The block is the caller's until end_restore, which says whether it is whole. Empty while
  /// a transfer may free a slot. unavailable if it is no longer restorable.
  result<std::optional<std::byte*>> try_restore(block_id id);
  void end_restore(std::uint32_t block, bool whole);

  // --- What transfers call (transfer/job.hpp).

  void source_read(transfer_job& job) override;
  bool shrink_target(transfer_job& job, std::size_t bytes) override;
  void overdue(transfer_job& job) override;
  void finished(transfer_job& job, result<void> outcome) override;

  /// Starts no more transfers, answers waiting acquires, flushes and room requests with errc::stopped, and waits for
  /// transfers and syncs under way. Called before media close.
  void shut_down();

 private:
  enum class room : std::uint8_t { ready, pending, impossible };
  struct claim {
    room what;
    extent where;
  };
  // What the room is for.
  struct need {
    std::size_t ahead = 1;  // how many such blocks are in line: that many moves may run at once
    bool fresh = false;     // new tokens, which may not take the room that swaps of old blocks need
    bool speculative =
        false;  // a prefetch, which may not take the room of another one that is still to be used
    std::optional<extent> behind{};  // below tier 0: the block that is read before it
  };
  using state = block_copy::state;
  static constexpr error closing{errc::stopped, "the cache has ended"};
  static constexpr error no_answer{errc::unavailable,
                                   "the tier that has this block is set aside, for it does not answer"};

  const layer_group& group_of(const block_record& r) const noexcept { return layout_.groups[r.group]; }
  std::size_t slot_bytes(const block_record& r) const noexcept { return group_of(r).block_bytes(); }
  std::size_t last() const noexcept { return tiers_.size() - 1; }

  void pin(std::uint32_t block, std::size_t tier);
  void unpin(std::uint32_t block, std::size_t tier);
  void settle(std::uint32_t block, std::size_t tier);
  void discharge(std::uint32_t block, std::size_t tier);
  enum class departure : std::uint8_t { evicted, dropped };
  void drop_copy(std::uint32_t block, std::size_t tier, departure why = departure::dropped);
  void collect(std::uint32_t block);

  claim claim_slot(std::size_t bytes, need n);
  result<std::optional<extent>> try_borrow(std::size_t bytes);
  claim claim_room(std::size_t tier, std::size_t bytes, need n);
  std::optional<extent> read_before(std::uint32_t block, std::size_t tier) const noexcept;
  room vacate(std::size_t tier, need n);
  room vacate_idle(std::size_t tier);
  void read_failed(std::uint32_t block, std::size_t tier, const error& cause);
  void trust(std::uint32_t block, std::size_t tier);
  void give_up_copy(std::uint32_t block, std::size_t tier);
  bool drop_doubtful_victim(std::uint32_t block, std::size_t tier);
  void hold(std::uint32_t block, std::size_t tier);
  void release_held(context::clock::time_point now);
  void let_go(std::uint32_t block, std::size_t tier);
  void settle_all(std::uint32_t block);
  void expire(std::uint32_t block);
  std::size_t headroom(std::size_t tier, std::size_t bytes) const noexcept;
  room start_store(std::uint32_t block, std::size_t from, bool evict, need n, bool kept = false);
  room start_store_to(std::uint32_t block, std::size_t from, std::size_t to, bool evict, need n);
  void choose_inclusions();
  void leave_exclusive(std::uint32_t block);
  bool loads_full() const noexcept {
    return loads_ - overdue_loads_ - working_loads_ >= options_.loads_in_flight ||
           loads_ == 2 * options_.loads_in_flight;
  }
  bool stores_full() const noexcept {
    return stores_ - overdue_stores_ == options_.stores_in_flight || stores_ == 2 * options_.stores_in_flight;
  }
  // An overdue transfer may never end: nobody waits for it.
  bool something_may_leave() const noexcept {
    return loads_ + stores_ != overdue_loads_ + overdue_stores_ || blocks_.any_to_load();
  }

  void pump();
  void start_stores();
  void make_room_ahead();
  void shrink_tiers();
  void start_loads();
  void serve_line();
  void serve_writers();
  bool serve(acquire_request& r);
  std::size_t readable_copy(block_id id, lease_form form) const noexcept;
  void abandon(acquire_request& r);
  enum class prefetch_outcome : std::uint8_t { begun, needless, no_room, no_source };
  prefetch_outcome begin_prefetch(block_id id, lease_form form);
  void begin_load(std::uint32_t block, extent slot, bool speculative);
  void redirect_load(std::uint32_t block, const error& cause);
  void drop_queued_load(std::uint32_t block);
  void count_demand(std::uint32_t block, std::size_t tier);
  void finish_load(transfer_job& job, const result<void>& outcome);
  void finish_store(transfer_job& job, const result<void>& outcome);
  void end_quarantine(transfer_job& job, bool read);
  void lose_load(std::uint32_t block, const error& cause);
  void answer_waiting(std::uint32_t block, const error* cause);
  void make_ready(acquire_request& r);
  void complete_ready();
  void count_unsaved(std::uint32_t block, bool yes) noexcept;
  bool of_this_flush(std::uint32_t block) const noexcept {
    return flush_.first != nullptr && blocks_[block].naming <= flush_.naming;
  }
  void keep_later(std::uint32_t block);
  void leave_out(block_id id, const error& why);
  void store_ended(transfer_job& job) noexcept;
  void begin_flush();
  void await_stores(bool all) noexcept;
  bool flush_covered() noexcept;
  bool flush_is_stuck() noexcept;
  void settle_flushes();
  error why_unsaved() const noexcept;
  void answer_flushes(flush_request* first, const std::optional<error>& failure);
  void drop_pending();
  bool guarded(std::uint32_t block, std::size_t tier) const noexcept;
  bool may_leave_keeper(std::uint32_t block, std::size_t tier) const noexcept;
  std::size_t next_keeper(std::size_t from) const noexcept;
  void start_keeping();
  void start_sync();
  bool may_sync(std::size_t tier) const noexcept;
  bool sync_may_help() const noexcept;
  void begin_sync(std::size_t tier);
  void give_up_syncs(context::clock::time_point real);
  void sync_ended(std::size_t tier, const result<void>& outcome);
  void answer_sync(std::size_t tier, const result<void>& outcome);
  bool adopt(std::size_t tier, extent at, const extent_header& header);
  static constexpr error not_restored{errc::lost, "a block that was to be computed anew was given up"};

  bool open(std::size_t tier) const noexcept;
  bool takes_blocks(std::size_t tier) const noexcept;
  void disown(std::uint32_t block, std::size_t tier) noexcept;
  void check_copies(std::uint32_t block);
  std::size_t next_tier(std::size_t from) const noexcept;
  std::size_t load_source(std::uint32_t block, unsigned tried = 0) const noexcept;
  bool note_begin(std::size_t tier, circuit_breaker::work w) noexcept;
  void note_failure(std::size_t tier, circuit_breaker::work w, const error& cause,
                    bool probe = false) noexcept;
  bool admits_load(std::size_t tier) const noexcept;
  void ring() noexcept;
  void rank(std::uint32_t block, standing s);
  void run_due_hints();
  transfer_job& take_job() noexcept;
  void grow();
  lease_record* take_record(std::size_t entries);
  void give_back(lease_record* record) noexcept;

  context& context_;
  kv_layout layout_;
  std::span<tier_control* const> tiers_;
  transfer_port& transfers_;
  planner_options options_;
  residency blocks_;

  request_queue<acquire_request> line_;   // acquires that wait for slots, first come first served
  request_queue<acquire_request> ready_;  // acquires whose `done` is due
  request_queue<room_request> writers_;   // writers that wait for slots, likewise
  flush_request* flushes_ = nullptr;      // that the next round will answer
  flush_request* answering_ = nullptr;    // whose round is over

  flush_round flush_;
  std::array<std::uint32_t, 2> unsaved_{};  // blocks that are sealed and only in tier 0, by round
  bool round_ = false;                      // the round they enter
  bool stuck_ = false;                      // the next block to store can go nowhere
  std::uint64_t kept_ = 0;                  // blocks ever taken out of to_keep_

  std::unique_ptr<transfer_job[]> jobs_;
  transfer_job* free_jobs_ = nullptr;
  lease_record* free_records_ = nullptr;
  std::size_t longest_record_ = 0;  // the most entries ever asked for
  std::forward_list<lease_record> records_;
  std::vector<extent> slots_;  // scratch of serve()
  std::vector<std::uint32_t> expired_;

  // Hints that wait for their step, soonest first (a heap).
  struct timed_hint {
    std::uint64_t at_step;
    block_id id;
    hint::kind what;
    // A prefetch may have to wait within its step: what becomes evictable does not.
    friend bool operator<(const timed_hint& a, const timed_hint& b) noexcept {
      return std::pair(a.at_step, a.what != hint::kind::ttl) >
             std::pair(b.at_step, b.what != hint::kind::ttl);
    }
  };
  std::vector<timed_hint> timed_;
  hint_stats hints_;
  std::size_t kept_bytes_ = 0;  // slots of tier 0 that blocks of standing `kept` would take

  std::array<bool, max_tiers> exclusive_{};
  bool pressed_ = false;       // tier 0 has been full
  bool write_behind_ = true;   // the tier that follows tier 0 is inclusive
  std::size_t last_open_ = 0;  // the farthest tier that was not left out
  unsigned loads_ = 0, stores_ = 0, prefetches_ = 0;
  unsigned overdue_loads_ = 0, overdue_stores_ = 0;
  unsigned working_loads_ = 0;                    // read, and not overdue
  std::array<unsigned, max_tiers> hung_{};        // overdue transfers, by the tier to blame
  std::array<std::size_t, max_tiers> leaving_{};  // bytes that demotions on their way will free, per tier
  timer alarm_{context_, [](void* self) noexcept { static_cast<planner*>(self)->ring(); }, this};
  struct held_copies {
    std::vector<block_id> blocks;
    context::clock::time_point until{};
    unsigned pauses = 0;  // since a doubtful copy of the tier was last read
  };
  std::array<held_copies, max_tiers> held_;  // copies that could not be read for a move, per tier
  std::size_t grown_ = 0;
  prefetch_stats prefetch_;
  std::uint64_t misses_ = 0, dropped_ = 0, pins_ = 0, step_ = 0;
  std::size_t hot_peak_ = 0;

  // A named block is durable once a tier that keeps has a copy and has been synced with its header.
  std::unordered_map<block_key, std::uint32_t, block_key_hash> names_;
  std::vector<block_id> left_out_;         // named, lost or not readable: the next flush looks again
  std::uint64_t namings_ = 0;              // names ever given, including by earlier caches
  std::array<bool, max_tiers> keepers_{};  // tiers whose medium keeps
  std::deque<block_id> to_keep_;           // perhaps no keeper has a copy; the next flush looks at them
  std::vector<block_id> to_sync_;          // a keeper has a copy that is not durable
  std::vector<labelled_copy> syncing_;     // what the syncs under way will make durable
  std::array<keeper_sync, max_tiers> syncs_{};
  unsigned syncs_under_way_ = 0;  // and still waited for
  watched_clock syncs_watched_{options_.time_limit()};
  bool sync_wanted_ = false;    // there will be room once copies farther down are durable
  bool names_taken_ = false;    // a keeper has the header of a forgotten name
  bool names_syncing_ = false;  // the same before the syncs under way began
  std::optional<error> keep_failure_;

  bool pumping_ = false, again_ = false, stopping_ = false;
};

}  // namespace terrace

#if !defined(TERRACE_PREBUILT)
#include "terrace/cache/planner_cached.hpp"      // IWYU pragma: export
#include "terrace/cache/planner_doubt.hpp"       // IWYU pragma: export
#include "terrace/cache/planner_durability.hpp"  // IWYU pragma: export
#include "terrace/cache/planner_flush.hpp"       // IWYU pragma: export
#include "terrace/cache/planner_health.hpp"      // IWYU pragma: export
#include "terrace/cache/planner_loads.hpp"       // IWYU pragma: export
#include "terrace/cache/planner_moves.hpp"       // IWYU pragma: export
#include "terrace/cache/planner_reads.hpp"       // IWYU pragma: export
#include "terrace/cache/planner_restore.hpp"     // IWYU pragma: export
#include "terrace/cache/planner_upkeep.hpp"      // IWYU pragma: export
#include "terrace/cache/planner_writes.hpp"      // IWYU pragma: export
#endif
