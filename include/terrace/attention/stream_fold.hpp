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
#include "terrace/observe/trace_log.hpp"

namespace terrace {
inline namespace TERRACE_EX {

inline block_view stream_run::view(std::size_t position, const std::byte* data,
                                   std::uint32_t format_id) const noexcept {
  const layer_group& g = group();
  const std::uint64_t start = std::uint64_t{position} * g.tokens;
  return {.group = &g,
          .data = data,
          .layer_in_block = layer_in_block_,
          .first_position = start,
          .tokens = static_cast<std::uint32_t>(std::min<std::uint64_t>(g.tokens, first_ + tokens_ - start)),
          .encoding = static_cast<block_encoding>(format_id)};
}

// One round of compute: work items are (KV head, run of queries), each goes through all blocks, in order. `tallied`
// is which of the row's blocks the first one is, where their mass counts.
template <class View>
void stream_run::fold(std::size_t blocks, View view_of, std::optional<std::size_t> tallied) {
  const query_tile& tile = work_->queries;
  const std::uint32_t heads = tile.shape().kv_heads;
  const std::uint32_t cut = tile.size() > 64 ? 32 : tile.size();  // queries an item
  const std::uint32_t cuts = (tile.size() + cut - 1) / cut;
  const std::size_t items = std::size_t{heads} * cuts;
  const auto work = [&](std::size_t item) noexcept {
    const auto head = static_cast<std::uint32_t>(item / cuts);
    const std::uint32_t first = static_cast<std::uint32_t>(item % cuts) * cut;
    const std::uint32_t count = std::min(cut, tile.size() - first);
    attend_in_turn(tile, blocks, view_of, work_->state, head, first, count, [&](std::size_t b) {
      if (!tallied || work_->mass.empty()) return;
      const std::uint32_t group = tile.shape().group();
      for (std::uint32_t q = first; q < first + count; ++q)
        for (std::uint32_t h = head * group; h < (head + 1) * group; ++h)
          work_->mass.note(*tallied + b, work_->state, tile.row(q, h));
    });
  };
  // A decode is bound by memory, of which one core gets the better part. Where its windows are waited for, a second core
  // gains nothing, and waking it takes it from those who bring them: the kernel, the codecs, a disk that is a program.
  if (!folds_alone()) return cache_.owner().parallel_for(items, work);
  for (std::size_t i = 0; i < items; ++i) work(i);
}

inline void stream_run::fold_window(const window& w, std::size_t first, std::size_t blocks) {
  const trace_scope scope(cache_.owner().trace(), trace_track::compute, "attend", w.held[first].id.index,
                          blocks * group().block_bytes());
  const auto view_of = [&](std::size_t b) {
    const leased_block& block = w.held[first + b];
    return view(work_->positions[w.first + first + b], block.data, block.format_id);
  };
  fold(blocks, view_of, w.first + first);
}

// Tells the policies and the prefetcher what each block drew, now that the whole is known.
inline void stream_run::report_mass() {
  if (work_->mass.empty()) return;
  work_->shares.assign(seen_, 0);  // what was not read drew nothing
  for (std::size_t b = 0; b < work_->blocks.size(); ++b) {
    const float share = work_->mass.share(b, work_->state);
    work_->shares[work_->ordinals[b]] = share;
    cache_.control().weigh(work_->blocks[b].index, share);
  }
  cache_.prefetcher().attended(use(), work_->shares);
}

// For measuring compute alone: nothing is brought, other memory of the same size stands in for what is not
// here.
inline void stream_run::fold_in_place() {
  const std::size_t size = group().block_bytes();
  const std::size_t slots = options_.stand_in.size() / size;
  std::size_t next = 0;
  std::vector<leased_block> here;
  for (const block_id id : work_->blocks) {
    here.push_back(cache_.control().readable_now(id, form()));
    if (here.back().data == nullptr && slots != 0)
      here.back().data = options_.stand_in.data() + size * (next++ % slots);
  }
  fold(here.size(),
       [&](std::size_t b) { return view(work_->positions[b], here[b].data, here[b].format_id); });
}

inline void stream_run::fold_open_tail() {
  if (!options_.attend) return;
  const auto& row = pages_.rows[row_];
  const std::size_t sealed = pages_.sealed(row_);
  fold(row.size() - sealed,
       [&](std::size_t b) { return view(sealed + b, cache_.control().open_data(row[sealed + b].index)); });
}

}  // namespace TERRACE_EX
}  // namespace terrace
