#pragma once
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "terrace/core/index_list.hpp"
#include "terrace/policy/ghost_list.hpp"
#include "terrace/policy/policy.hpp"
#include "terrace/policy/return_model.hpp"

namespace terrace {

/// For prefixes that conversations share and extend: evicts the block that is least likely to be worth its room,
/// going by what it has learned about when blocks of its kind come back.
///
/// The kind of a block is its depth in the prefix (by octaves), whether a block after it is known (the end of a prefix
/// is often a reply that nobody will continue), and how often it has come back. A `return_model` learns for each kind
/// the ages at which blocks return. Blocks that have left are remembered by their keys for a while, up to four times
/// as many as were ever in the tier at once, so that it also learns from those that came back too late; private
/// blocks (key 0) leave no ghost. At the start it knows nothing, and evicts the least recently used block. The turn
/// of the conversation is ignored: given the number of returns it adds next to nothing.
///
/// Time is counted in uses. It is cut into slices, which merge as they age, so that a slice is about as wide as a
/// bucket of ages; each has a list of blocks for each kind. So blocks are not visited as they age. `admit`, `touch`
/// and `remove` are O(1) except for a search among some hundred slices. Every blocks / 64 uses (64 at least), slices
/// grow older and the victim's list of each kind is chosen anew, in O(slices * kinds); every sixteenth time the model
/// is fitted. `victim` is O(1), and O(kinds) after such a choice. 28 bytes per block, 40 per ghost, 400 KiB for the
/// rest.
class prefix_aware {
 public:
  static constexpr std::string_view name = "prefix_aware";
  struct options {
    double ghosts = 4;   ///< keys that are remembered, relative to the most blocks ever in charge
    double memory = 32;  ///< uses, in the same unit, after which evidence counts half
    bool weigh_cost =
        false;  ///< a block is worth its cost of recomputing, instead of 1: saves time rather than misses
  };
  /// What a use of a block reads and writes; its key and depth, which a use does not need, are kept separately.
  struct block_state {
    index_link link{};
    std::uint32_t used_at = 0;  ///< the number of the slice
    std::uint8_t history = 0;   ///< uses, as far as known
    std::uint8_t kind = 0;      ///< whose list it is in, or was in when it was removed
    bool inner = false;         ///< a block after it is known
    bool in_charge : 1 = false;
    bool known : 1 = false;
  };
  static_assert(sizeof(block_state) <= 16);

  prefix_aware() noexcept = default;
  explicit prefix_aware(options o) noexcept : options_(o) {}

  void bind(std::span<block_state> states) {
    states_ = states;
    keys_.resize(states.size());
    depths_.resize(states.size());
    ghosts_.reserve(static_cast<std::size_t>(options_.ghosts * static_cast<double>(states.size())) + 1);
    if (model_ != nullptr) return;
    model_ = std::make_unique<model>();
    model_->fit(1);
    slices_.resize(most_slices);
    order_.reserve(most_slices);
    for (std::size_t n = most_slices; n-- > 0;) free_.push_back(static_cast<std::uint16_t>(n));
    open_slice();
    choose();
  }

  void admit(std::uint32_t i, const block_info& info) noexcept {
    block_state& s = states_[i];
    if (info.why != block_info::admission::returned || !s.known) {
      pass_time();
      s = {.used_at = newest().number, .history = 1};
      keys_[i] = info.key;
      recall(info.key, s);
      s.known = true;
    }
    depths_[i] = info.depth;
    s.kind = kind_of(s, octave_of(info.depth));
    costs_[s.kind] += (info.recompute_cost - costs_[s.kind]) / 64;
    enter(i);
    if (info.parent < states_.size()) note_child(info.parent, info.depth);
  }

  void remove(std::uint32_t i) noexcept { leave(i); }
  void evict(std::uint32_t i) noexcept {
    leave(i);
    block_state& s = states_[i];
    s.known = false;
    const std::uint64_t key = keys_[i];
    if (key == 0) return;
    discount(ghosts_.take(key));  // that of another block with the same key
    const auto most = static_cast<std::size_t>(options_.ghosts * most_);
    while (ghosts_.size() != 0 && ghosts_.size() >= most) discount(ghosts_.take_oldest());
    if (most == 0) return;
    ghosts_.push_new(key, {s.used_at, s.kind, s.history, s.inner});
    ++slice_of(s.used_at).ghosts[s.kind];
  }

  void touch(std::uint32_t i, const block_use&) noexcept {
    block_state& s = states_[i];
    pass_time();
    if (!s.known) return;
    const std::uint16_t was_in = slice_index(s.used_at);
    if (s.in_charge) unlink(s, was_in);
    model_->returned(s.kind, slices_[was_in].bucket);
    s.history = longer(s.history);
    s.used_at = newest().number;
    s.kind = kind_of(s, s.kind % depths);
    if (s.in_charge) link_last(i, order_.back().slice);
  }

