#pragma once
#include <cstddef>
#include <cstdint>
#include <limits>

#include "terrace/codec/block_encoding.hpp"
#include "terrace/core/config.hpp"
#include "terrace/cuda/attention.hpp"
#include "terrace/cuda/attention_work.hpp"
#include "terrace/cuda/block_context.hpp"

namespace terrace::cuda {

/// Element `i` of a row of T stored in `encoding`, as a float. The row is aligned as its elements are; encoded, to 2.
template <class T, block_encoding encoding, class Block>
TERRACE_DEVICE inline float stored_element(Block& block, const std::byte* row, std::uint32_t i) {
  const auto byte_at = [&](std::uint32_t at) { return static_cast<std::uint8_t>(row[at]); };
  if constexpr (encoding == block_encoding::raw) {
    const T x = *reinterpret_cast<const T*>(row + i * sizeof(T));
    if constexpr (sizeof(T) == 2)
      return block.to_float(x);
    else
      return to_float(x);
  } else if constexpr (encoding == block_encoding::fp8) {
    return to_float(fp8_e4m3{byte_at(i)});
  } else {
    // One rounding, to T: see cuda/decode_octet.cuh.
    constexpr bool wide = encoding == block_encoding::q8_0;
    const std::uint32_t group = i / 32 * (wide ? 34u : 18u), in_group = i % 32;
    const float scale = block.to_float(fp16{*reinterpret_cast<const std::uint16_t*>(row + group)});
    float code = 0;
    if constexpr (wide)
      code = static_cast<float>(static_cast<std::int8_t>(byte_at(group + 2 + in_group)));
    else
      code = static_cast<float>((byte_at(group + 2 + in_group % 16) >> (in_group / 16 * 4) & 15) - 8);
    if constexpr (sizeof(T) == 2)
      return block.to_float(T{static_cast<std::uint16_t>(block.template pack<T>(code * scale, 0.0f))});
    else
      return code * scale;
  }
}

/// Decode attention without tensor cores, for whatever the other kernel does not take: a warp does one column, token
/// after token, with its lanes along the dimension. Grid (splits, KV heads * column chunks, sequences).
template <class T, block_encoding encoding>
struct attention_plain_kernel {
  static constexpr std::uint32_t columns = 4;  // one per warp
  static constexpr std::uint32_t threads = columns * warp_threads;
  static constexpr std::uint32_t most_dim = 576;
  static constexpr std::uint32_t pieces = most_dim / warp_threads;
  static constexpr std::size_t shared_bytes = 0;

  attention_args args;  // with its scale resolved
  std::uint32_t chunks;

  template <class Block>
  TERRACE_DEVICE void operator()(Block& block) const {
    const std::uint32_t sequence = block.index().z, split = block.index().x,
                        lane = block.thread() % warp_threads;
    const std::uint32_t kv_head = block.index().y / chunks;
    const std::uint32_t column = block.index().y % chunks * columns + block.thread() / warp_threads;
    const split_work work(args, sequence, split);
    if (column >= work.columns) return;  // the whole warp
    const kv_page& page = args.page;
    const std::size_t row = work.row(args, kv_head, column);
    const auto* const query =
        static_cast<const std::byte*>(args.queries.values) + row * page.k_dim * sizeof(T);
    float q[pieces], o[pieces];
    TERRACE_DEVICE_UNROLL
    for (std::uint32_t i = 0; i < pieces; ++i) {
      const std::uint32_t d = i * warp_threads + lane;
      q[i] = d < page.k_dim ? stored_element<T, block_encoding::raw>(block, query, d) : 0.0f;
      o[i] = 0;
    }
    const visible_range sees = work.visible(args, sequence, column);
    const auto tile = static_cast<std::int32_t>(tile_tokens_of(page));
    softmax_row state, in_tile;
    for (std::int32_t token = work.begin < 0 ? 0 : work.begin; token < work.end; ++token) {
      const std::byte* const from =
          args.table
              .blocks[static_cast<std::size_t>(work.entry) + static_cast<std::uint32_t>(token) / page.tokens];
      const std::size_t in_block = static_cast<std::uint32_t>(token) % page.tokens;
      if (sees.contains(token)) {
        const std::byte* const key =
            from + page.k_offset + kv_head * page.k_head_stride + in_block * page.k_token_stride;
        const std::byte* const value =
            from + page.v_offset + kv_head * page.v_head_stride + in_block * page.v_token_stride;
        const float s = logit(block, q, key, lane);
        const softmax_row before = state;
        if (before.m < s) state.m = s;
        const float base = state.m == no_logit ? 0.0f : state.m;
        const float alpha = block.exp(before.m - base), p = block.exp(s - base);
        state.l = before.l * alpha + p;
        in_tile = {state.m, in_tile.l * alpha + p};
        TERRACE_DEVICE_UNROLL
        for (std::uint32_t i = 0; i < pieces; ++i) {
          const std::uint32_t d = i * warp_threads + lane;
          if (d < page.v_dim) o[i] = o[i] * alpha + p * stored_element<T, encoding>(block, value, d);
        }
      }
      if (args.tiles.rows != nullptr && (token + 1 == work.end || (token + 1) % tile == 0)) {
        if (lane == 0) args.tiles.rows[work.tile_row(args, kv_head, column, token)] = in_tile;
        in_tile = {};
      }
    }
    const std::size_t out = row * args.out.splits + split;
    if (lane == 0) args.out.rows[out] = state;
    if (state.empty()) return;
    TERRACE_DEVICE_UNROLL
    for (std::uint32_t i = 0; i < pieces; ++i) {
      const std::uint32_t d = i * warp_threads + lane;
      if (d < page.v_dim) args.out.o[out * page.v_dim + d] = o[i];
    }
  }

 private:
  template <class Block>
  TERRACE_DEVICE float logit(Block& block, const float (&q)[pieces], const std::byte* key,
                             std::uint32_t lane) const {
    float sum = 0;
    TERRACE_DEVICE_UNROLL
    for (std::uint32_t i = 0; i < pieces; ++i) {
      const std::uint32_t d = i * warp_threads + lane;
      if (d < args.page.k_dim) sum += q[i] * stored_element<T, encoding>(block, key, d);
    }
    TERRACE_DEVICE_UNROLL
    for (std::uint32_t other = 1; other < warp_threads; other *= 2) sum += block.shuffle_xor(sum, other);
    const float x = sum * args.scale;
    constexpr float most = std::numeric_limits<float>::max();
    return x > most ? most : x;
  }
};

}  // namespace terrace::cuda
