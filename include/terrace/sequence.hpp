#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "terrace/cache/page_table.hpp"
#include "terrace/cache/plane_rows.hpp"
#include "terrace/cache/planner.hpp"
#include "terrace/cache/restoration.hpp"
#include "terrace/cache/room.hpp"
#include "terrace/core/layout.hpp"
#include "terrace/execution/sync_wait.hpp"
#include "terrace/sequence_cut.hpp"  // IWYU pragma: export

namespace terrace {
inline namespace TERRACE_EX {

class sequence;

/// Room for new tokens at the end of a sequence, in tier 0. The engine writes their K and V in place, attends, and
/// commits as many as it keeps. Move-only; if it is dropped without a commit, none are kept.
class reservation {
 public:
  reservation(reservation&& other) noexcept
      : pages_(std::exchange(other.pages_, nullptr)), first_(other.first_), tokens_(other.tokens_) {}
  reservation& operator=(reservation&& other) noexcept {
    std::swap(pages_, other.pages_);
    std::swap(first_, other.first_);
    std::swap(tokens_, other.tokens_);
    return *this;
  }
  ~reservation() { end(0); }

  /// Position of the first reserved token, and how many there are.
  std::uint64_t first_position() const noexcept { return first_; }
  std::uint32_t tokens() const noexcept { return tokens_; }

  /// Where the keys (for MLA, the latent vectors) of `layer` go, and its values.
  plane_rows k(std::uint32_t layer) const noexcept { return {*pages_, first_, tokens_, layer, false}; }
  plane_rows v(std::uint32_t layer) const noexcept { return {*pages_, first_, tokens_, layer, true}; }
  /// Copies what is written here into the room for a lost block of another sequence, which this one recomputes.
  /// Errors, and then nothing is copied: invalid_argument if not all tokens of that block are reserved here, it
  /// belongs to another cache, or it is a page of a tensor; otherwise the error of a device that fails to copy.
  result<void> copy_to(restoration& lost) const;

 private:
  friend class sequence;
  friend class reservation_room;
  reservation(page_table& pages, std::uint64_t first, std::uint32_t tokens) noexcept
      : pages_(&pages), first_(first), tokens_(tokens) {}
  void end(std::uint32_t keep);

  page_table* pages_;
  std::uint64_t first_;
  std::uint32_t tokens_;
};

/// What `sequence::reserve` takes room for (cache/room.hpp).
class reservation_room {
 public:
  using value_type = reservation;
  reservation_room(page_table& pages, std::uint32_t tokens) noexcept : pages_(&pages), tokens_(tokens) {}

  planner& control() noexcept { return *pages_->owner; }
  result<void> begin();
  result<bool> take();
  reservation finish() noexcept { return {*pages_, pages_->length, tokens_}; }
  void give_up() { finish().end(0); }

 private:
  result<bool> make_tail_own(std::size_t row);

  page_table* pages_;
  std::uint32_t tokens_;
};

/// One request's tokens. Move-only; releases its blocks at the end. It must end before its cache does, and its
/// reservations and streams must end before it. Owner thread only.
///
/// If the length is not a multiple of a block's tokens, each row of layers has an open block at the end, which keeps
/// its slot in tier 0. A request that will wait for long gives these slots back with `suspend`, until `resume`.
class sequence {
 public:
  explicit sequence(planner& owner, std::uint32_t number) : pages_(std::make_unique<page_table>()) {
    pages_->owner = &owner;
    pages_->number = number;
    std::size_t rows = 0;
    for (const layer_group& g : owner.layout().groups) rows += g.block_rows();
    pages_->rows.resize(rows);
    pages_->replaced.resize(rows);
  }
  sequence(sequence&&) noexcept = default;
  sequence& operator=(sequence&& other) noexcept {
    std::swap(pages_, other.pages_);
    return *this;
  }
  ~sequence() { release(); }

  /// Committed tokens.
  std::uint64_t length() const noexcept { return pages_->length; }
  std::uint32_t number() const noexcept { return pages_->number; }
  const page_table& pages() const noexcept { return *pages_; }

  /// Room for the next `tokens` tokens in every layer. One reservation at a time.
  ///
  /// It blocks while tier 0 has no slot and a transfer will free one. Meanwhile it drives the context, so other
  /// completions run within this call; they must leave this sequence alone. It never waits for a lease, nor for a
  /// transfer beyond its deadline (cache_options::transfers.deadline). Errors, after which the sequence is as it was:
  /// out_of_capacity when no transfer can free a slot, and, before anything leaves tier 0, if so many tokens can
  /// never fit there; invalid_argument for 0 tokens, while another reservation is open, and if the sequence is
  /// suspended.
  result<reservation> reserve(std::uint32_t tokens) { return take_room(room_for(tokens)); }
  /// The same as a sender of a reservation (cache/room.hpp), which never blocks: for engines whose loop goes on
  /// meanwhile. Until it completes, the sequence counts as reserved and must stay alive.
  room_sender<reservation_room> reserve_async(std::uint32_t tokens) noexcept {
    return room_sender(room_for(tokens));
  }
  /// The work behind both: for callers that reserve for several sequences at once (batch).
  reservation_room room_for(std::uint32_t tokens) noexcept { return {*pages_, tokens}; }
  /// Keeps the first `keep` tokens of the reservation; the others vanish. Blocks that are now full are sealed, and
  /// written behind from here on. Waiters for whatever becomes free are called back at the end of this call.
  void commit(reservation&& r, std::uint32_t keep) {
    TERRACE_ASSERT(r.pages_ == pages_.get(), "a reservation was committed to another sequence");
    TERRACE_ASSERT(keep <= r.tokens_, "more tokens were committed than reserved");
    r.end(std::min(keep, r.tokens_));
  }
  /// The conversation goes on: what is written from here belongs to its next turn, and policies are told so. A
  /// sequence that begins with what another one wrote (prefix_index) is in the turn after that one's.
  void begin_turn() noexcept { ++pages_->turn; }
  /// A sequence with the same tokens, sharing every block; the open tail is copied by whichever of the two
  /// writes next. O(blocks), no copy. Precondition: no reservation is open.
  sequence fork(std::uint32_t number) const;
  /// The same with only its first `tokens` tokens (kv_store::fork).
  result<sequence> fork(std::uint32_t number, std::uint64_t tokens) const;
  /// Appends tokens that sealed blocks of this cache already hold, by reference: no copy. `blocks` has, row after
  /// row, the blocks of `tokens` tokens. O(blocks). Precondition: the blocks hold what would be computed here.
  /// Errors, after which nothing has changed: lost if a block is gone, even if another one has its index now;
  /// invalid_argument for a block that is not sealed, was forgotten, or belongs to another row of layers, for the
  /// wrong number of blocks, if the length or `tokens` is not a multiple of every group's tokens per block, and while
  /// a reservation is open.
  result<void> append_shared(std::uint64_t tokens, std::span<const block_id> blocks);
  /// Cuts the sequence to its first `tokens` tokens. If that cuts a sealed block, the part that stays is copied into
  /// a new open one. The sealed block is first brought to a tier where it can be read: this blocks and drives the
  /// context as reserve does. Errors: those of acquire and reserve, and invalid_argument while a reservation is open,
  /// for more tokens than the sequence has, or inside a forgotten block; then nothing has changed.
  basic_result<void, block_error> truncate(std::uint64_t tokens);
  /// The same as a sender, which never blocks. Until it completes, the sequence counts as reserved and must stay
  /// alive.
  cut_sender truncate_async(std::uint64_t tokens) noexcept;
  /// The request waits, for its user's next turn, say. Its open blocks are sealed as they are and may leave tier 0
  /// like any other; those shared with a fork stay open until `suspend` is called when no fork shares them. A fork of
  /// a suspended sequence is suspended too. Until `resume`, it gives no reservations. Returns how many blocks may
  /// leave. Error: invalid_argument while a reservation is open.
  result<std::size_t> suspend();
  /// Ends a suspension: a sender (sequence_cut.hpp). The blocks are brought back and copied into open ones; what
  /// comes from a tier with a lossy codec has lost what that codec loses. Errors: those of truncate. `truncate` to a
  /// multiple of kv_layout::chunk_tokens needs none of these blocks, and resumes too.
  cut_sender resume() noexcept;
  bool suspended() const noexcept { return pages_->suspended; }
  /// Lets go of the blocks that lie entirely within tokens [first, last): attention does not see them any more. For
  /// sliding windows; `group` restricts it to one group of layers, if only some layers have a window. Open blocks
  /// stay.
  void forget(std::uint64_t first, std::uint64_t last, std::optional<std::size_t> group = {});
  /// Tells the cache what the engine knows of tokens [first, last), in every layer or in those of one group. It
  /// applies to the sealed blocks that lie entirely within; the outcome says to how many (cache/hints.hpp).
  hint_outcome hint(std::uint64_t first, std::uint64_t last, const terrace::hint& h,
                    std::optional<std::size_t> group = {});
  /// Lets go of everything; the sequence is then empty.
  void release() noexcept;

 private:
  friend class reservation_room;
  friend class sequence_cut;
  sequence() = default;
  static result<std::optional<block_id>> open_like(const page_table& p, std::size_t row, std::size_t position,
                                                   const std::byte* contents, fidelity quality = {});
  result<void> check_shared(std::uint64_t tokens, std::span<const block_id> blocks) const;

  std::unique_ptr<page_table> pages_;
};

inline cut_sender sequence::truncate_async(std::uint64_t tokens) noexcept {
  return cut_sender(sequence_cut(*pages_, tokens));
}
inline cut_sender sequence::resume() noexcept { return cut_sender(sequence_cut(*pages_, std::nullopt)); }

}  // namespace TERRACE_EX
}  // namespace terrace

#if !defined(TERRACE_PREBUILT)
#include "terrace/sequence_body.hpp"  // IWYU pragma: export
#endif