  std::uint32_t victim() noexcept {
    if (size_ == 0) return index_link::none;
    if (chosen_ == kinds)
      chosen_ = static_cast<std::size_t>(std::min_element(worst_.begin(), worst_.end()) - worst_.begin());
    return slices_[worst_slice_[chosen_]].last[chosen_];
  }

  void advance_step(std::uint64_t) noexcept {}

 private:
  // kind = (history, inner, depth): four levels, two, eight.
  static constexpr std::size_t depths = 8, kinds = 4 * 2 * depths;
  using model = return_model<kinds, depths>;
  // Two neighbours in one bucket are together wider than it, or they would have merged: so at most three in each.
  static constexpr std::size_t most_slices = 3 * model::buckets + 1;
  static constexpr std::uint64_t ticks_a_fit = 16;

  struct ghost_note {
    std::uint32_t used_at = 0;
    std::uint8_t kind = 0;
    std::uint8_t history = 0;
    bool inner = false;
  };
  // The blocks that were last used in one stretch of time.
  struct slice {
    std::uint64_t begin = 0;   // when it was opened
    std::uint32_t number = 0;  // of the oldest slice merged into it
    std::uint32_t bucket = 0;  // of its age, as of the last tick
    std::array<std::uint32_t, kinds> first{}, last{}, count{}, ghosts{};
  };

  static std::uint8_t longer(std::uint8_t history) noexcept {
    return static_cast<std::uint8_t>(history + (history != 0xff ? 1 : 0));
  }
  static std::size_t octave_of(std::uint32_t depth) noexcept {
    return std::min<std::size_t>(std::bit_width(depth), depths - 1);
  }
  static std::uint8_t kind_of(const block_state& s, std::size_t octave) noexcept {
    const auto history = std::size_t{s.history > 1} + std::size_t{s.history > 2} + std::size_t{s.history > 4};
    return static_cast<std::uint8_t>((history * 2 + (s.inner ? 1 : 0)) * depths + octave);
  }

  // A slice by its number, apart from the rest of it, so that what is searched fits in the L1 cache.
  struct slice_place {
    std::uint32_t number = 0;
    std::uint16_t slice = 0;  // an index into slices_
  };

  slice& newest() noexcept { return slices_[order_.back().slice]; }
  // Without a branch on what it finds, which could not be predicted.
  std::uint16_t slice_index(std::uint32_t number) const noexcept {
    const slice_place* first = order_.data();
    for (std::size_t n = order_.size(); n > 1;) {
      const std::size_t half = n / 2;
      first += first[half].number <= number ? half : 0;
      n -= half;
    }
    return first->slice;
  }
  slice& slice_of(std::uint32_t number) noexcept { return slices_[slice_index(number)]; }

  void came_back(std::size_t kind, std::uint32_t used_at) noexcept {
    model_->returned(kind, slice_of(used_at).bucket);
  }
  // Restores what is remembered about a block that left and comes back now.
  void recall(std::uint64_t key, block_state& s) noexcept {
    const std::optional<ghost_note> found = key == 0 ? std::nullopt : ghosts_.take(key);
    if (!found) return;
    s.history = longer(found->history);
    s.inner = found->inner;
    came_back(found->kind, found->used_at);
    discount(found);
  }
  // A ghost is gone: it waits no longer.
  void discount(const std::optional<ghost_note>& gone) noexcept {
    if (gone) --slice_of(gone->used_at).ghosts[gone->kind];
  }
  void note_child(std::uint32_t parent, std::uint32_t depth) noexcept {
    block_state& p = states_[parent];
    if (p.inner || !p.known || depths_[parent] + 1 != depth) return;
    const bool in_charge = p.in_charge;
    if (in_charge) leave(parent);
    p.inner = true;
    p.kind = kind_of(p, p.kind % depths);
    if (in_charge) enter(parent);
  }

  // --- The lists.

