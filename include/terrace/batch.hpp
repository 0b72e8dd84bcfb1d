#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "terrace/cache/acquire.hpp"
#include "terrace/cache/batch_window.hpp"
#include "terrace/cache/page_walk.hpp"
#include "terrace/cache/store.hpp"
#include "terrace/execution/elide.hpp"
#include "terrace/sequence.hpp"

namespace terrace {
inline namespace TERRACE_EX {

class next_sender;

/// A ragged set of sequences that decode together. For each layer it gives windows of pages, bounded by tier
/// 0, in an order in which every sequence sees its pages ascending; a block that several sequences share is
/// loaded once.
///
///     batch.assign(sequences);
///     auto room = batch.reserve(tokens);                     // all of them, or out_of_capacity and none
///     for (layer ...) {
///       while (auto window = ctx.sync_wait(batch.next(layer))) {
///         if (window->empty()) break;
///         attend(*window, queries, states);                  // or any paged kernel, over its arrays()
///       }
///     }
///     batch.commit(kept);
///
/// While one window is attended, the blocks of the following one are on their way; behind the last one of a
/// layer, the first of the next layer. Its arrays have the room that the options say from the start, and
/// never move, so that captured graphs keep their addresses. It stays in place; its windows and senders end
/// before it, and it ends before its sequences and its cache. Owner thread only.
class batch {
 public:
  struct options {
    std::uint32_t sequences = 256;   ///< at most so many
    std::uint32_t pages = 1u << 16;  ///< of one window; a page that m sequences share counts as m
    std::size_t window_bytes = 0;  ///< raw bytes of a window's blocks that take a slot; 0: a share of tier 0
    bool look_ahead = true;        ///< false: a window's blocks are asked for by its `next`, no sooner
  };
  explicit batch(kv_store& cache) : batch(cache, options{}) {}
  batch(kv_store& cache, options o)
      : owner_(&cache.control()), options_(o), placed_(*owner_, o.sequences, most_pages()) {
    sequences_.reserve(o.sequences);
    reservations_.reserve(o.sequences);
  }
  batch(batch&&) = delete;
  ~batch() { TERRACE_ASSERT(!busy(), "a batch ended before its windows and senders"); }

  /// Which sequences decode now; those of before are let go of, as they are. Errors, and nothing has changed:
  /// invalid_argument for more than there is room for, one of another cache, one twice, and while a
  /// reservation is open or a window is out.
  result<void> assign(std::span<sequence* const> sequences);
  std::size_t size() const noexcept { return sequences_.size(); }
  const kv_layout& layout() const noexcept { return owner_->layout(); }

  /// Room for tokens[i] more tokens of sequence i; 0 leaves it out of this step: it has no pages then until
  /// the commit. It may block, and run other completions, as sequence::reserve does; these must leave the batch
  /// and its sequences alone. Errors: those of sequence::reserve, out_of_capacity also where all of them together
  /// never fit into tier 0; invalid_argument for another number of sequences, while a reservation is open or a
  /// window is out, and where the open pages do not fit into the arrays. Then no sequence is longer, and none has
  /// a reservation.
  result<void> reserve(std::span<const std::uint32_t> tokens);
  /// Where the K and V of sequence i's new tokens are written. Precondition: it has a reservation.
  const reservation& reserved(std::size_t i) const noexcept {
    TERRACE_ASSERT(reservations_[i].has_value(),
                   "a sequence of a batch was asked for tokens that it does not have");
    return *reservations_[i];
  }
  /// Precondition: i < size().
  const sequence& at(std::size_t i) const noexcept { return *sequences_[i]; }
  /// Who takes part in a step, for whoever walks the pages on another way than `next`.
  void members(std::vector<walk_member>& all) const;
  /// Tokens that sequence i has reserved, and all that it has, these included.
  std::uint32_t new_tokens(std::size_t i) const noexcept {
    return reservations_[i] ? reservations_[i]->tokens() : 0;
  }
  std::uint64_t tokens(std::size_t i) const noexcept { return sequences_[i]->length() + new_tokens(i); }
  /// Keeps kept[i] of them; the others vanish. Preconditions: reserve succeeded, one number for each
  /// sequence, no more than were reserved, and no window is out.
  void commit(std::span<const std::uint32_t> kept);

  /// The next window of `layer`: a sender of a batch_window, an empty one when all have been given. After
  /// that, and where the layer is another one than before, a layer is begun anew. The windows hold all tokens
  /// of each sequence that its new tokens see; without a reservation, those that its last token sees.
  ///
  /// Completes on the owner with set_value(batch_window); set_error(block_error), where asking again tries
  /// the same window again: lost blocks, out_of_capacity where tier 0 has no room for a single block,
  /// invalid_argument for a layer that there is not or while a window is out; or set_stopped().
  ///
  /// With lease_form::attendable, pages may stay encoded where they are: for `attend` (attention/
  /// attend_batch.hpp), which then reads fewer bytes, and not for kernels.
  next_sender next(std::uint32_t layer, lease_form form = lease_form::raw) noexcept;
  /// Begins the layer anew with the next `next`. Precondition: no window is out.
  void rewind() noexcept {
    TERRACE_ASSERT(!busy(), "a batch was rewound while a window is out");
    under_way_ = false;
  }

 private:
  friend class next_sender;

  bool busy() const noexcept { return asking_ || batch_window::is_out(placed_); }
  // One page of each sequence is the least that a window may have to hold.
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
  bool open_ = false;  // between reserve and commit

  placed_pages placed_;

  // The layer that is under way, and the window that was cut last.
  bool under_way_ = false, asking_ = false;
  std::uint32_t layer_ = 0;
  lease_form form_ = lease_form::raw;
  std::size_t most_blocks_ = 0;  // of a window, where tier 0 turned out to have less room
  page_walk walk_;
  page_walk::place before_;  // that window
  std::vector<block_id> blocks_;
  std::vector<walked_page> pages_;

  // Scratch.
  std::vector<walk_member> members_;
  page_walk ahead_;
  std::vector<block_id> ahead_blocks_;
  std::vector<walked_page> ahead_pages_;
};

/// The sender that `batch::next` returns.
class next_sender {
 public:
  using sender_concept = ex::sender_t;
  template <class Self, class... E>
  static consteval auto get_completion_signatures() {
    return ex::completion_signatures<ex::set_value_t(batch_window), ex::set_error_t(block_error),
                                     ex::set_stopped_t()>{};
  }
  next_sender(batch& b, std::uint32_t layer, lease_form form) noexcept
      : batch_(&b), layer_(layer), form_(form) {}

  template <class R>
  class operation {
   public:
    using operation_state_concept = ex::operation_state_t;
    operation(batch& b, std::uint32_t layer, lease_form form, R r)
        : batch_(&b), layer_(layer), form_(form), receiver_(std::move(r)) {}
    operation(operation&&) = delete;

    void start() noexcept {
      if (auto asked = batch_->ask(layer_, form_); !asked)
        return ex::set_error(std::move(receiver_), block_error(asked.error()));
      try_now();
    }

   private:
    struct inner {
      using receiver_concept = ex::receiver_t;
      operation* self;
      void set_value(lease held) noexcept { self->arrived(std::move(held)); }
      void set_error(block_error e) noexcept { self->refused(std::move(e)); }
      void set_stopped() noexcept {
        self->batch_->give_up();
        ex::set_stopped(std::move(self->receiver_));
      }
      ex::env_of_t<R> get_env() const noexcept { return ex::get_env(self->receiver_); }
    };

    void try_now() noexcept {
      batch_->cut();
      if (batch_->blocks_.empty()) return arrived(lease());
      const acquire_sender blocks(*batch_->owner_, batch_->blocks_, batch_->form_);
      acquire_.emplace(elide{[&] { return blocks.connect(inner{this}); }});
      acquire_->start();
    }
    void arrived(lease held) noexcept {
      auto window = batch_->give(std::move(held));
      if (!window) return ex::set_error(std::move(receiver_), block_error(window.error()));
      ex::set_value(std::move(receiver_), std::move(*window));
    }
    // Called by the acquire as the last thing that it does, so that another may take its place.
    void refused(block_error e) noexcept {
      if (e.code == errc::out_of_capacity && batch_->shrink()) return try_now();
      batch_->give_up();
      ex::set_error(std::move(receiver_), std::move(e));
    }

    batch* batch_;
    std::uint32_t layer_;
    lease_form form_;
    R receiver_;
    std::optional<acquire_sender::operation<inner>> acquire_;
  };

  template <class R>
  operation<R> connect(R receiver) const {
    return operation<R>(*batch_, layer_, form_, std::move(receiver));
  }

 private:
  batch* batch_;
  std::uint32_t layer_;
  lease_form form_;
};

// --- Sequences and tokens.

inline result<void> batch::assign(std::span<sequence* const> sequences) {
  if (open_ || busy())
    return fail(errc::invalid_argument,
                "a batch takes other sequences when its reservation is committed and its window released");
  if (sequences.size() > options_.sequences)
    return fail(errc::invalid_argument, "a batch was given more sequences than its arrays have room for");
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    if (sequences[i] == nullptr || sequences[i]->pages().owner != owner_)
      return fail(errc::invalid_argument, "all sequences of a batch must be of the batch's cache");
    for (std::size_t before = 0; before < i; ++before)
      if (sequences[before] == sequences[i])
        return fail(errc::invalid_argument, "a sequence can be in a batch only once");
  }
  sequences_.assign(sequences.begin(), sequences.end());
  reservations_.clear();
  reservations_.resize(sequences_.size());
  under_way_ = false;
  return {};
}

inline result<void> batch::reserve(std::span<const std::uint32_t> tokens) {
  if (open_ || busy())
    return fail(errc::invalid_argument,
                "a batch reserves when its last reservation is committed and its window released");
  if (tokens.size() != size())
    return fail(errc::invalid_argument, "a batch reserves tokens for each of its sequences");
  for (const layer_group& g : layout().groups) {
    std::uint64_t open = 0;
    for (std::size_t i = 0; i < size(); ++i) {
      const std::uint64_t length = sequences_[i]->length();
      if (tokens[i] != 0) open += (length + tokens[i] + g.tokens - 1) / g.tokens - length / g.tokens;
    }
    if (!g.holds_tensors() && open > most_pages())
      return fail(errc::invalid_argument,
                  "a batch's arrays have no room for the pages of so many new tokens");
  }
  std::uint64_t bytes = 0;
  for (std::size_t i = 0; i < size(); ++i)
    if (tokens[i] != 0) bytes += sequences_[i]->pages().open_bytes(tokens[i]);
  if (bytes > owner_->hot_capacity())
    return fail(errc::out_of_capacity, "tier 0 is smaller than the blocks of so many new tokens");
  for (std::size_t i = 0; i < size(); ++i) {
    if (tokens[i] == 0) continue;
    auto one = sequences_[i]->reserve(tokens[i]);
    if (!one) {
      for (auto& r : reservations_) r.reset();
      return propagate(one.error());
    }
    reservations_[i].emplace(std::move(*one));
  }
  open_ = true;
  under_way_ = false;
  return {};
}

inline void batch::commit(std::span<const std::uint32_t> kept) {
  TERRACE_ASSERT(open_ && !busy(), "a batch commits a reservation, and while no window is out");
  TERRACE_ASSERT(kept.size() == size(), "a batch commits tokens for each of its sequences");
  for (std::size_t i = 0; i < size(); ++i) {
    TERRACE_ASSERT(kept[i] <= new_tokens(i), "more tokens were committed than reserved");
    if (reservations_[i]) sequences_[i]->commit(std::move(*reservations_[i]), kept[i]);
    reservations_[i].reset();
  }
  open_ = false;
  under_way_ = false;
}

// --- Windows.

inline next_sender batch::next(std::uint32_t layer, lease_form form) noexcept { return {*this, layer, form}; }

inline void batch::members(std::vector<walk_member>& all) const {
  all.clear();
  for (std::size_t i = 0; i < size(); ++i) {
    const std::uint64_t length = sequences_[i]->length();
    const bool takes_part = !open_ || reservations_[i].has_value();
    all.push_back({.pages = takes_part ? &sequences_[i]->pages() : nullptr,
                   .first_query = open_ || length == 0 ? length : length - 1,
                   .tokens = tokens(i)});
  }
}

inline void batch::begin_walk(page_walk& walk, std::uint32_t layer) {
  members(members_);
  if (members_.empty()) return walk.begin(*owner_, {}, 0);
  walk.begin(*owner_, members_, sequences_[0]->pages().row_of(layer).first);
}

// A window and the one behind it take at most a third of tier 0. Two MiB keep a disk busy; where tier 0 has room, a
// window has at least a page of each sequence.
inline window_limits batch::limits(std::uint32_t layer) const noexcept {
  const std::size_t block = layout().groups[layout().group_of(layer)].block_bytes();
  std::size_t bytes = options_.window_bytes;
  if (bytes == 0) bytes = std::min(std::max<std::size_t>(2_MiB, size() * block), owner_->hot_capacity() / 6);
  const std::size_t slots = std::max<std::size_t>(1, bytes / block);
  return {.form = form_,
          .slots = std::min(slots, most_blocks_),
          .blocks = std::min(4 * slots, most_blocks_),
          .pages = most_pages()};
}

inline result<void> batch::ask(std::uint32_t layer, lease_form form) {
  if (busy())
    return fail(errc::invalid_argument,
                "a batch has one window at a time: the last one must be released first");
  if (layer >= layout().layers())
    return fail(errc::invalid_argument, "a batch was asked for a layer that the model does not have");
  if (!under_way_ || layer != layer_) {
    under_way_ = true;
    layer_ = layer;
    most_blocks_ = std::numeric_limits<std::size_t>::max();
    begin_walk(walk_, layer);
  }
  form_ = reads_in_place(layout().groups[layout().group_of(layer)]) ? form : lease_form::raw;
  asking_ = true;
  before_ = walk_.where();
  return {};
}

// Tier 0 had no room for the window: the next one that is cut there has half as many blocks.
inline bool batch::shrink() noexcept {
  if (blocks_.size() < 2) return false;
  most_blocks_ = blocks_.size() / 2;
  walk_.go_back(before_);
  return true;
}

inline void batch::give_up() noexcept {
  walk_.go_back(before_);
  asking_ = false;
}

inline result<batch_window> batch::give(lease held) {
  if (pages_.empty()) {
    asking_ = under_way_ = false;
    return batch_window();
  }
  if (auto placed = placed_.place(layer_, size(), pages_, held, walk_.finished()); !placed) {
    give_up();
    return propagate(placed.error());
  }
  asking_ = false;
  if (options_.look_ahead) look_ahead();
  return batch_window(placed_, std::move(held));
}

// What the next window needs comes while this one is attended.
inline void batch::look_ahead() {
  std::uint32_t layer = layer_;
  if (walk_.finished()) {
    layer = layer_ + 1 < layout().layers() ? layer_ + 1 : 0;
    begin_walk(ahead_, layer);
  } else {
    ahead_ = walk_;
  }
  ahead_.cut(limits(layer), ahead_blocks_, ahead_pages_);
  owner_->prefetch(ahead_blocks_, form_);
}

}  // namespace TERRACE_EX
}  // namespace terrace
