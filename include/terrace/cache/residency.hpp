#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "terrace/cache/hints.hpp"
#include "terrace/core/block.hpp"
#include "terrace/core/config.hpp"
#include "terrace/core/index_list.hpp"
#include "terrace/medium/extent.hpp"

namespace terrace {

/// The most tiers that a cache can have.
inline constexpr std::size_t max_tiers = 6;

/// Where one tier has a block. This is all that a lookup reads, small enough that a table of them is as fast as a
/// plain array of places.
struct copy_place {
  static constexpr std::uint32_t unreadable = 0xffffffffu;  ///< no block has this generation

  std::uint64_t offset = 0;               ///< of its bytes in the tier's medium
  std::uint32_t bytes = 0;                ///< encoded
  std::uint32_t generation = unreadable;  ///< of the block that can be read here; `unreadable` if none can
};

/// What else is known of a block's copy in one tier. Only residency changes its state, so that lookups stay
/// consistent with it.
class block_copy {
 public:
  enum class state : std::uint8_t {
    absent,
    filling,   ///< a transfer is writing it; nobody may read it
    resident,  ///< readable
    leaving,   ///< readable, while a transfer moves it to a farther tier; it goes once that has succeeded
  };
  std::uint32_t pins = 0;  ///< leases, reservations and transfers that read or write it: it stays where it is
  std::uint32_t checksum = 0;  ///< CRC32C of its encoded bytes, if the tier's medium has no addresses
  fidelity quality;
  bool in_policy : 1 = false;  ///< the tier's policy has charge of it
  bool durable : 1 = false;    ///< it has survived a sync of its tier, under its block's key
  bool labelled : 1 = false;   ///< its header bears the block's name: a sync that begins now makes it durable
  bool known : 1 = false;      ///< the tier's policy has had charge of it before
  bool prefetched : 1 = false;  ///< was brought before anybody asked, and has not been asked for yet
  bool doubtful : 1 = false;  ///< the last read of it has failed, and nobody knows whether the next one will
  bool held : 1 =
      false;  ///< doubtful, and an attempt to move it failed: it stays out of its policy's charge for a while

  bool unsaved : 1 = false;  ///< tier 0 only: no sound copy is farther down, and flushes count it
  bool round : 1 = false;    ///< of an unsaved one: in which of the flushes' two rounds

  block_copy() noexcept = default;
  block_copy(const block_copy&) noexcept = default;

  state now() const noexcept { return now_; }
  bool present() const noexcept { return now_ != state::absent; }
  bool readable() const noexcept { return now_ == state::resident || now_ == state::leaving; }

  /// Of two readable copies of a block, whether this is the one to read first, regardless of their tiers.
  bool better_source_than(const block_copy& other) const noexcept {
    return quality > other.quality || (quality == other.quality && other.doubtful && !doubtful);
  }
  /// Whether it was prefetched and is now asked for, for the first time. Clears the mark.
  bool take_prefetched() noexcept {
    const bool before = prefetched;
    prefetched = false;
    return before;
  }

