#pragma once
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "attend_mode.hpp"
#include "ladder_types.hpp"
#include "runner_error.hpp"
#include "terrace/core/bytes.hpp"
#include "terrace/core/layout.hpp"
#include "terrace/observe/trace_log.hpp"

namespace runner {

/// What the user gives the tiers: capacities in bytes, 0 leaves a tier out.
struct ladder_sizes {
  std::size_t hot = 0, warm = 0, cool = 0, cold = 0;
  std::string cool_path, cold_path;
};

/// The KV of one token of a model: fp16, as all that the runner keeps.
struct kv_shape {
  std::uint32_t layers = 0, kv_heads = 0, head_dim = 0;
};

/// What the command line asks of one run; sizes that were not given are chosen by `plan`.
struct run_request {
  std::string codec = "lossless";  ///< or "resident": everything in tier 0
  std::uint32_t context_tokens = 32768;
  std::uint32_t scored_tokens = 0;  ///< fed by teacher forcing, between the prefill and the decode
  std::uint32_t decode_tokens = 64;
  std::uint32_t batch = 1;  ///< sequences that share the context and decode on their own
  std::optional<std::size_t> hot, warm, cool, cold;
  std::string cool_path, cold_path;
  std::size_t policy = 0;  ///< index into any_policy::names
  std::string prefetch = "layer_ahead";
  attend_mode attend;                                ///< which blocks decoding reads; a prefill reads all
  terrace::trace_log* trace = nullptr;               ///< where the decode is recorded
  double inject = 0;                                 ///< share of the stored copies to make unreadable
  bool control = false;                              ///< also score with the far context hidden
  std::uint32_t block_tokens = 256;                  ///< at most; equal blocks give equal bits
  std::size_t block_bytes = std::size_t{128} << 10;  ///< likewise
  bool on_device = false;                            ///< the hot tier is in a CUDA device's memory
  std::uint32_t split_tokens = 256;                  ///< of a split of attention there; likewise
};

/// A run with every size settled.
struct run_plan {
  std::string codec;
  terrace::kv_layout layout;
  ladder_sizes sizes;
  std::size_t kv_bytes_total = 0;  ///< raw bytes of all KV at the end
  std::uint32_t chunk = 512;       ///< tokens of a prefill chunk
  // On a device:
  std::uint32_t split_tokens = 256;  ///< of a split of attention: whole blocks
  std::size_t window_bytes = 0;      ///< raw bytes of each of a batch's windows: at least a split
};

namespace detail {

/// Bytes as people write them, so that they can be given back to an option: the next MiB where that is a
/// good approximation, else the next KiB.
inline std::string size_text(std::size_t bytes) {
  const std::size_t unit = bytes >= (std::size_t{64} << 20) ? std::size_t{1} << 20 : std::size_t{1} << 10;
  return std::to_string((bytes + unit - 1) / unit) + (unit == 1024 ? "KiB" : "MiB");
}

// Settles the sizes of the tiers below the hot one. Refuses sizes that cannot hold the whole context: every block is
// written behind.
inline outcome<bool> settle_lower_tiers(const run_request& request, const ladder_codecs& codecs,
                                        std::size_t all_blocks, run_plan& p) {
  const terrace::layer_group& group = p.layout.groups[0];
  const auto [warm_block, cool_block, cold_block] =
      std::array{codecs.stored[0](group), codecs.stored[1](group), codecs.stored[2](group)};
  // Blocks on their way from one tier to the next take room in both.
  const std::size_t moving = 4 * group.layers + 16;

  const std::size_t hot_blocks = p.sizes.hot / group.block_bytes();
  const std::size_t rest = all_blocks - std::min(all_blocks, hot_blocks);
  p.sizes.warm = request.warm.value_or(rest / 2 * warm_block);
  std::size_t below = all_blocks - std::min(all_blocks, p.sizes.warm / warm_block);
  const bool cold_alone = !request.cold && !request.cold_path.empty();
  p.sizes.cold = request.cold.value_or(cold_alone ? (below / 2 + moving) * cold_block : 0);
  const std::size_t cold_blocks = p.sizes.cold / cold_block;
  const std::size_t cool_default = (below - std::min(below, cold_blocks) + moving) * cool_block;
  p.sizes.cool = request.cool.value_or(cool_default);
  p.sizes.cool_path = request.cool_path;
  p.sizes.cold_path = request.cold_path;
  if (p.sizes.warm / warm_block + p.sizes.cool / cool_block + cold_blocks < all_blocks)
    return refuse("the tiers below the hot one cannot hold the context: " + std::to_string(all_blocks) +
                  " blocks are to be stored, of at most " + size_text(warm_block) + " (warm), " +
                  size_text(cool_block) + " (cool) and " + size_text(cold_block) + " (cold), and " +
                  size_text(p.sizes.warm) + ", " + size_text(p.sizes.cool) + " and " +
                  size_text(p.sizes.cold) + " are given");
  return true;
}

// Decides where attention on a device is cut, and how much of the hot tier is lent to its windows. `spare` is what
// the hot tier has beyond everything else that must be there: three windows, with blocks in them both raw and as they
// are stored, take at most all of it. Windows hold whole splits, so that the bits do not depend on what lies where;
// with 256 tokens each there are enough splits to fill a device.
inline void settle_windows(const run_request& request, std::size_t spare, run_plan& p) {
  const terrace::layer_group& group = p.layout.groups[0];
  const std::size_t share = std::min({std::size_t{32} << 20, p.sizes.hot / 16, spare / 6});
  p.window_bytes = std::max(group.block_bytes(), share);
  p.split_tokens = std::max(group.tokens, request.split_tokens);
  while (p.split_tokens > group.tokens && p.split_tokens * group.token_bytes() > p.window_bytes)
    p.split_tokens /= 2;
}

}  // namespace detail

/// Cuts the KV into blocks and settles the tiers' sizes. A block has at most request.block_bytes, and is
/// small enough that the hot tier holds many of every layer. Refuses a hot budget below one window plus the
/// open blocks, and tiers that cannot hold the whole context.
inline outcome<run_plan> plan(const run_request& request, const kv_shape& shape) {
  run_plan p;
  p.codec = request.codec;
  const bool resident = request.codec == "resident";
  terrace::layer_group group{.first_layer = 0,
                             .layers = shape.layers,
                             .tokens = request.block_tokens,
                             .k = {shape.kv_heads, shape.head_dim},
                             .v = {shape.kv_heads, shape.head_dim}};
  if (shape.head_dim % 16 != 0)
    return refuse("the head dimension is " + std::to_string(shape.head_dim) + ", not a multiple of 16");
  const std::uint64_t shared = std::uint64_t{request.context_tokens} + request.scored_tokens;
  const std::uint64_t tokens = shared + std::uint64_t{request.batch} * request.decode_tokens;
  p.kv_bytes_total = tokens * group.token_bytes() * group.layers;
  p.sizes.hot = request.hot.value_or(resident ? 0 : p.kv_bytes_total / 10);

  const auto too_large = [&] {
    return group.block_bytes() > request.block_bytes || p.sizes.hot < 12 * group.layers * group.block_bytes();
  };
  while (group.tokens > 16 && !resident && too_large()) group.tokens /= 2;
  p.layout.groups = {group};

  // The context is stored once; what each sequence decodes is in blocks of its own.
  const std::size_t block = terrace::align_up(group.block_bytes(), terrace::ram::alignment);
  const std::size_t own = request.decode_tokens / group.tokens + 1;
  const std::size_t all_blocks = (shared / group.tokens + request.batch * own) * group.layers;
  if (resident) {
    p.sizes.hot = (all_blocks + group.layers * (2 * (p.chunk / group.tokens) + 4)) * block;
    p.split_tokens = std::max(group.tokens, request.split_tokens);
    p.window_bytes = block;  // which nothing comes through
    return p;
  }

  // Open blocks (one block of tokens may touch two of them), one block of a window, and the staging that the
  // codecs cannot do without.
  const ladder_codecs* const codecs = find_ladder(request.codec);
  if (codecs == nullptr) return refuse("--codec knows lossless, q8 and q4, not " + in_quotes(request.codec));
  if (auto good = codecs->supports(group); !good)
    return refuse("--codec " + request.codec + " cannot be used for this model: " + good.error().text);
  const std::size_t staging = codecs->staging_buffers * codecs->staging_bytes(group);
  const std::size_t open_blocks = std::max<std::size_t>(2, request.batch) * group.layers;
  const std::size_t anew = request.inject > 0 ? group.layers + 1 : 0;  // blocks that are computed anew
  const std::size_t windows = request.on_device ? 3 * (block + codecs->stored[0](group)) : 0;
  const std::size_t least = (open_blocks + 1 + anew) * block + staging + windows;
  if (p.sizes.hot < least)
    return refuse("--hot " + detail::size_text(p.sizes.hot) +
                  " cannot hold one window and the open blocks: " + detail::size_text(least) + " suffice");
  // A chunk's new blocks take at most a third of the hot tier.
  while (p.chunk > group.tokens && (p.chunk / group.tokens + 1) * group.layers * block > p.sizes.hot / 3)
    p.chunk /= 2;
  p.chunk = std::max(p.chunk, group.tokens);
  if (request.on_device) detail::settle_windows(request, p.sizes.hot - (least - windows), p);
  if (auto settled = detail::settle_lower_tiers(request, *codecs, all_blocks, p); !settled)
    return refuse(settled.error());
  return p;
}

}  // namespace runner
