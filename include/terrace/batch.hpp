#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "terrace/cache/batch_window.hpp"
#include "terrace/cache/page_walk.hpp"
#include "terrace/kv_store.hpp"
#include "terrace/sequence.hpp"

namespace terrace {
inline namespace TERRACE_EX {

class batch;
class next_sender;

/// What `batch::reserve` takes room for (cache/room.hpp).
class batch_room {
 public:
  using value_type = void;
  batch_room(batch& b, std::span<const std::uint32_t> tokens) noexcept : batch_(&b), tokens_(tokens) {}

  planner& control() noexcept;
  result<void> begin();
  result<bool> take();
  void finish() noexcept;
  void give_up();

 private:
  batch* batch_;
  std::span<const std::uint32_t> tokens_;
  std::size_t at_ = 0;  // the sequence being served
};

/// A ragged set of sequences that decode together. For each layer it gives windows of pages, small enough for tier 0,
/// in an order in which every sequence sees its pages ascending; a block that several sequences share is loaded once.
///
///     auto assigned = batch.assign(sequences);
///     auto room = batch.reserve(tokens);                     // all of them, or out_of_capacity and none
///     for (layer ...) {
///       for (;;) {
///         auto window = ctx.sync_wait(batch.next(layer));
///         if (!window) return propagate(window.error());     // or ask again, or drop whose blocks are lost
///         if (window->empty()) break;
///         attend(*window, queries, states);                  // or any paged kernel, over its arrays()
///       }
///     }
///     batch.commit(kept);
///
/// While one window is attended, the blocks of the next one are on their way; after the last window of a layer, those
/// of the first window of the next layer. The arrays are allocated once, as large as the options say, and never move,
/// so that captured graphs keep their addresses.
///
/// It cannot be moved. Its windows and senders must end before it, and it must end before its cache. Its sequences
/// must stay alive and in place while they are assigned: one may end or move as soon as `assign` names others or
/// `drop` leaves it out. Nobody else may change them (reserve, commit, truncate, suspend, append_shared, forget,
/// release) between the first window of a layer and the last. If that happens, `next` gives no further window until
/// the layer is begun anew, and the open pages of a window that is out must not be used any more. Owner thread only.
class batch {
 public:
  struct options {
    std::uint32_t sequences = 256;   ///< the most that it takes
    std::uint32_t pages = 1u << 16;  ///< the most in one window; a page that m sequences share counts as m
    std::size_t window_bytes = 0;  ///< raw bytes of a window's blocks that take a slot; 0: a share of tier 0
    bool look_ahead = true;        ///< false: only `next` itself asks for its window's blocks
  };
  explicit batch(kv_store& cache) : batch(cache, options{}) {}
  batch(kv_store& cache, options o)
      : owner_(&cache.control()), options_(o), placed_(*owner_, o.sequences, most_pages()) {
    sequences_.reserve(o.sequences);
    reservations_.reserve(o.sequences);
  }
  batch(batch&&) = delete;
  ~batch() { TERRACE_ASSERT(!in_use(), "a batch ended before its windows and senders"); }

  /// Sets the sequences that decode now. The previous ones stay as they are, and may end. Errors, after which nothing
  /// has changed: invalid_argument for more sequences than there is room for, one of another cache or one given
  /// twice, and while a reservation is open, a window is out or a stream is under way.
  result<void> assign(std::span<sequence* const> sequences);
  /// Leaves sequence i out: its reservation vanishes, it has no pages in later windows, and it may end. The others
  /// keep their numbers and reservations, and `next` goes on for them with the window that was due: a request that is
  /// stopped, or has lost a block, stops nobody else. Until the next `assign` it counts as a sequence of no tokens,
  /// which reserves and keeps 0: queries and results of a layer begun after this are without its tokens. Errors,
  /// after which nothing has changed: invalid_argument for a sequence that does not exist or was dropped already,
  /// while a window is out or a stream over the batch is under way, and if the layer cannot go on (`next`).
  result<void> drop(std::size_t i);
  /// Whether there is a sequence i that has not been dropped.
  bool has(std::size_t i) const noexcept { return i < size() && sequences_[i] != nullptr; }
  /// Including those that have been dropped.
  std::size_t size() const noexcept { return sequences_.size(); }
  const kv_layout& layout() const noexcept { return owner_->layout(); }

  /// Room for tokens[i] more tokens of sequence i; 0 leaves it out of this step: it has no pages until the commit. It
  /// may block, and run other completions, as sequence::reserve does; these must leave the batch and its sequences
  /// alone. Errors: those of sequence::reserve; out_of_capacity also if all of them together can never fit into tier
  /// 0; invalid_argument for the wrong number of sequences, for tokens of one that was dropped, while a reservation
  /// is open or a window is out, and if the open pages do not fit into the arrays. After an error no sequence is
  /// longer, and the batch has no reservation.
  result<void> reserve(std::span<const std::uint32_t> tokens) { return take_room(batch_room(*this, tokens)); }
  /// The same as a sender (cache/room.hpp), which never blocks. `tokens` must stay valid until it completes, and
  /// nothing else may be asked of the batch meanwhile.
  room_sender<batch_room> reserve_async(std::span<const std::uint32_t> tokens) noexcept {
    return room_sender(batch_room(*this, tokens));
  }
  /// Where the K and V of sequence i's new tokens are written. Precondition: it has a reservation.
  const reservation& reserved(std::size_t i) const noexcept {
    TERRACE_ASSERT(reservations_[i].has_value(),
                   "a sequence of a batch was asked for tokens that it does not have");
    return *reservations_[i];
  }
  /// Precondition: has(i).
  const sequence& at(std::size_t i) const noexcept {
    TERRACE_ASSERT(has(i), "a sequence of a batch was asked for after it had been dropped");
    return *sequences_[i];
  }
  /// The members that take part in a step, for code that walks the pages without `next`. Precondition: `ready`
  /// succeeds.
  void members(std::vector<walk_member>& all) const;
  /// Whether its pages can be walked. Errors: invalid_argument if a sequence that takes part is suspended, or has a
  /// reservation that is not the batch's, whose tokens must not be attended. O(sequences).
  result<void> ready() const noexcept;
  /// The tokens that sequence i has reserved; all its tokens, including those.
  std::uint32_t new_tokens(std::size_t i) const noexcept {
    return reservations_[i] ? reservations_[i]->tokens() : 0;
  }
  std::uint64_t tokens(std::size_t i) const noexcept { return length(i) + new_tokens(i); }
  /// Keeps kept[i] of the reserved tokens of sequence i; the others vanish. Preconditions: reserve succeeded; `kept`
  /// has one number for each sequence, none larger than what was reserved; no window is out and no stream under way.
  void commit(std::span<const std::uint32_t> kept);

  /// The next window of `layer`: a sender of a batch_window, which is empty once all have been given. The call after
  /// that, or one for another layer, begins a layer anew. The windows hold all tokens of each sequence that its new
  /// tokens see; without a reservation, those that its last token sees.
  ///
  /// Completes on the owner with set_value(batch_window), set_error(block_error) or set_stopped(). After an error,
  /// asking again tries the same window again. Errors: lost blocks; out_of_capacity if tier 0 has no room for a
  /// single block; invalid_argument for a layer that does not exist, while a window is out, if a sequence is
  /// suspended or has a reservation that is not the batch's, and, if a sequence was changed in the middle of the
  /// layer, until that layer is begun anew.
  ///
  /// With lease_form::attendable, pages may stay encoded where they are: for `attend` (attention/attend_batch.hpp),
  /// which then reads fewer bytes, but not for kernels.
  next_sender next(std::uint32_t layer, lease_form form = lease_form::raw) noexcept;
  /// Makes the following `next` begin its layer anew. Precondition: no window is out.
  void rewind() noexcept {
    TERRACE_ASSERT(!busy(), "a batch was rewound while a window is out");
    under_way_ = false;
  }

  /// Why a layer gives no further window (`next`).
  static constexpr error changed{
      errc::invalid_argument,
      "a sequence of a batch was changed in the middle of a layer: the layer has to be begun anew"};

 private:
  friend class next_sender;
  friend class batch_room;
  friend class batch_in_use;

  result<void> check_room(std::span<const std::uint32_t> tokens) const;
  bool busy() const noexcept { return asking_ || reserving_ || batch_window::is_out(placed_); }
  bool in_use() const noexcept { return busy() || streams_ != 0; }
  // 0 if it has been dropped.
  std::uint64_t length(std::size_t i) const noexcept {
    return sequences_[i] == nullptr ? 0 : sequences_[i]->length();
  }
  // A window must be able to hold one page of each sequence.
  std::size_t most_pages() const noexcept { return std::max(options_.pages, options_.sequences); }
  void begin_walk(page_walk& walk, std::uint32_t layer);
  window_limits limits(std::uint32_t layer) const noexcept;
  result<void> ask(std::uint32_t layer, lease_form form);
  void cut() { walk_.cut(limits(layer_), blocks_, pages_); }
  bool shrink() noexcept;
  void give_up() noexcept;
  result<batch_window> give(lease held);
  void look_ahead();

  planner* owner_;
  options options_;
  std::vector<sequence*> sequences_;
  std::vector<std::optional<reservation>> reservations_;
  bool open_ = false;                // between reserve and commit
  bool reserving_ = false;           // a reserve is under way
  mutable std::size_t streams_ = 0;  // under way

  placed_pages placed_;

  // The layer under way, and the window that was cut last.
  bool under_way_ = false, asking_ = false;
  std::uint32_t layer_ = 0;
  lease_form form_ = lease_form::raw;
  std::size_t most_blocks_ = 0;  // of a window, once tier 0 turned out to have less room
  page_walk walk_;
  page_walk::place before_;  // where that window began
  std::vector<block_id> blocks_;
  std::vector<walked_page> pages_;

  // Scratch.
  std::vector<walk_member> members_;
  page_walk ahead_;
  std::vector<block_id> ahead_blocks_;
  std::vector<walked_page> ahead_pages_;
};

/// While one of these exists, a stream over the batch is under way: its sequences and reservations stay.
class batch_in_use {
 public:
  explicit batch_in_use(const batch& b) noexcept : batch_(&b) { ++b.streams_; }
  batch_in_use(batch_in_use&&) = delete;
  ~batch_in_use() { --batch_->streams_; }

 private:
  const batch* batch_;
};

inline planner& batch_room::control() noexcept { return *batch_->owner_; }

}  // namespace TERRACE_EX
}  // namespace terrace

#include "terrace/batch_next.hpp"  // IWYU pragma: export
#if !defined(TERRACE_PREBUILT)
#include "terrace/batch_body.hpp"  // IWYU pragma: export
#endif
