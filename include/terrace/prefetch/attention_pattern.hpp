#pragma once
#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "terrace/prefetch/prefetcher.hpp"

namespace terrace {

/// Asks for the blocks of the next row of layers that drew most of the softmax mass in the last steps of the same
/// sequence; after the last row, for those of the first row at the next step. Where attention reads a selection of
/// blocks, it asks for those that were read most often: no more than the last step read, and few enough that, going
/// by what it has seen, the share of them that is read is at least `least`. A low share loads more blocks in time,
/// and more in vain.
///
/// A block's score is the mean of its shares, or of whether it was read (1) or not (0), each step weighted by `decay`
/// relative to the step after it. For each row of each sequence the best 4 * `blocks` are remembered, in a table of
/// fixed size in which a newer row may take an older one's place: 48 bytes * blocks * rows. For selections it counts,
/// over all rows, how many blocks of each score were read at the next step; the last two hundred rows count most.
/// `attended` is O(blocks of the row * log blocks), `suggest` O(blocks log blocks); neighbouring blocks are asked for
/// together.
class attention_pattern {
 public:
  static constexpr std::string_view name = "attention_pattern";
  struct options {
    std::uint32_t blocks = 16;  ///< how many of the next row
    std::uint32_t rows = 256;   ///< rows of sequences to remember
    float decay = 0.5f;
    float least =
        0.85f;  ///< where attention reads a selection, the share of what it asks for that should be read
  };

  attention_pattern() : attention_pattern(options{}) {}
  explicit attention_pattern(options o)
      : options_(o),
        keep_(std::size_t{4} * std::max(o.blocks, 1u)),
        patterns_(std::bit_ceil(std::max(o.rows, 1u))) {
    float once_more = 1;  // what is missing from a score of 1 after `level` reads in a row
    for (level_tally& t : levels_) {
      t = {.seen = first_guess * once_more, .read = first_guess * once_more * (1 - once_more)};
      once_more *= options_.decay;
    }
    scores_.resize(patterns_.size() * keep_);
    scratch_.reserve(keep_);
    runs_.reserve(keep_);
  }

  void observe(const row_use& use) noexcept { use_ = use; }

  void attended(const row_use& use, std::span<const float> shares) noexcept {
    const std::size_t at = place(use.sequence, use.row);
    pattern& p = patterns_[at];
    if (!p.is(use.sequence, use.row)) p = {.sequence = use.sequence, .row = use.row, .known = true};
    const auto before = scores(at).first(p.count);
    const bool foretold = use.selected && p.selected;
    p.selected = use.selected;
    p.read = 0;
    std::size_t next = 0;
    if (use.selected) fade();
    scratch_.clear();  // the best so far, as a heap with the worst of them in front
    for (std::uint32_t i = 0; i < shares.size(); ++i) {
      const bool read = shares[i] > 0;
      p.read += read ? 1 : 0;
      float score = (1 - options_.decay) * (use.selected && read ? 1 : shares[i]);
      if (next < before.size() && before[next].block == i) {
        if (foretold) count(before[next].score, read);
        score += options_.decay * before[next++].score;
      }
      if (!(score > 0)) continue;
      if (scratch_.size() == keep_) {
        if (score <= scratch_.front().score) continue;
        std::pop_heap(scratch_.begin(), scratch_.end(), better);
        scratch_.pop_back();
      }
      scratch_.push_back({i, 1, score});
      std::push_heap(scratch_.begin(), scratch_.end(), better);
    }
    std::sort(scratch_.begin(), scratch_.end(), nearer);
    std::copy(scratch_.begin(), scratch_.end(), scores(at).begin());
    p.count = static_cast<std::uint32_t>(scratch_.size());
  }

