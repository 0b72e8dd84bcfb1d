#pragma once
// Which blocks a stream reads, and which ones it wishes to have here before they are asked for. Part of
// attention/stream_run.hpp.
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <numeric>
#include <span>
#include <utility>

#include "terrace/attention/stream_run.hpp"
#include "terrace/core/config.hpp"

namespace terrace {
inline namespace TERRACE_EX {

// Calls f(block, position) for each sealed block of a row that the single sequence's queries still see, in ascending
// order.
template <class F>
void stream_run::for_each_seen(std::uint32_t row, F&& f) const {
  const walk_member& m = work_->who.front();
  const layer_group& g = m.pages->group(row);
  const std::uint64_t sealed = m.pages->sealed(row);
  // The oldest key that the first query still sees; later queries see fewer of the old ones.
  const std::uint64_t oldest =
      g.keep.window == 0 || m.first_query + 1 < g.keep.window ? 0 : m.first_query + 1 - g.keep.window;
  for (std::uint64_t i = 0; i < sealed; ++i) {
    const bool seen = (i + 1) * g.tokens > oldest || (g.keep.window != 0 && i * g.tokens < g.keep.sinks);
    const block_id id = m.pages->rows[row][i];
    if (seen && id.valid()) f(id, static_cast<std::uint32_t>(i));
  }
}

// The distinct sealed blocks of a row that several sequences' queries still see, in the order in which a batch goes
// through them; and whose pages they are.
TERRACE_BODY void stream_run::walk_row(std::uint32_t row, std::vector<block_id>& blocks) {
  constexpr std::size_t all = std::numeric_limits<std::size_t>::max();
  work_->walk.begin(cache_.control(), work_->who, row);
  work_->walk.cut({.form = lease_form::raw, .slots = all, .blocks = all, .pages = all}, blocks,
                  work_->walked);
}

TERRACE_BODY bool stream_run::selection_is_valid() const noexcept {
  if (!options_.only) return true;
  if (work_->who.size() != 1) return false;
  const auto chosen = *options_.only;
  return chosen.empty() || (chosen.back() < work_->who.front().pages->sealed(row_) &&
                            std::ranges::adjacent_find(chosen, std::ranges::greater_equal{}) == chosen.end());
}

TERRACE_BODY void stream_run::choose_blocks() {
  const std::span<stream_member> members = work_->members();
  for (stream_member& m : members) {
    m.pages.clear();
    m.folded = m.until = 0;
  }
  if (members.size() == 1)
    choose_of_one();
  else
    choose_of_several();
  std::size_t readers = 0;  // queries, over all blocks
  for (const stream_member& m : members) readers += m.pages.size() * m.queries.size();
  rows_a_block_ = shape_.group() * readers / std::max<std::size_t>(1, work_->blocks.size());
  loads_end_ = work_->blocks.size();
  while (loads_end_ != 0 && !cache_.control().needs_slot(work_->blocks[loads_end_ - 1], form())) --loads_end_;
}

TERRACE_BODY void stream_run::choose_of_one() {
  work_->blocks.clear();
  work_->ordinals.clear();
  seen_ = 0;
  stream_member& m = work_->members().front();
  const std::uint32_t* next = options_.only ? options_.only->data() : nullptr;
  const std::uint32_t* const end = options_.only ? next + options_.only->size() : nullptr;
  for_each_seen(row_, [&](block_id id, std::uint32_t position) {
    const std::uint32_t ordinal = seen_++;
    while (next != end && *next < position) ++next;
    if (options_.only && (next == end || *next != position)) return;
    m.pages.push_back({static_cast<std::uint32_t>(work_->blocks.size()), position});
    work_->blocks.push_back(id);
    work_->ordinals.push_back(ordinal);
  });
}

TERRACE_BODY void stream_run::choose_of_several() {
  walk_row(row_, work_->blocks);
  for (const walked_page& p : work_->walked)
    if (!p.open) work_->members()[p.sequence].pages.push_back({p.block, p.position});
  seen_ = static_cast<std::uint32_t>(work_->blocks.size());
  work_->ordinals.resize(seen_);
  std::iota(work_->ordinals.begin(), work_->ordinals.end(), 0u);
}

// Whether a sequence has changed since the stream began, so that the chosen blocks may no longer be what it has.
TERRACE_BODY bool stream_run::changed() const noexcept {
  return std::ranges::any_of(work_->members(),
                             [](const stream_member& m) { return m.who.pages->changes != m.changes; });
}

TERRACE_BODY row_use stream_run::use() const noexcept {
  const page_table& first = *work_->who.front().pages;
  return {.sequence = first.number,
          .row = row_,
          .rows = static_cast<std::uint32_t>(first.rows.size()),
          .blocks = seen_,
          .step = cache_.control().step(),
          .selected = options_.only.has_value()};
}

// Once everything that this row needs from elsewhere has been requested, prefetches what will be wanted next, while
// the rest is folded in place. Called repeatedly, because the number of prefetches in flight is limited.
TERRACE_BODY void stream_run::look_ahead() {
  if (asked_ < loads_end_) return;
  if (!std::exchange(looked_ahead_, true)) gather_wishes();
  if (!work_->wanted.empty()) cache_.prefetch(work_->wanted, form());
}

TERRACE_BODY void stream_run::gather_wishes() {
  work_->wanted.clear();
  std::array<prefetch_wish, 16> wishes;
  std::uint32_t gathered = static_cast<std::uint32_t>(-1);  // the row that work_->seen holds
  const std::size_t count = cache_.prefetcher().suggest(wishes);
  for (const prefetch_wish& wish : std::span(wishes).first(count)) {
    if (wish.row >= use().rows) continue;
    if (std::exchange(gathered, wish.row) != wish.row) {
      work_->seen.clear();
      if (work_->who.size() == 1)
        for_each_seen(wish.row, [&](block_id id, std::uint32_t) { work_->seen.push_back(id); });
      else
        walk_row(wish.row, work_->seen);
    }
    std::size_t left = wish.blocks;
    for (std::size_t n = wish.first; left != 0 && n < work_->seen.size(); ++n) {
      if (wish.absent && !cache_.control().needs_slot(work_->seen[n], form())) continue;
      work_->wanted.push_back(work_->seen[n]);
      --left;
    }
  }
}

}  // namespace TERRACE_EX
}  // namespace terrace
