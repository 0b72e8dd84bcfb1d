#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "attend_mode.hpp"
#include "difference.hpp"
#include "terrace/attention/select.hpp"
#include "terrace/core/layout.hpp"
#include "terrace/execution/context.hpp"

namespace runner {

/// What a selection of blocks read, and what that cost.
struct selection_result {
  std::uint64_t blocks_read = 0, blocks_there = 0;  ///< sealed ones, over all steps and layers
  std::size_t summary_bytes = 0;                    ///< of the keys' summaries, which stay in memory
  std::uint64_t compared = 0;                       ///< attentions that were also computed over everything
  difference_tally off;                             ///< how far these are from those over everything

  double share_read() const {
    return blocks_there == 0 ? 1 : static_cast<double>(blocks_read) / static_cast<double>(blocks_there);
  }
  selection_result& operator+=(const selection_result& other) {
    blocks_read += other.blocks_read;
    blocks_there += other.blocks_there;
    summary_bytes += other.summary_bytes;
    compared += other.compared;
    off += other.off;
    return *this;
  }
};

/// Chooses which blocks the attention of a single token reads. Each query head chooses by the summaries of its KV
/// head's keys. A block holds all heads, so if one of them wants it, it is read and all attend to it. The newest
/// sealed block and the open one are always read. The layout has one group, one layer a block, and the keys of a head
/// side by side.
class block_selector {
 public:
  block_selector(attend_mode mode, const terrace::layer_group& group)
      : mode_(std::move(mode)),
        group_(group),
        keys_(std::size_t{group.layers} * group.k.heads, terrace::key_summaries(group.k.dim)) {}

  /// From now on `choose` may be called; before, all blocks are read.
  void start() noexcept { started_ = true; }
  bool started() const noexcept { return started_; }
  /// Whether the next attentions are also computed over everything, and compared.
  void check(bool on) noexcept { checking_ = on; }
  bool checking() const noexcept { return checking_; }

  /// Adds the next block of every layer, which is full. `blocks` points to their bytes, [layer].
  void add(terrace::context& ctx, std::span<const std::byte* const> blocks) {
    ctx.parallel_for(keys_.size(), [&](std::size_t i) noexcept {
      const auto head = static_cast<std::uint32_t>(i % group_.k.heads);
      keys_[i].add(keys_of(blocks[i / group_.k.heads], head, group_.tokens));
    });
  }

  /// The positions of the blocks that these queries, [q_head][dim], should read, ascending; valid until the next
  /// call. `open` is the block that is being written, with `open_tokens` tokens.
  std::span<const std::uint32_t> choose(terrace::context& ctx, std::uint32_t layer,
                                        std::span<const float> queries, const std::byte* open,
                                        std::uint32_t open_tokens) {
    const std::size_t dim = group_.k.dim, heads = queries.size() / dim;
    const float scale = 1 / std::sqrt(static_cast<float>(dim));
    chosen_by_.resize(heads);
    ctx.parallel_for(heads, [&](std::size_t h) noexcept {
      const auto kv_head = static_cast<std::uint32_t>(h / (heads / group_.k.heads));
      const terrace::key_summaries& keys = keys_[std::size_t{layer} * group_.k.heads + kv_head];
      const auto query = queries.subspan(h * dim, dim);
      terrace::always_read always{.newest = 1};
      if (mode_.how == attend_mode::choice::certified) {
        always.log_mass = terrace::log_mass(keys_of(open, kv_head, open_tokens), query, scale);
        chosen_by_[h] = terrace::certified{mode_.eps}(keys, query, scale, always).blocks;
      } else {
        chosen_by_[h] = terrace::top_k{mode_.k}(keys, query, scale, always).blocks;
      }
    });
    chosen_.clear();
    for (const auto& blocks : chosen_by_) chosen_.insert(chosen_.end(), blocks.begin(), blocks.end());
    std::ranges::sort(chosen_);
    chosen_.erase(std::ranges::unique(chosen_).begin(), chosen_.end());
    found_.blocks_read += chosen_.size();
    found_.blocks_there += keys_[std::size_t{layer} * group_.k.heads].blocks();
    return chosen_;
  }

  /// What attention over a selection gave, and what it gives over everything.
  void compare(std::span<const float> selected, std::span<const float> everything) {
    for (std::size_t i = 0; i < selected.size(); ++i)
      found_.off.add(static_cast<double>(selected[i]), static_cast<double>(everything[i]));
    ++found_.compared;
  }

  selection_result result() const {
    selection_result r = found_;
    for (const terrace::key_summaries& k : keys_) r.summary_bytes += k.bytes();
    return r;
  }

 private:
  std::span<const terrace::fp16> keys_of(const std::byte* block, std::uint32_t head,
                                         std::uint32_t tokens) const noexcept {
    const std::byte* const first = block + group_.k_offset() + head * group_.head_stride(group_.k);
    return {reinterpret_cast<const terrace::fp16*>(first), std::size_t{tokens} * group_.k.dim};
  }

  attend_mode mode_;
  terrace::layer_group group_;
  std::vector<terrace::key_summaries> keys_;  // [layer][kv_head]
  std::vector<std::vector<std::uint32_t>> chosen_by_;
  std::vector<std::uint32_t> chosen_;
  selection_result found_;
  bool started_ = false, checking_ = false;
};

}  // namespace runner
