#pragma once
// The functions of cache/page_walk.hpp.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "terrace/cache/page_walk.hpp"
#include "terrace/core/config.hpp"

namespace terrace {
inline namespace TERRACE_EX {

// Finds the lowest position, from where the walk stands, at which a sequence has a sealed page to read.
TERRACE_BODY bool page_walk::find_column() {
  std::uint32_t lowest = none;
  column_.clear();
  for (std::uint32_t i = 0; i < members_.size(); ++i) {
    const std::uint32_t position = members_[i].next(at_.position);
    if (position == none || position > lowest) continue;
    if (position < lowest) column_.clear();
    lowest = position;
    column_.push_back({members_[i].pages[position], i});
  }
  if (lowest == none) return false;
  at_.position = lowest;
  std::sort(column_.begin(), column_.end());
  return true;
}

TERRACE_BODY void page_walk::drop(std::uint32_t member) {
  // Its page at the current position may be among those already given.
  if (at_.rank != 0 && find_column()) {
    const auto given = column_.begin() + at_.rank;
    if (std::any_of(column_.begin(), given, [&](const column_page& p) { return p.sequence == member; }))
      --at_.rank;
  }
  open_pages_ -= members_[member].pages.size() - members_[member].sealed;
  members_[member] = {};
}

TERRACE_BODY void page_walk::cut(const window_limits& most, std::vector<block_id>& blocks,
                                 std::vector<walked_page>& pages) {
  blocks.clear();
  pages.clear();
  std::size_t slots = 0;
  place aligned = at_;  // the last place where a window may begin, and how much was cut before it
  std::size_t aligned_blocks = 0, aligned_pages = 0;
  while (!at_.finished && find_column()) {
    if (at_.rank == 0 && at_.position / most.align != aligned.position / most.align) {
      aligned = {at_.position / most.align * most.align, 0, false};
      aligned_blocks = blocks.size();
      aligned_pages = pages.size();
    }
    while (at_.rank < column_.size()) {
      const block_id block = column_[at_.rank].block;
      std::size_t end = at_.rank + 1;
      while (end < column_.size() && column_[end].block == block) ++end;
      const std::size_t slot = owner_->needs_slot(block, most.form) ? 1 : 0;
      const bool full = slots + slot > most.slots || blocks.size() + 1 > most.blocks ||
                        pages.size() + (end - at_.rank) > most.pages;
      if (full && !blocks.empty()) {
        if (aligned_blocks != 0) {
          at_ = aligned;
          blocks.resize(aligned_blocks);
          pages.resize(aligned_pages);
        }
        return;
      }
      slots += slot;
      for (; at_.rank < end; ++at_.rank)
        pages.push_back({.sequence = column_[at_.rank].sequence,
                         .position = at_.position,
                         .block = static_cast<std::uint32_t>(blocks.size()),
                         .tokens = page_tokens_});
      blocks.push_back(block);
    }
    ++at_.position;
    at_.rank = 0;
  }
  if (at_.finished || (!pages.empty() && pages.size() + open_pages_ > most.pages)) return;
  add_open_pages(pages);
  at_.finished = true;
}

TERRACE_BODY void page_walk::add_open_pages(std::vector<walked_page>& pages) {
  for (std::uint32_t i = 0; i < members_.size(); ++i) {
    const stretch& m = members_[i];
    for (std::uint32_t p = m.sealed; p < m.pages.size(); ++p) {
      const std::uint64_t left = m.tokens - std::uint64_t{p} * page_tokens_;
      pages.push_back({.sequence = i,
                       .position = p,
                       .block = m.pages[p].index,
                       .tokens = static_cast<std::uint32_t>(std::min<std::uint64_t>(page_tokens_, left)),
                       .open = true});
    }
  }
}

}  // namespace TERRACE_EX
}  // namespace terrace