  std::size_t suggest(std::span<prefetch_wish> out) noexcept {
    const bool last = use_.row + 1 >= use_.rows;
    const std::uint32_t row = last ? 0 : use_.row + 1;
    const std::size_t at = place(use_.sequence, row);
    const pattern& p = patterns_[at];
    if (!p.is(use_.sequence, row)) return 0;
    const std::size_t least = p.selected ? least_level() : 0;
    scratch_.clear();
    for (const run& s : scores(at).first(p.count))
      if (s.block < use_.blocks && level_of(s.score) >= least) scratch_.push_back(s);
    std::sort(scratch_.begin(), scratch_.end(), better);
    const std::uint32_t most = p.selected ? std::min(options_.blocks, p.read) : options_.blocks;
    if (scratch_.size() > most) scratch_.resize(most);
    std::sort(scratch_.begin(), scratch_.end(), nearer);
    runs_.clear();
    for (const run& s : scratch_) {
      if (!runs_.empty() && runs_.back().block + runs_.back().length == s.block) {
        ++runs_.back().length;
        runs_.back().score = std::max(runs_.back().score, s.score);
      } else {
        runs_.push_back(s);
      }
    }
    std::sort(runs_.begin(), runs_.end(), better);
    const std::size_t count = std::min(out.size(), runs_.size());
    for (std::size_t i = 0; i < count; ++i)
      out[i] = {.row = row,
                .first = runs_[i].block,
                .blocks = runs_[i].length,
                .at_step = last ? use_.step + 1 : use_.step};
    return count;
  }

 private:
  // Neighbouring blocks, and the best score of them.
  struct run {
    std::uint32_t block = 0;
    std::uint32_t length = 1;
    float score = 0;
  };
  struct pattern {
    std::uint32_t sequence = 0;
    std::uint32_t row = 0;
    std::uint32_t count = 0;  // of its scores, which are in ascending order of blocks
    std::uint32_t read = 0;   // blocks read the last time
    bool known = false;
    bool selected = false;  // attention read some of the blocks, not all
    bool is(std::uint32_t s, std::uint32_t r) const noexcept { return known && sequence == s && row == r; }
  };
  // Blocks whose scores are as after that many reads in a row, and how many of them the next step read.
  struct level_tally {
    float seen = 0, read = 0;
  };
  static constexpr std::size_t levels = 10;
  static constexpr float memory = 0.995f;
  // Until more is known, a score is taken as the probability of a read, through this many imaginary blocks.
  static constexpr float first_guess = 16;

  std::size_t level_of(float score) const noexcept {
    const float left = (1 - score) * 0.999f;  // so that rounding does not cost a level
    float bound = options_.decay;
    std::size_t level = 0;
    for (; level + 1 < levels && left <= bound; ++level) bound *= options_.decay;
    return level;
  }
  void fade() noexcept {
    for (level_tally& t : levels_) t = {t.seen * memory, t.read * memory};
  }
  void count(float score, bool read) noexcept {
    level_tally& t = levels_[level_of(score)];
    t.seen += 1;
    t.read += read ? 1 : 0;
  }
  // The lowest level from which on, overall, the share of blocks that are read is as large as it should be.
  std::size_t least_level() const noexcept {
    std::size_t least = levels;
    level_tally from_here;
    for (std::size_t level = levels; level-- > 0;) {
      from_here.seen += levels_[level].seen;
      from_here.read += levels_[level].read;
      if (from_here.read >= options_.least * from_here.seen) least = level;
    }
    return least;
  }

  static bool better(const run& a, const run& b) noexcept {
    return a.score != b.score ? a.score > b.score : a.block < b.block;
  }
  static bool nearer(const run& a, const run& b) noexcept { return a.block < b.block; }

  // Rows of one sequence are adjacent, so that they do not take one another's place.
  std::size_t place(std::uint32_t sequence, std::uint32_t row) const noexcept {
    return (sequence * 0x9e3779b1u + row) & (patterns_.size() - 1);
  }
  std::span<run> scores(std::size_t at) noexcept { return std::span(scores_).subspan(at * keep_, keep_); }

  options options_;
  std::size_t keep_;
  row_use use_{};
  std::vector<pattern> patterns_;
  std::array<level_tally, levels> levels_{};
  std::vector<run> scores_;  // [pattern][keep]
  std::vector<run> scratch_, runs_;
};
static_assert(attention_watching_prefetcher<attention_pattern>);

}  // namespace terrace
