#pragma once
// What a stream computes: the blocks of its windows, those that are being written, and what each of them drew. Part of
// attention/stream_run.hpp.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "terrace/attention/attend.hpp"
#include "terrace/attention/stream_run.hpp"
#include "terrace/core/config.hpp"
#include "terrace/observe/trace_log.hpp"

namespace terrace {
inline namespace TERRACE_EX {

TERRACE_BODY block_view stream_run::view(const stream_member& m, std::size_t position, const std::byte* data,
                                         std::uint32_t format_id) const noexcept {
  const std::uint64_t start = std::uint64_t{position} * group_->tokens;
  return {.group = group_,
          .data = data,
          .layer_in_block = layer_in_block_,
          .first_position = start,
          .tokens = static_cast<std::uint32_t>(std::min<std::uint64_t>(group_->tokens, m.who.tokens - start)),
          .encoding = static_cast<block_encoding>(format_id)};
}

// One round of compute. A work item is a KV head, a sequence and a run of its queries: it folds count_of(sequence)
// pages of that sequence, in order. view_of(sequence, i) gives page i, and after(sequence, i, head, first query,
// queries) is called when a head of it has been folded. Items of the same head are adjacent, as their sequences may
// share its blocks.
template <class Count, class View, class After>
void stream_run::fold(Count count_of, View view_of, After after) {
  const std::span<stream_member> members = work_->members();
  std::vector<stream_workspace::query_run>& runs = work_->runs;
  runs.clear();
  std::size_t most_rows = 0;
  for (std::uint32_t i = 0; i < members.size(); ++i) {
    if (count_of(members[i]) == 0) continue;
    const std::uint32_t queries = members[i].queries.size();
    const std::uint32_t cut = queries > 64 ? 32 : queries;
    for (std::uint32_t first = 0; first < queries; first += cut)
      runs.push_back({i, first, std::min(cut, queries - first)});
    most_rows = std::max(most_rows, std::size_t{queries} * shape_.group());
  }
  const auto work = [&](std::size_t item) noexcept {
    const auto head = static_cast<std::uint32_t>(item / runs.size());
    const stream_workspace::query_run run = runs[item % runs.size()];
    stream_member& m = members[run.member];
    attend_in_turn(
        m.queries, count_of(m), [&](std::size_t i) { return view_of(m, i); }, m.state, head, run.first,
        run.count, [&](std::size_t i) { after(m, i, head, run.first, run.count); });
  };
  // A decode is bound by memory bandwidth, most of which one core can use. Where it has to wait for its windows, a
  // second core gains nothing, and waking one takes it from whatever loads them: the kernel, the codecs, a disk that
  // is a program.
  const std::size_t items = shape_.kv_heads * runs.size();
  if (most_rows > few || !folds_alone()) return cache_.owner().parallel_for(items, work);
  for (std::size_t i = 0; i < items; ++i) work(i);
}

// Folds each sequence's pages that lie before the stream's block `end` and are not folded yet. place_of(block) gives
// its address and its format.
template <class Place>
void stream_run::fold_blocks(std::size_t end, Place place_of) {
  for (stream_member& m : work_->members())
    while (m.until < m.pages.size() && m.pages[m.until].block < end) ++m.until;
  fold([](const stream_member& m) { return m.until - m.folded; },
       [&](const stream_member& m, std::size_t i) {
         const stream_member::page& p = m.pages[m.folded + i];
         const leased_block& block = place_of(p.block);
         return view(m, p.position, block.data, block.format_id);
       },
       [&](stream_member& m, std::size_t i, std::uint32_t head, std::uint32_t first, std::uint32_t count) {
         if (!weighs_) return;
         for (std::uint32_t q = first; q < first + count; ++q)
           for (std::uint32_t h = head * shape_.group(); h < (head + 1) * shape_.group(); ++h)
             m.mass.note(m.folded + i, m.state, m.queries.row(q, h));
       });
  for (stream_member& m : work_->members()) m.folded = m.until;
}

TERRACE_BODY void stream_run::fold_window(const window& w, std::size_t first, std::size_t blocks) {
  const trace_scope scope(cache_.owner().trace(), trace_track::compute, "attend", w.held[first].id.index,
                          blocks * group_->block_bytes());
  fold_blocks(w.first + first + blocks,
              [&](std::size_t b) -> const leased_block& { return w.held[b - w.first]; });
}

// Mass is tallied only when a step decodes: over a prefill's many queries it would cost memory, and say little.
TERRACE_BODY bool stream_run::is_to_weigh() const noexcept {
  const bool decodes = std::ranges::all_of(work_->members(), [this](const stream_member& m) {
    return std::size_t{m.queries.size()} * shape_.group() <= few;
  });
  return options_.attend && decodes && (cache_.control().weighs() || cache_.prefetcher().watches());
}

// Tells the policies and the prefetcher what each block drew, now that the whole is known. The policies get the sum
// over all sequences, which for those that add up is as if each had streamed alone; the prefetcher gets the mean.
TERRACE_BODY void stream_run::report_mass() {
  if (!weighs_) return;
  const std::span<const stream_member> members = work_->members();
  work_->shares.assign(seen_, 0);  // what was not read drew nothing
  for (const stream_member& m : members)
    for (std::size_t i = 0; i < m.pages.size(); ++i)
      work_->shares[work_->ordinals[m.pages[i].block]] += m.mass.share(i, m.state);
  for (std::size_t b = 0; b < work_->blocks.size(); ++b)
    cache_.control().weigh(work_->blocks[b].index, work_->shares[work_->ordinals[b]]);
  if (!cache_.prefetcher().watches()) return;
  for (float& share : work_->shares) share /= static_cast<float>(members.size());
  cache_.prefetcher().attended(use(), work_->shares);
}

// For measuring only compute: nothing is loaded; other memory of the same size stands in for what is not here.
TERRACE_BODY void stream_run::fold_in_place() {
  const std::size_t size = group_->block_bytes();
  const std::size_t slots = options_.stand_in.size() / size;
  std::size_t next = 0;
  std::vector<leased_block> here;
  for (const block_id id : work_->blocks) {
    here.push_back(cache_.control().readable_now(id, form()));
    if (here.back().data == nullptr && slots != 0)
      here.back().data = options_.stand_in.data() + size * (next++ % slots);
  }
  fold_blocks(here.size(), [&](std::size_t b) -> const leased_block& { return here[b]; });
}

TERRACE_BODY void stream_run::fold_open_tail() {
  if (!options_.attend) return;
  const auto sealed = [this](const stream_member& m) { return m.who.pages->sealed(row_); };
  fold([&](const stream_member& m) { return m.who.pages->rows[row_].size() - sealed(m); },
       [&](const stream_member& m, std::size_t i) {
         const std::size_t position = sealed(m) + i;
         const block_id id = m.who.pages->rows[row_][position];
         return view(m, position, cache_.control().open_data(id.index));
       },
       [](auto&&...) {});
}

}  // namespace TERRACE_EX
}  // namespace terrace
