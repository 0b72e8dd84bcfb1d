#pragma once
#include <cstdint>
#include <ranges>
#include <span>
#include <vector>

#include "terrace/attention/stream.hpp"
#include "terrace/batch.hpp"

namespace terrace {
inline namespace TERRACE_EX {

/// All sequences of a batch that have reserved tokens, as a stream sees them.
struct whole_batch {
  using hold = batch_in_use;
  kv_store* cache;
  const batch* sequences;
  const batch& held() const noexcept { return *sequences; }
  void members(std::vector<walk_member>& all) const {
    for (std::size_t i = 0; i < sequences->size(); ++i)
      if (const std::uint32_t count = sequences->new_tokens(i); count != 0)
        all.push_back({&sequences->at(i).pages(), sequences->tokens(i) - count, sequences->tokens(i)});
  }
};

/// Attention of a batch's reserved tokens over everything that their sequences have in `layer`, each query up to its
/// own position: `stream` for all of them together. A block that several share is loaded once, and more windows are
/// in flight at a time than with `batch::next`: this is for attention on the host, `next` for the engine's own
/// kernels.
///
///     batch.reserve(counts);
///     for (layer ...) {
///       ...write K and V of batch.reserved(i), for each i...
///       ctx.sync_wait(stream(cache, batch, layer, queries, out));
///     }
///     batch.commit(kept);
///
/// `queries` is [token][q_head][dim], `out` is [token][q_head][v dim], sequence after sequence, as for load and
/// finish (attention/attend_batch.hpp); with floating arithmetic the bits are those of streaming each sequence alone.
/// The batch, its sequences and its reservations must stay, unchanged, until it completes; meanwhile the batch
/// refuses to change. Errors: block_error, as for a single stream. If only one sequence has lost blocks, the batch
/// can drop it; `queries` and `out` are then without it. O(blocks) requests, O(tokens * context) compute.
template <std::ranges::contiguous_range Queries, std::ranges::contiguous_range Out>
auto stream(kv_store& cache, const batch& sequences, std::uint32_t layer, const Queries& queries, Out&& out,
            stream_options options = {}) {
  using q = std::ranges::range_value_t<Queries>;
  using o = std::ranges::range_value_t<Out>;
  return stream_sender<whole_batch, q, o>(
      {{&cache, &sequences}, layer, std::span<const q>(queries), std::span<o>(out), options});
}

}  // namespace TERRACE_EX
}  // namespace terrace