 private:
  friend class residency;
  block_copy& operator=(const block_copy&) noexcept = default;  // it would change the state
  state now_ = state::absent;
  std::uint32_t node_ = 0;  // of its extent
};
static_assert(sizeof(copy_place) == 16 && sizeof(block_copy) == 16);

/// An acquire's place in the list of those that wait for a block on its way (cache/lease.hpp).
struct lease_entry;

/// What is known of one block besides its copies.
struct block_record {
  enum class phase : std::uint8_t {
    free,    ///< the index is not in use
    open,    ///< being written, in tier 0
    sealed,  ///< complete and immutable
  };
  std::uint64_t key = 0;  ///< identifies its content to policies: unique until a prefix index knows it
  std::uint32_t generation = 0;
  std::uint32_t refs = 0;  ///< sequences that refer to it; at 0 it is let go, unless a prefix index knows it
  std::uint32_t cached = index_link::none;  ///< what a prefix index knows it by; none: no index does
  std::uint32_t parent = 0;  ///< the block before it in the sequence that made it, or index_link::none
  std::uint32_t depth = 0;   ///< blocks before it
  std::uint32_t turn = 0;    ///< how often its sequence had been continued when it was written
  std::uint16_t group = 0;   ///< layer group of the layout
  std::uint16_t row = 0;     ///< row of layers, over all groups
  float mass = 0;            ///< its share of the softmax mass when it was last weighed
  phase now = phase::free;
  standing rank = standing::ordinary;  ///< what hints have said
  bool idle = false;                   ///< a prefix index knows it, and no sequence refers to it
  bool unsaved = false;                ///< in the write-behind queue: tier 0 has the only copy
  bool loading = false;                ///< in the load queue: a slot is reserved, the transfer has not begun
  bool speculative = false;            ///< the load that is queued or on its way was begun by a prefetch
  std::uint8_t load_from = 0;          ///< the tier that this load reads
  std::uint8_t tried = 0;              ///< bit set of the tiers from which this load has failed
  block_key name{};                    ///< its name, if it has one: one of the references is then the name's
  std::uint64_t matters_until = 0;  ///< the step at which it becomes evictable, of the latest hint; 0: none
  std::uint64_t naming = 0;         ///< when it got its name, counted over all names ever given
  lease_entry* waiting = nullptr;   ///< acquires that wait for the copy that is filling tier 0

  /// A sequence refers to it, or a prefix index knows it.
  bool wanted() const noexcept { return refs != 0 || cached != index_link::none; }
};

/// Which blocks exist, and which tiers have them: dense records, and for each tier dense places and copies;
/// generations tell recycled indices apart. It holds facts and takes no decisions; the planner decides.
class residency {
 public:
  explicit residency(std::size_t tiers) noexcept : tiers_(tiers) {}

  std::size_t tiers() const noexcept { return tiers_; }
  /// Indices that have ever been in use; per-block arrays are this long.
  std::size_t size() const noexcept { return records_.size(); }
  std::size_t alive() const noexcept { return alive_; }
  /// Memory per index.
  static constexpr std::size_t bytes_per_block(std::size_t tiers) noexcept {
    return sizeof(block_record) + 2 * sizeof(index_link) + tiers * (sizeof(copy_place) + sizeof(block_copy));
  }

  block_record& operator[](std::uint32_t i) noexcept { return records_[i]; }
  const block_record& operator[](std::uint32_t i) const noexcept { return records_[i]; }

  /// The record that `id` names, or nullptr if that block is gone. O(1).
  const block_record* find(block_id id) const noexcept {
    if (id.index >= records_.size()) return nullptr;
    const block_record& r = records_[id.index];
    return r.generation == id.generation && r.now != block_record::phase::free ? &r : nullptr;
  }
  block_record* find(block_id id) noexcept {
    return const_cast<block_record*>(std::as_const(*this).find(id));
  }
  block_id id_of(std::uint32_t i) const noexcept { return {i, records_[i].generation}; }

  /// Where tier `t` has the block that `id` names; nullptr if it has no readable copy, or the block is gone. O(1): it
  /// reads only the place. Precondition: `id` names a block that exists or once did, or is not valid().
  const copy_place* find_place(block_id id, std::size_t t) const noexcept {
    const std::vector<copy_place>& places = places_[t];
    if (id.index >= places.size()) return nullptr;
    const copy_place& place = places[id.index];
    return place.generation == id.generation ? &place : nullptr;
  }

  /// What tier `t` has of a block, even if it is absent.
  block_copy& copy(std::uint32_t i, std::size_t t) noexcept { return copies_[t][i]; }
  const block_copy& copy(std::uint32_t i, std::size_t t) const noexcept { return copies_[t][i]; }
  /// Its bytes there. Meaningless if it is absent.
  extent where(std::uint32_t i, std::size_t t) const noexcept {
    const copy_place& place = places_[t][i];
    return {place.offset, place.bytes, copies_[t][i].node_};
  }

