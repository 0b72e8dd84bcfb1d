#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <ranges>
#include <span>

#include "terrace/attention/attend.hpp"
#include "terrace/attention/partial_state.hpp"
#include "terrace/attention/query_tile.hpp"
#include "terrace/batch.hpp"

namespace terrace {
inline namespace TERRACE_EX {

/// Makes a tile of queries and an empty state for each sequence of a batch, for attention in `layer`.
/// `queries` is [token][q_head][dim] of fp16, bf16 or float, where the tokens are the reserved ones, sequence
/// after sequence. The number of query heads follows from the size; `scale` is that of the logits (0: 1 / sqrt(dim)).
/// A sequence without new tokens gets an empty tile. Errors: invalid_argument for an impossible shape, a layer that
/// does not exist, and a number of tiles or states other than the number of sequences; out_of_memory. After an error
/// some tiles may be new and others not.
template <std::ranges::contiguous_range Queries>
result<void> load(const batch& b, std::uint32_t layer, const Queries& queries, std::span<query_tile> tiles,
                  std::span<partial_state> states, float scale = 0) {
  using q = std::ranges::range_value_t<Queries>;
  std::span<const q> rest(queries);
  if (tiles.size() != b.size() || states.size() != b.size())
    return fail(errc::invalid_argument, "a batch needs a tile of queries and a state for each sequence");
  if (layer >= b.layout().layers())
    return fail(errc::invalid_argument, "attention was asked for in a layer that the model does not have");
  const layer_group& group = b.layout().groups[b.layout().group_of(layer)];
  std::size_t tokens = 0;
  for (std::size_t i = 0; i < b.size(); ++i) tokens += b.new_tokens(i);
  const std::size_t per_head = tokens * group.k.dim;
  if (rest.empty() || per_head == 0 || rest.size() % per_head != 0)
    return fail(errc::invalid_argument,
                "the queries are not a whole number of heads for each reserved token");
  const attention_shape shape{.q_heads = static_cast<std::uint32_t>(rest.size() / per_head),
                              .kv_heads = group.k.heads,
                              .dim = group.k.dim,
                              .scale = scale,
                              .keep = group.keep};
  if (auto good = validate(shape, group); !good) return good;
  for (std::size_t i = 0; i < b.size(); ++i) {
    const std::size_t count = std::size_t{b.new_tokens(i)} * shape.q_heads * shape.dim;
    const std::uint64_t first = b.tokens(i) - b.new_tokens(i);
    if (auto loaded = tiles[i].load(shape, rest.first(count), first); !loaded) return loaded;
    if (auto made = states[i].reset(tiles[i].rows(), group.v_dim()); !made) return made;
    rest = rest.subspan(count);
  }
  return {};
}

/// Folds the window's pages of each sequence into its state; the owner and the context's pool share the work. The
/// bits are those of attending each sequence alone (attend.hpp), however the batch is cut into windows, as long as
/// the windows are folded in the order in which the batch gives them. Between pieces of work it polls for
/// completions, so that what the next window needs is decoded meanwhile.
///
/// Preconditions: one tile and one state for each sequence of the batch, of the window's layer group, as
/// `load` makes them. An empty window changes nothing. O(pages * query heads).
inline void attend(const batch_window& window, std::span<const query_tile> queries,
                   std::span<partial_state> states) {
  if (window.empty()) return;
  TERRACE_ASSERT(queries.size() == window.sequences() && states.size() == window.sequences(),
                 "a window is attended with a tile of queries and a state for each sequence");
  constexpr std::uint32_t cut = 32;  // queries of a work item
  constexpr std::int32_t piece = 8;  // pages of each sequence between two polls for completions
  const std::span<const std::int32_t> indptr = window.arrays().indptr;
  const std::uint32_t heads = window.group().k.heads;
  std::uint32_t cuts = 0;
  std::int32_t longest = 0;
  for (std::size_t i = 0; i < queries.size(); ++i) {
    cuts = std::max(cuts, (queries[i].size() + cut - 1) / cut);
    longest = std::max(longest, indptr[i + 1] - indptr[i]);
  }
  for (std::int32_t done = 0; done < longest; done += piece) {
    window.owner().poll();
    window.owner().parallel_for(queries.size() * heads * cuts, [&](std::size_t item) noexcept {
      const std::size_t i = item / (std::size_t{heads} * cuts);
      const auto head = static_cast<std::uint32_t>(item / cuts % heads);
      const auto first = static_cast<std::uint32_t>(item % cuts) * cut;
      if (first >= queries[i].size()) return;
      const std::int32_t begin = indptr[i] + done, end = std::min(begin + piece, indptr[i + 1]);
      if (begin >= end) return;
      const auto page = [&](std::size_t p) { return window.page(static_cast<std::size_t>(begin) + p); };
      attend_in_turn(queries[i], static_cast<std::size_t>(end - begin), page, states[i], head, first,
                     std::min(cut, queries[i].size() - first), [](std::size_t) {});
    });
  }
}

/// Writes the results, [token][q_head][v dim], sequence after sequence, for the queries that `load` took. Errors:
/// invalid_argument for a span of any other size.
template <std::ranges::contiguous_range Out>
result<void> finish(std::span<const partial_state> states, Out&& out) {
  using o = std::ranges::range_value_t<Out>;
  std::span<o> rest(out);
  std::size_t values = 0;
  for (const partial_state& s : states) values += s.rows() * s.dim();
  if (rest.size() != values)
    return fail(errc::invalid_argument, "the result of a batch needs [token][q_head][v dim] elements");
  for (const partial_state& s : states) {
    s.finish(rest.first(s.rows() * s.dim()));
    rest = rest.subspan(s.rows() * s.dim());
  }
  return {};
}

}  // namespace TERRACE_EX
}  // namespace terrace
