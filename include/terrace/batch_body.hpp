#pragma once
// The functions of batch.hpp.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <utility>
#include <vector>

#include "terrace/batch.hpp"
#include "terrace/core/config.hpp"

namespace terrace {
inline namespace TERRACE_EX {

// --- Sequences and tokens.

TERRACE_BODY result<void> batch::assign(std::span<sequence* const> sequences) {
  if (open_ || in_use())
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

TERRACE_BODY result<void> batch::drop(std::size_t i) {
  if (in_use())
    return fail(errc::invalid_argument,
                "a batch drops a sequence while no window is out and no stream under way");
  if (!has(i)) return fail(errc::invalid_argument, "a batch was to drop a sequence that it does not have");
  if (under_way_) {
    if (!walk_.finished() && walk_.stale()) return propagate(changed);
    walk_.drop(static_cast<std::uint32_t>(i));
  }
  reservations_[i].reset();
  sequences_[i] = nullptr;
  return {};
}

TERRACE_BODY result<void> batch::check_room(std::span<const std::uint32_t> tokens) const {
  if (open_ || busy())
    return fail(errc::invalid_argument,
                "a batch reserves when its last reservation is committed and its window released");
  if (tokens.size() != size())
    return fail(errc::invalid_argument, "a batch reserves tokens for each of its sequences");
  for (std::size_t i = 0; i < size(); ++i)
    if (tokens[i] != 0 && sequences_[i] == nullptr)
      return fail(errc::invalid_argument,
                  "a sequence that was dropped from a batch reserves no tokens there");
  for (const layer_group& g : layout().groups) {
    std::uint64_t open = 0;
    for (std::size_t i = 0; i < size(); ++i) {
      const std::uint64_t before = length(i);
      if (tokens[i] != 0) open += (before + tokens[i] + g.tokens - 1) / g.tokens - before / g.tokens;
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
  return {};
}

// Begins all of them before any takes room: from here on nobody else may change them.
TERRACE_BODY result<void> batch_room::begin() {
  if (auto good = batch_->check_room(tokens_); !good) return good;
  for (std::size_t i = 0; i < tokens_.size(); ++i) {
    if (tokens_[i] == 0) continue;
    reservation_room one = batch_->sequences_[i]->room_for(tokens_[i]);
    if (auto begun = one.begin(); !begun) {
      for (auto& r : batch_->reservations_) r.reset();
      return begun;
    }
    batch_->reservations_[i].emplace(one.finish());
  }
  batch_->reserving_ = true;
  return {};
}

TERRACE_BODY result<bool> batch_room::take() {
  for (; at_ < tokens_.size(); ++at_) {
    if (tokens_[at_] == 0) continue;
    const auto whole = batch_->sequences_[at_]->room_for(tokens_[at_]).take();
    if (!whole || !*whole) return whole;
  }
  return true;
}

TERRACE_BODY void batch_room::finish() noexcept {
  batch_->reserving_ = false;
  batch_->open_ = true;
  batch_->under_way_ = false;
}

TERRACE_BODY void batch_room::give_up() {
  batch_->reserving_ = false;
  for (auto& r : batch_->reservations_) r.reset();
}

TERRACE_BODY void batch::commit(std::span<const std::uint32_t> kept) {
  TERRACE_ASSERT(open_ && !in_use(),
                 "a batch commits a reservation, and while no window is out and no stream under way");
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

TERRACE_BODY void batch::members(std::vector<walk_member>& all) const {
  all.clear();
  for (std::size_t i = 0; i < size(); ++i) {
    const std::uint64_t before = length(i);
    const bool takes_part = sequences_[i] != nullptr && (!open_ || reservations_[i].has_value());
    all.push_back({.pages = takes_part ? &sequences_[i]->pages() : nullptr,
                   .first_query = open_ || before == 0 ? before : before - 1,
                   .tokens = tokens(i)});
  }
}

TERRACE_BODY result<void> batch::ready() const noexcept {
  if (open_) return {};
  for (const sequence* s : sequences_) {
    if (s == nullptr) continue;
    if (s->pages().reserved)
      return fail(errc::invalid_argument,
                  "a sequence of a batch has a reservation, or a cut under way, that is not the batch's");
    if (s->suspended()) return fail(errc::invalid_argument, "a sequence of a batch is suspended");
  }
  return {};
}

TERRACE_BODY void batch::begin_walk(page_walk& walk, std::uint32_t layer) {
  members(members_);
  const auto any = std::ranges::find_if(members_, [](const walk_member& m) { return m.pages != nullptr; });
  walk.begin(*owner_, members_, any == members_.end() ? 0 : any->pages->row_of(layer).first);
}

// A window and the one after it take at most a third of tier 0. Two MiB keep a disk busy; if tier 0 has room, a
// window has at least one page of each sequence.
TERRACE_BODY window_limits batch::limits(std::uint32_t layer) const noexcept {
  const std::size_t block = layout().groups[layout().group_of(layer)].block_bytes();
  std::size_t bytes = options_.window_bytes;
  if (bytes == 0) bytes = std::min(std::max<std::size_t>(2_MiB, size() * block), owner_->hot_capacity() / 6);
  const std::size_t slots = std::max<std::size_t>(1, bytes / block);
  return {.form = form_,
          .slots = std::min(slots, most_blocks_),
          .blocks = std::min(4 * slots, most_blocks_),
          .pages = most_pages()};
}

TERRACE_BODY result<void> batch::ask(std::uint32_t layer, lease_form form) {
  if (busy())
    return fail(
        errc::invalid_argument,
        "a batch has one window at a time: the last one must be released first, and none while it reserves");
  if (layer >= layout().layers())
    return fail(errc::invalid_argument, "a batch was asked for a layer that the model does not have");
  if (under_way_ && layer == layer_ && !walk_.finished() && walk_.stale()) return propagate(changed);
  if (!under_way_ || layer != layer_) {
    if (auto good = ready(); !good) return good;
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

// Tier 0 had no room for the window: the next cut at this place has half as many blocks.
TERRACE_BODY bool batch::shrink() noexcept {
  if (blocks_.size() < 2 || walk_.stale()) return false;
  most_blocks_ = blocks_.size() / 2;
  walk_.go_back(before_);
  return true;
}

TERRACE_BODY void batch::give_up() noexcept {
  walk_.go_back(before_);
  asking_ = false;
}

TERRACE_BODY result<batch_window> batch::give(lease held) {
  if (pages_.empty()) {
    asking_ = under_way_ = false;
    return batch_window();
  }
  // A sequence may change while the blocks are on their way, and while the next ones are being asked for.
  if (options_.look_ahead && !walk_.stale()) look_ahead();
  if (walk_.stale()) {
    give_up();
    return propagate(changed);
  }
  if (auto placed = placed_.place(layer_, size(), pages_, held, walk_.finished()); !placed) {
    give_up();
    return propagate(placed.error());
  }
  asking_ = false;
  return batch_window(placed_, std::move(held));
}

// Loads what the next window needs while this one is attended.
TERRACE_BODY void batch::look_ahead() {
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
