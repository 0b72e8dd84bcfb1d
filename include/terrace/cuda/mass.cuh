#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "terrace/core/config.hpp"
#include "terrace/cuda/attention_work.hpp"
#include "terrace/cuda/block_context.hpp"
#include "terrace/cuda/launch.hpp"
#include "terrace/cuda/mass.hpp"

namespace terrace::cuda {

/// The kernel of `block_mass`: a warp sums up one block's tiles over the rows of its sequence, lanes along the rows,
/// in a fixed order.
template <std::uint32_t block_threads>
struct block_mass_kernel {
  static constexpr std::uint32_t threads = block_threads;
  static constexpr std::uint32_t warps = threads / warp_threads;

  attention_args args;
  const float* lse;
  std::uint32_t entries;
  float* shares;

  template <class Block>
  TERRACE_DEVICE void operator()(Block& block) const {
    const std::uint32_t entry = block.index().x * warps + block.thread() / warp_threads;
    const std::uint32_t lane = block.thread() % warp_threads;
    if (entry >= entries) return;  // the whole warp
    const std::uint32_t sequence = sequence_of(static_cast<std::int32_t>(entry));
    const split_work work(args, sequence, 0);
    const auto token =
        (static_cast<std::int32_t>(entry) - work.entry) * static_cast<std::int32_t>(args.page.tokens);
    // Of the last block, only the tiles that hold a token were written.
    const std::int32_t left = work.tokens - token;
    const auto length = static_cast<std::int32_t>(tile_tokens_of(args.page));
    const std::int32_t tiles =
        (left < static_cast<std::int32_t>(args.page.tokens) ? left + length - 1
                                                            : static_cast<std::int32_t>(args.page.tokens)) /
        length;
    const std::uint32_t rows = work.columns * args.page.kv_heads;
    float sum = 0, seen = 0;
    for (std::uint32_t r = lane; r < rows; r += warp_threads) {
      const std::uint32_t kv_head = r / work.columns, column = r % work.columns;
      const float whole = lse[work.row(args, kv_head, column)];
      if (whole == no_logit) continue;
      seen += 1;
      for (std::int32_t t = 0; t < tiles; ++t) {
        const softmax_row part = args.tiles.rows[work.tile_row(args, kv_head, column, token + t * length)];
        if (!part.empty()) sum += part.l * std::exp(part.m - whole);
      }
    }
    TERRACE_DEVICE_UNROLL
    for (std::uint32_t other = 1; other < warp_threads; other *= 2) {
      sum += block.shuffle_xor(sum, other);
      seen += block.shuffle_xor(seen, other);
    }
    if (lane == 0) shares[entry] = seen > 0 ? sum / seen : 0.0f;
  }

 private:
  // The sequence whose entries are around `entry`: the last one that begins at or before it.
  TERRACE_DEVICE std::uint32_t sequence_of(std::int32_t entry) const {
    std::uint32_t low = 0, high = args.table.sequences;
    while (high - low > 1) {
      const std::uint32_t middle = (low + high) / 2;
      if (args.table.indptr[middle] <= entry)
        low = middle;
      else
        high = middle;
    }
    return low;
  }
};

template <std::uint32_t threads>
result<void> block_mass(const attention_args& args, const float* lse, std::uint32_t entries, float* shares,
                        stream_handle stream) noexcept {
  using kernel = block_mass_kernel<threads>;
  if (args.tiles.rows == nullptr || lse == nullptr)
    return fail(errc::invalid_argument,
                "the mass of blocks needs the scalars of their tiles and the rows' lse");
  return launch(kernel{args, lse, entries, shares}, {.x = (entries + kernel::warps - 1) / kernel::warps},
                stream);
}

}  // namespace terrace::cuda