  /// The states of a copy; O(1) each. Absent > filling: tier `t` will have the block at `where`.
  block_copy& add_copy(std::uint32_t i, std::size_t t, extent where, fidelity quality = {}) noexcept;
  /// Still filling, at another place.
  void move_copy(std::uint32_t i, std::size_t t, extent where) noexcept;
  /// From any but absent to `now`, resident or leaving: from here lookups find it.
  void set_readable(std::uint32_t i, std::size_t t, block_copy::state now) noexcept;
  /// Any > absent: lookups no longer find it, and everything known of it is forgotten.
  void remove_copy(std::uint32_t i, std::size_t t) noexcept;

  /// Puts an index into use. Amortised O(1): records grow to the most blocks ever alive at once, and are then
  /// recycled.
  std::uint32_t create();
  /// Precondition: it has no copy and no reference, and is in no queue.
  void recycle(std::uint32_t i) noexcept;

  /// The tier of the best readable copy: the highest fidelity, then one not doubtful, then the nearest. tiers() if
  /// there is none. `from` skips nearer tiers, `except` those whose bits are set.
  std::size_t best_copy(std::uint32_t i, std::size_t from = 0, unsigned except = 0) const noexcept;
  /// Whether a tier farther than `t` also has the block, in a copy that is not doubtful.
  bool saved_below(std::uint32_t i, std::size_t t) const noexcept;
  /// Whether any tier other than `t` does.
  bool sound_besides(std::uint32_t i, std::size_t t) const noexcept;

  /// Blocks that a prefix index knows and no sequence refers to: the first one, and the one after `i`.
  std::uint32_t first_idle() const noexcept { return idle_.front(); }
  std::uint32_t next_idle(std::uint32_t i) const noexcept { return idle_links_[i].next; }
  void mark_idle(std::uint32_t i, bool yes) noexcept;

  /// Blocks that only tier 0 has, oldest first: the work of write-behind.
  bool any_unsaved() const noexcept { return !unsaved_.empty(); }
  std::uint32_t first_unsaved() const noexcept { return unsaved_.front(); }
  std::uint32_t unsaved() const noexcept { return unsaved_.size(); }
  void mark_unsaved(std::uint32_t i, bool yes) noexcept { enqueue(unsaved_, i, records_[i].unsaved, yes); }

  /// Blocks with a reserved slot whose load has not begun, in the order in which they were asked for.
  bool any_to_load() const noexcept { return !to_load_.empty(); }
  std::uint32_t first_to_load() const noexcept { return to_load_.front(); }
  void mark_to_load(std::uint32_t i, bool yes) noexcept { enqueue(to_load_, i, records_[i].loading, yes); }

 private:
  // Differs from that of every other block, past or present, and is never 0: a bijection (the finaliser of
  // splitmix64) of a value that is never 0.
  static std::uint64_t private_key(block_id id) noexcept;
  void enqueue(index_list& queue, std::uint32_t i, bool& in, bool yes) noexcept;

  std::size_t tiers_;
  std::size_t alive_ = 0;
  std::vector<block_record> records_;
  // For each tier, as long as `records_`.
  std::array<std::vector<copy_place>, max_tiers> places_;
  std::array<std::vector<block_copy>, max_tiers> copies_;
  // One set of links serves all three lists, because no block is in two of them: an unsaved block has a readable copy
  // in tier 0, a block to be loaded has none yet, and a free one is neither.
  std::vector<index_link> links_;
  index_list free_, unsaved_, to_load_;
  std::vector<index_link> idle_links_;
  index_list idle_;  // in the order in which they became idle
};

}  // namespace terrace

#if !defined(TERRACE_PREBUILT)
#include "terrace/cache/residency_body.hpp"  // IWYU pragma: export
#endif