  void enter(std::uint32_t i) noexcept {
    states_[i].in_charge = true;
    most_ = std::max(most_, ++size_);
    link_last(i, slice_index(states_[i].used_at));
  }
  void leave(std::uint32_t i) noexcept {
    block_state& s = states_[i];
    s.in_charge = false;
    --size_;
    unlink(s, slice_index(s.used_at));
  }
  void link_last(std::uint32_t i, std::uint16_t where) noexcept {
    block_state& s = states_[i];
    slice& at = slices_[where];
    s.link = {at.count[s.kind] == 0 ? index_link::none : at.last[s.kind], index_link::none};
    (at.count[s.kind] == 0 ? at.first[s.kind] : states_[at.last[s.kind]].link.next) = i;
    at.last[s.kind] = i;
    ++at.count[s.kind];
    consider(s.kind, where);
  }
  void unlink(block_state& s, std::uint16_t where) noexcept {
    slice& at = slices_[where];
    (s.link.previous == index_link::none ? at.first[s.kind] : states_[s.link.previous].link.next) =
        s.link.next;
    (s.link.next == index_link::none ? at.last[s.kind] : states_[s.link.next].link.previous) =
        s.link.previous;
    if (--at.count[s.kind] != 0 || worst_slice_[s.kind] != where) return;
    worst_[s.kind] = nobody;
    chosen_ = kinds;
    for (const slice_place& other : order_) consider(s.kind, other.slice);
  }
  // Takes the victim of a kind from this slice if that is the worst so far.
  void consider(std::size_t kind, std::uint16_t where) noexcept {
    const slice& at = slices_[where];
    if (at.count[kind] == 0) return;
    const float worth = model_->worth(kind, at.bucket) * (options_.weigh_cost ? costs_[kind] : 1);
    if (worth >= worst_[kind]) return;
    worst_[kind] = worth;
    worst_slice_[kind] = where;
    chosen_ = kinds;
  }
  void choose() noexcept {
    worst_.fill(nobody);
    chosen_ = kinds;
    for (const auto [number, where] : order_) {  // oldest first: among equals the longest unused
      const slice& at = slices_[where];
      for (std::size_t kind = 0; kind < kinds; ++kind)
        if (at.count[kind] != 0) consider(kind, where);
    }
  }

  // --- Time.

  void pass_time() noexcept {
    if (++now_ >= next_tick_) tick();
  }
  void tick() noexcept {
    const auto elapsed = static_cast<float>(now_ - last_tick_);
    for (const slice_place& place : order_) {
      const slice& at = slices_[place.slice];
      model_->waited(at.bucket, elapsed, at.count);
      model_->waited(at.bucket, elapsed, at.ghosts);
    }
    last_tick_ = now_;
    next_tick_ = now_ + std::max<std::uint64_t>(64, most_ / 64);
    grow_older();
    open_slice();
    if (++ticks_ % ticks_a_fit == 0) {
      const double uses = static_cast<double>(now_ - last_fit_) / (options_.memory * std::max(most_, 1u));
      model_->fit(static_cast<float>(std::exp2(-uses)));
      last_fit_ = now_;
    }
    choose();
  }
  // When the slice after the n-th was opened.
  std::uint64_t end_of(std::size_t n) const noexcept {
    return n + 1 < order_.size() ? slices_[order_[n + 1].slice].begin : now_;
  }
  void grow_older() noexcept {
    std::size_t kept = 0;
    for (std::size_t n = 0; n < order_.size(); ++n) {
      slice& at = slices_[order_[n].slice];
      const std::uint64_t end = end_of(n);
      at.bucket = static_cast<std::uint32_t>(model::bucket_of(now_ - (at.begin + end) / 2));
      slice* const older = kept == 0 ? nullptr : &slices_[order_[kept - 1].slice];
      const bool fits = older != nullptr && older->bucket == at.bucket &&
                        (at.bucket + 1 == model::buckets || end - older->begin <= model::width(at.bucket));
      if (fits) {
        merge(*older, at);
        free_.push_back(order_[n].slice);
      } else {
        order_[kept++] = order_[n];
      }
    }
    order_.resize(kept);
  }
  void merge(slice& into, const slice& from) noexcept {
    for (std::size_t kind = 0; kind < kinds; ++kind) {
      into.ghosts[kind] += from.ghosts[kind];
      if (from.count[kind] == 0) continue;
      if (into.count[kind] == 0) {
        into.first[kind] = from.first[kind];
      } else {
        states_[into.last[kind]].link.next = from.first[kind];
        states_[from.first[kind]].link.previous = into.last[kind];
      }
      into.last[kind] = from.last[kind];
      into.count[kind] += from.count[kind];
    }
  }
  void open_slice() noexcept {
    const std::uint16_t where = free_.back();
    free_.pop_back();
    slices_[where] = {.begin = now_, .number = next_number_++};
    order_.push_back({slices_[where].number, where});
  }

  static constexpr float nobody = std::numeric_limits<float>::max();

  options options_;
  std::span<block_state> states_;
  std::vector<std::uint64_t> keys_;    // of the blocks that are known
  std::vector<std::uint32_t> depths_;  // likewise
  noted_ghost_list<ghost_note> ghosts_;
  std::unique_ptr<model> model_;
  std::vector<slice> slices_;
  std::vector<slice_place> order_;   // oldest first; every slice is in this one
  std::vector<std::uint16_t> free_;  // or in this one
  std::array<float, kinds> worst_{}, costs_{};
  std::array<std::uint16_t, kinds> worst_slice_{};
  std::size_t chosen_ =
      kinds;  // the kind whose worst block is the victim; `kinds` if that has to be looked up
  std::uint64_t now_ = 0, next_tick_ = 0, last_tick_ = 0, last_fit_ = 0, ticks_ = 0;
  std::uint32_t next_number_ = 0, size_ = 0, most_ = 0;
};
static_assert(ghost_keeping_policy<prefix_aware>);

}  // namespace terrace
