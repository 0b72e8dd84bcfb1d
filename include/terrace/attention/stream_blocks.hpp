#pragma once
// Which blocks a stream reads, and which ones it wishes to have here before they are asked for. Part of
// attention/stream_run.hpp.
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <utility>

#include "terrace/attention/stream_run.hpp"

namespace terrace {
inline namespace TERRACE_EX {

// Calls f(block, position) for each sealed block of a row that the queries still see, in ascending order.
template <class F>
void stream_run::for_each_seen(std::uint32_t row, F&& f) const {
  const layer_group& g = pages_.group(row);
  const std::uint64_t sealed = pages_.sealed(row);
  // Keys that the first query still sees; later queries see fewer of the old ones.
  const std::uint64_t oldest =
      g.keep.window == 0 || first_ + 1 < g.keep.window ? 0 : first_ + 1 - g.keep.window;
  for (std::uint64_t i = 0; i < sealed; ++i) {
    const bool seen = (i + 1) * g.tokens > oldest || (g.keep.window != 0 && i * g.tokens < g.keep.sinks);
    const block_id id = pages_.rows[row][i];
    if (seen && id.valid()) f(id, static_cast<std::uint32_t>(i));
  }
}

inline bool stream_run::selection_is_valid() const noexcept {
  if (!options_.only || options_.only->empty()) return true;
  const auto chosen = *options_.only;
  return chosen.back() < pages_.sealed(row_) &&
         std::ranges::adjacent_find(chosen, std::ranges::greater_equal{}) == chosen.end();
}

inline void stream_run::choose_blocks() {
  work_->blocks.clear();
  work_->positions.clear();
  work_->ordinals.clear();
  seen_ = 0;
  const std::uint32_t* next = options_.only ? options_.only->data() : nullptr;
  const std::uint32_t* const end = options_.only ? next + options_.only->size() : nullptr;
  for_each_seen(row_, [&](block_id id, std::uint32_t position) {
    const std::uint32_t ordinal = seen_++;
    while (next != end && *next < position) ++next;
    if (options_.only && (next == end || *next != position)) return;
    work_->blocks.push_back(id);
    work_->positions.push_back(position);
    work_->ordinals.push_back(ordinal);
  });
  loads_end_ = work_->blocks.size();
  while (loads_end_ != 0 && !cache_.control().needs_slot(work_->blocks[loads_end_ - 1], form())) --loads_end_;
}

inline row_use stream_run::use() const noexcept {
  return {.sequence = pages_.number,
          .row = row_,
          .rows = static_cast<std::uint32_t>(pages_.rows.size()),
          .blocks = seen_,
          .step = cache_.control().step(),
          .selected = options_.only.has_value()};
}

// All that this row needs from elsewhere is asked for: while the rest is folded where it lies, what will be
// wanted next may come. Called again and again, because only so many prefetches are in flight at a time.
inline void stream_run::look_ahead() {
  if (asked_ < loads_end_) return;
  if (!std::exchange(looked_ahead_, true)) gather_wishes();
  if (!work_->wanted.empty()) cache_.prefetch(work_->wanted, form());
}

inline void stream_run::gather_wishes() {
  work_->wanted.clear();
  std::array<prefetch_wish, 16> wishes;
  std::uint32_t gathered = static_cast<std::uint32_t>(-1);  // the row that work_->seen holds
  const std::size_t count = cache_.prefetcher().suggest(wishes);
  for (const prefetch_wish& wish : std::span(wishes).first(count)) {
    if (wish.row >= pages_.rows.size()) continue;
    if (std::exchange(gathered, wish.row) != wish.row) {
      work_->seen.clear();
      for_each_seen(wish.row, [&](block_id id, std::uint32_t) { work_->seen.push_back(id); });
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
