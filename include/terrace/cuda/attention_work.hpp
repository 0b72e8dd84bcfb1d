#pragma once
#include <cstdint>

#include "terrace/core/config.hpp"
#include "terrace/cuda/attention.hpp"

namespace terrace::cuda {

/// The tokens of a sequence's table that one query sees, counted from the table's start: [begin, end), and [0, sinks).
struct visible_range {
  std::int32_t begin = 0, end = 0, sinks = 0;

  TERRACE_HD constexpr bool contains(std::int32_t token) const noexcept {
    return (token >= begin && token < end) || token < sinks;
  }
};

/// What one block of threads has to do: the tokens of one split of one sequence, for the query heads of one KV head.
struct split_work {
  std::int32_t entry = 0;   ///< of the table, the sequence's first
  std::int32_t tokens = 0;  ///< of the sequence
  std::int32_t begin =
      0;                 ///< the split's first token, from the table's start; negative where the table begins
                         ///< within the split
  std::int32_t end = 0;  ///< one past the split's last existing token; at most begin in an empty split
  std::int64_t first_position = 0;
  std::uint32_t query = 0;    ///< the sequence's first
  std::uint32_t columns = 0;  ///< pairs of a query and a head of the group
  std::uint32_t group = 1;    ///< query heads of a KV head

  TERRACE_HD constexpr split_work(const attention_args& a, std::uint32_t sequence,
                                  std::uint32_t split) noexcept {
    entry = a.table.indptr[sequence];
    const std::int32_t blocks = a.table.indptr[sequence + 1] - entry;
    const auto page = static_cast<std::int32_t>(a.page.tokens);
    tokens = blocks == 0 ? 0 : (blocks - 1) * page + a.table.last_page_len[sequence];
    first_position = a.table.first_position != nullptr ? a.table.first_position[sequence] : 0;
    const std::int32_t length = page * static_cast<std::int32_t>(a.split_blocks);
    begin = static_cast<std::int32_t>(split) * length - static_cast<std::int32_t>(first_position % length);
    end = tokens - begin < length ? tokens : begin + length;
    query = a.queries.indptr != nullptr ? static_cast<std::uint32_t>(a.queries.indptr[sequence]) : sequence;
    const std::uint32_t count =
        a.queries.indptr != nullptr ? static_cast<std::uint32_t>(a.queries.indptr[sequence + 1]) - query : 1;
    group = a.queries.q_heads / a.page.kv_heads;
    columns = count * group;
  }

  /// What the query of a column sees.
  TERRACE_HD constexpr visible_range visible(const attention_args& a, std::uint32_t sequence,
                                             std::uint32_t column) const noexcept {
    if (column >= columns) return {};
    if (a.queries.first_position == nullptr) return {0, tokens, 0};
    const std::int64_t stop =
        a.queries.first_position[sequence] + column / group + 1;  // the first position not seen
    const auto clip = [this](std::int64_t position) {
      const std::int64_t token = position - first_position;
      return static_cast<std::int32_t>(token < 0 ? 0 : token < tokens ? token : tokens);
    };
    if (a.keep.window == 0 || a.keep.window >= stop) return {0, clip(stop), 0};
    return {clip(stop - a.keep.window), clip(stop), clip(a.keep.sinks < stop ? a.keep.sinks : stop)};
  }
  /// The row of the output for a column of a KV head.
  TERRACE_HD constexpr std::size_t row(const attention_args& a, std::uint32_t kv_head,
                                       std::uint32_t column) const noexcept {
    return std::size_t{query + column / group} * a.queries.q_heads + kv_head * group + column % group;
  }
  /// Where the scalars of a tile go. `token` is the tile's first.
  TERRACE_HD constexpr std::size_t tile_row(const attention_args& a, std::uint32_t kv_head,
                                            std::uint32_t column, std::int32_t token) const noexcept {
    const std::size_t tile = static_cast<std::size_t>(entry) * tiles_of(a.page) +
                             static_cast<std::uint32_t>(token) / tile_tokens_of(a.page);
    return (tile * a.queries.most + column / group) * a.queries.q_heads + kv_head * group + column % group;
  }
};

}  // namespace terrace::cuda
