#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "ladder.hpp"
#include "model_config.hpp"
#include "runner_error.hpp"
#include "terrace/core/bytes.hpp"
#include "terrace/core/layout.hpp"

namespace runner {

/// Tokens that are fed by teacher forcing, between the prefill and the decode.
inline constexpr std::uint32_t scored_tokens = 4096;

/// What the command line asks of one run; sizes that were not given are chosen by `plan`.
struct run_request {
  std::string codec = "lossless";
  std::uint32_t context_tokens = 32768;
  std::uint32_t decode_tokens = 64;
  std::optional<std::size_t> hot, warm, cool;
  std::string cool_path;
  std::size_t policy = 0;  ///< index into any_policy::names
  std::string prefetch = "layer_ahead";
  std::uint32_t block_tokens = 256;  ///< at most; equal blocks give equal bits
};

/// A run with every size settled.
struct run_plan {
  std::string codec;
  terrace::kv_layout layout;
  ladder_sizes sizes;
  std::size_t kv_bytes_total = 0;  ///< raw bytes of all KV at the end
  std::uint32_t chunk = 512;       ///< tokens of a prefill chunk
};

/// Bytes that `raw` bytes of fp16 take in the tiers below the hot one.
inline std::size_t stored_bytes(const std::string& codec, std::size_t raw) {
  return codec == "q8" ? raw / 64 * 34 : raw;
}

/// Cuts the KV into blocks and settles the tiers' sizes. A block is at most 128 KiB, and small enough that
/// the hot tier holds many of every layer. Refuses a hot budget below one window plus the open blocks, and
/// tiers that cannot hold the whole context.
inline outcome<run_plan> plan(const run_request& request, const model_config& model) {
  run_plan p;
  p.codec = request.codec;
  const std::uint64_t tokens = std::uint64_t{request.context_tokens} + scored_tokens + request.decode_tokens;
  terrace::layer_group group{.first_layer = 0,
                             .layers = model.num_hidden_layers,
                             .tokens = request.block_tokens,
                             .k = {model.num_key_value_heads, model.head_dim},
                             .v = {model.num_key_value_heads, model.head_dim}};
  p.kv_bytes_total = tokens * group.token_bytes() * group.layers;
  p.sizes.hot = request.hot.value_or(request.codec == "resident" ? 0 : p.kv_bytes_total / 10);

  const auto too_large = [&] {
    return group.block_bytes() > (std::size_t{128} << 10) ||
           p.sizes.hot < 12 * group.layers * group.block_bytes();
  };
  while (group.tokens > 16 && request.codec != "resident" && too_large()) group.tokens /= 2;
  p.layout.groups = {group};

  const std::size_t block = terrace::align_up(group.block_bytes(), terrace::ram::alignment);
  const std::size_t all_blocks = (tokens / group.tokens + 1) * group.layers;
  if (request.codec == "resident") {
    p.sizes.hot = (all_blocks + group.layers * (p.chunk / group.tokens + 2)) * block;
    return p;
  }

  // Open blocks of the smallest chunk (one block of tokens may touch two blocks), one block of a window, and,
  // where a codec works on the way from disk, its staging.
  const std::size_t staging = request.codec == "q8" ? 2 * block : 0;
  const std::size_t least = (2 * group.layers + 1) * block + staging;
  if (p.sizes.hot < least)
    return refuse("a hot tier of " + std::to_string(p.sizes.hot) +
                  " bytes cannot hold one window and the open blocks: " + std::to_string(least) +
                  " bytes suffice");
  // A chunk's new blocks take at most a third of the hot tier.
  while (p.chunk > group.tokens && (p.chunk / group.tokens + 1) * group.layers * block > p.sizes.hot / 3)
    p.chunk /= 2;
  p.chunk = std::max(p.chunk, group.tokens);

  // Every block is written behind, so the lower tiers hold the whole context; about half of what the hot tier
  // does not hold lies in each.
  const std::size_t stored =
      terrace::align_up(stored_bytes(p.codec, group.block_bytes()), terrace::ram::alignment);
  const std::size_t rest = p.kv_bytes_total - std::min(p.kv_bytes_total, p.sizes.hot);
  p.sizes.warm = request.warm.value_or(stored_bytes(p.codec, rest / 2) / stored * stored);
  const std::size_t below_warm =
      all_blocks * stored - std::min(all_blocks * stored, p.sizes.warm / stored * stored);
  p.sizes.cool = request.cool.value_or(below_warm + 4 * group.layers * stored);
  p.sizes.cool_path = request.cool_path;
  if (p.sizes.warm / stored + p.sizes.cool / stored < all_blocks)
    return refuse(
        "the tiers below the hot one cannot hold the context: " + std::to_string(all_blocks * stored) +
        " bytes are needed, " + std::to_string(p.sizes.warm + p.sizes.cool) + " are given");
  return p;
}

}  // namespace runner
