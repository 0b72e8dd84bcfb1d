#pragma once
#include <cstddef>
#include <cstdint>
#include <limits>

#include "terrace/codec/block_encoding.hpp"
#include "terrace/core/config.hpp"
#include "terrace/cuda/attention.hpp"
#include "terrace/cuda/attention_work.hpp"
#include "terrace/cuda/block_context.hpp"
#include "terrace/cuda/decode_octet.cuh"

namespace terrace::cuda {

/// Decode attention on tensor cores. A block of threads does one split of one sequence for the query heads of one KV
/// head: grid (splits, KV heads * column chunks, sequences).
///
/// Each warp works alone on every fourth tile of 16 tokens, with a ring of tiles of its own in shared memory that
/// asynchronous copies fill; there is no barrier of the block before the end, when the four warps' states are merged
/// in order. With tokens as the rows of the first product and queries as its 8 columns, one fragment of keys serves up
/// to 8 query heads, and the products cost the same for 1 as for 8:
///
///     S (16 tokens x 8 queries) = K (16 x dim) * Q^T,   O^T (dim x 8) += V^T (dim x 16) * P
///
/// A ring of `ring_stages` tiles: with more of them more copies are in flight, and fewer blocks of threads fit on an
/// SM.
///
/// Rows in shared memory are 16 bytes longer than they need be. An odd number of 16-byte pieces puts the eight rows of
/// a matrix into different banks, as a swizzle would, for any dim.
template <class T, std::uint32_t dim, block_encoding encoding, std::uint32_t column_tiles,
          std::uint32_t ring_stages>
struct attention_tensor_kernel {
  static_assert(dim % 16 == 0 && sizeof(T) == 2 && ring_stages >= 2);
  static constexpr bool raw = encoding == block_encoding::raw;
  static constexpr std::uint32_t warps = 4;
  static constexpr std::uint32_t threads = warps * warp_threads;
  static constexpr std::uint32_t tile = 16;                   // tokens
  static constexpr std::uint32_t columns = 8 * column_tiles;  // pairs of a query and a head
  static constexpr std::uint32_t row_bytes = dim * 2 + 16;
  static constexpr std::uint32_t tile_bytes = tile * row_bytes;
  static constexpr std::uint32_t stored_row = encoded_bytes(dim * 2, element_of<T>, encoding);
  // In the ring are keys, then values, as they are stored.
  static constexpr std::uint32_t plane_bytes = raw ? tile_bytes : tile * stored_row;
  static constexpr std::uint32_t stages = ring_stages;
  static constexpr std::uint32_t ring_bytes = stages * 2 * plane_bytes;
  static constexpr std::uint32_t warp_bytes = ring_bytes + (raw ? 0 : tile_bytes);
  static constexpr std::size_t merge_bytes = std::size_t{warps} * columns * (dim * 4 + 8);
  static constexpr std::size_t shared_bytes =
      warps * warp_bytes > merge_bytes ? std::size_t{warps} * warp_bytes : merge_bytes;

  attention_args args;  // with its scale resolved
  std::uint32_t chunks;

  template <class Block>
  TERRACE_DEVICE void operator()(Block& block) const {
    const std::uint32_t sequence = block.index().z, split = block.index().x;
    const std::uint32_t kv_head = block.index().y / chunks, first_column = block.index().y % chunks * columns;
    const split_work work(args, sequence, split);
    if (first_column >= work.columns) return;
    state<Block> s(*this, work, block, sequence, kv_head, first_column);
    const tile_range tiles = s.tiles_to_read();
    if (tiles.begin >= tiles.end) return s.write_empty(split);
    s.load_queries();
    s.fold(tiles);
    s.merge_warps(split);
  }

 private:
  // Tiles are numbered within the split.
  struct tile_range {
    std::int32_t begin, end;
  };
  // Per column of this thread: those at 2 * (lane % 4) and the next of each column tile.
  template <class X>
  using per_column = X[column_tiles][2];

  template <class Block>
  struct state {
    const attention_tensor_kernel& kernel;
    const split_work& work;
    Block& block;
    const std::uint32_t sequence, kv_head, first_column;
    const std::uint32_t lane, warp;
    std::byte* const ring;
    per_column<visible_range> sees;
    std::int32_t sees_from = 0, sees_to = 0;  // what any of the chunk's columns sees
    per_column<float> m, l;
    std::uint32_t q[column_tiles][dim / 16][2];
    float o[column_tiles][dim / 16][4];

    TERRACE_DEVICE state(const attention_tensor_kernel& k, const split_work& w, Block& b, std::uint32_t s,
                         std::uint32_t head, std::uint32_t column)
        : kernel(k),
          work(w),
          block(b),
          sequence(s),
          kv_head(head),
          first_column(column),
          lane(b.thread() % warp_threads),
          warp(b.thread() / warp_threads),
          ring(b.shared() + warp * warp_bytes) {
      // Positions ascend with columns: the first column sees the earliest, the last one the latest.
      const std::uint32_t last =
          (work.columns < first_column + columns ? work.columns : first_column + columns) - 1;
      const visible_range earliest = work.visible(kernel.args, sequence, first_column);
      sees_from = earliest.sinks > 0 ? 0 : earliest.begin;
      sees_to = work.visible(kernel.args, sequence, last).end;
    }

    TERRACE_DEVICE std::uint32_t column_of(std::uint32_t n, std::uint32_t c) const {
      return first_column + n * 8 + lane % 4 * 2 + c;
    }
    TERRACE_DEVICE std::int32_t token_of(std::int32_t t) const {
      return work.begin + t * static_cast<std::int32_t>(tile);
    }

    // The tiles that hold a token that some column sees, or all there are if the scalars of each are wanted. Leaving
    // out the others changes no value of the result: their weights are 0.
    TERRACE_DEVICE tile_range tiles_to_read() const {
      std::int32_t from = work.begin < 0 ? 0 : work.begin, to = work.end;
      if (kernel.args.tiles.rows == nullptr) {
        from = from < sees_from ? sees_from : from;
        to = to < sees_to ? to : sees_to;
      }
      if (from >= to) return {0, 0};
      constexpr auto length = static_cast<std::int32_t>(tile);
      return {(from - work.begin) / length, (to - work.begin + length - 1) / length};
    }

    TERRACE_DEVICE void write_empty(std::uint32_t split) const {
      const std::uint32_t column = first_column + block.thread();
      if (block.thread() < columns && column < work.columns)
        kernel.args.out.rows[work.row(kernel.args, kv_head, column) * kernel.args.out.splits + split] = {};
    }

    TERRACE_DEVICE void load_queries() {
      const std::uint32_t g = lane / 4, t = lane % 4 * 2;
      TERRACE_DEVICE_UNROLL
      for (std::uint32_t n = 0; n < column_tiles; ++n) {
        const std::uint32_t column = first_column + n * 8 + g;
        const bool there = column < work.columns;
        const auto* const row = static_cast<const std::byte*>(kernel.args.queries.values) +
                                (there ? work.row(kernel.args, kv_head, column) * dim * 2 : 0);
        TERRACE_DEVICE_UNROLL
        for (std::uint32_t k = 0; k < dim / 16; ++k) {
          TERRACE_DEVICE_UNROLL
          for (std::uint32_t h = 0; h < 2; ++h)
            q[n][k][h] = there ? *reinterpret_cast<const std::uint32_t*>(row + (k * 16 + h * 8 + t) * 2) : 0;
          TERRACE_DEVICE_UNROLL
          for (std::uint32_t j = 0; j < 4; ++j) o[n][k][j] = 0;
        }
        TERRACE_DEVICE_UNROLL
        for (std::uint32_t c = 0; c < 2; ++c) {
          sees[n][c] = work.visible(kernel.args, sequence, column_of(n, c));
          m[n][c] = no_logit;
          l[n][c] = 0;
        }
      }
    }

    TERRACE_DEVICE const std::byte* block_of(std::int32_t t, std::int32_t end) const {
      const auto last = end - 1;
      const std::int32_t token = token_of(t < last ? t : last);
      return kernel.args.table.blocks[static_cast<std::size_t>(work.entry) +
                                      static_cast<std::uint32_t>(token) / kernel.args.page.tokens];
    }

    TERRACE_DEVICE void fold(tile_range tiles) {
      constexpr auto step = static_cast<std::int32_t>(warps);
      std::int32_t next = tiles.begin + (static_cast<std::int32_t>(warp) - tiles.begin % step + step) % step;
      std::int32_t now = next;
      // The address of a block is read one tile ahead of its use: an index in global memory takes as long to come as
      // the keys themselves.
      const std::byte* ahead = block_of(next, tiles.end);
      std::uint32_t fill = 0, use = 0;
      const auto issue = [&] {
        if (next < tiles.end) copy_tile(next, ahead, ring + fill * (2 * plane_bytes));
        block.commit_copies();
        fill = fill + 1 == stages ? 0 : fill + 1;
        next += step;
        ahead = block_of(next, tiles.end);
      };
      TERRACE_DEVICE_UNROLL
      for (std::uint32_t i = 0; i + 1 < stages; ++i) issue();
      for (; now < tiles.end; now += step) {
        block.template wait_copies<static_cast<int>(stages) - 2>();
        block.sync_warp();  // this tile has come, and nobody reads the one before any more
        issue();
        fold_tile(token_of(now), ring + use * (2 * plane_bytes));
        use = use + 1 == stages ? 0 : use + 1;
      }
    }

    // Tokens beyond the last one become zeros: what lies there may be NaN.
    TERRACE_DEVICE void copy_tile(std::int32_t t, const std::byte* from, std::byte* to) const {
      const kv_page& page = kernel.args.page;
      const std::int32_t token = token_of(t);
      const auto in_block = static_cast<std::size_t>(static_cast<std::uint32_t>(token) % page.tokens);
      const std::int32_t left = work.end - token;
      const std::uint32_t rows =
          left < static_cast<std::int32_t>(tile) ? static_cast<std::uint32_t>(left) : tile;
      copy_plane(from + page.k_offset + kv_head * page.k_head_stride + in_block * page.k_token_stride,
                 page.k_token_stride, rows, to);
      copy_plane(from + page.v_offset + kv_head * page.v_head_stride + in_block * page.v_token_stride,
                 page.v_token_stride, rows, to + plane_bytes);
    }
    TERRACE_DEVICE void copy_plane(const std::byte* from, std::size_t stride, std::uint32_t rows,
                                   std::byte* to) const {
      if constexpr (raw) {
        constexpr std::uint32_t pieces = dim / 8;  // of a row
        TERRACE_DEVICE_UNROLL
        for (std::uint32_t i = 0; i < tile * pieces / warp_threads; ++i) {
          const std::uint32_t at = i * warp_threads + lane, row = at / pieces, piece = at % pieces;
          block.copy_async16(to + row * row_bytes + piece * 16, from + row * stride + piece * 16,
                             row < rows ? 16 : 0);
        }
      } else {
        const std::uint32_t bytes = rows * stored_row;  // rows follow one another
        TERRACE_DEVICE_UNROLL
        for (std::uint32_t at = lane * 16; at < plane_bytes; at += warp_threads * 16) {
          const std::uint32_t left = at < bytes ? bytes - at : 0;
          block.copy_async16(to + at, from + at, left < 16 ? left : 16);
        }
      }
    }
    // The tile in the layout that the fragments are loaded from.
    TERRACE_DEVICE const std::byte* decoded(const std::byte* stored) const {
      if constexpr (raw) {
        return stored;
      } else {
        std::byte* const to = ring + ring_bytes;
        constexpr std::uint32_t octets = dim / 8;  // of a row
        block.sync_warp();                         // nobody reads the tile before any more
        TERRACE_DEVICE_UNROLL
        for (std::uint32_t i = 0; i < tile * octets / warp_threads; ++i) {
          const std::uint32_t at = i * warp_threads + lane, row = at / octets, octet = at % octets;
          block.store_shared16(to + row * row_bytes + octet * 16,
                               decode_octet_as<T, encoding>(block, stored + row * stored_row, octet));
        }
        block.sync_warp();
        return to;
      }
    }

    TERRACE_DEVICE void fold_tile(std::int32_t token, const std::byte* stored) {
      float s[column_tiles][4] = {};
      const std::byte* const keys = decoded(stored);
      TERRACE_DEVICE_UNROLL
      for (std::uint32_t k = 0; k < dim / 16; ++k) {
        std::uint32_t a[4];
        block.load_matrix(a, keys + lane % 16 * row_bytes + k * 32 + lane / 16 * 16);
        TERRACE_DEVICE_UNROLL
        for (std::uint32_t n = 0; n < column_tiles; ++n) block.template multiply_add<T>(s[n], a, q[n][k]);
      }
      std::uint32_t p[column_tiles][2];
      TERRACE_DEVICE_UNROLL
      for (std::uint32_t n = 0; n < column_tiles; ++n) softmax(token, n, s[n], p[n]);
      const std::byte* const values = decoded(stored + plane_bytes);
      TERRACE_DEVICE_UNROLL
      for (std::uint32_t d = 0; d < dim / 16; ++d) {
        std::uint32_t a[4];
        block.load_matrix_transposed(
            a, values + (lane % 8 + lane / 16 * 8) * row_bytes + d * 32 + lane / 8 % 2 * 16);
        TERRACE_DEVICE_UNROLL
        for (std::uint32_t n = 0; n < column_tiles; ++n) block.template multiply_add<T>(o[n][d], a, p[n]);
      }
    }

    // Logits of 16 tokens and 8 columns become weights relative to the new m, as the right operand of the second
    // product; l and o are brought to the new m.
    TERRACE_DEVICE void softmax(std::int32_t token, std::uint32_t n, float (&s)[4], std::uint32_t (&p)[2]) {
      float alpha[2];
      TERRACE_DEVICE_UNROLL
      for (std::uint32_t c = 0; c < 2; ++c) {
        TERRACE_DEVICE_UNROLL
        for (std::uint32_t j = 0; j < 4; j += 2) {
          const std::int32_t at = token + static_cast<std::int32_t>(lane / 4 + j * 4);
          const float x = s[j + c] * kernel.args.scale;
          constexpr float most = std::numeric_limits<float>::max();
          s[j + c] = !sees[n][c].contains(at) ? no_logit : x > most ? most : x;
        }
        float largest = greater(s[c], s[2 + c]);
        TERRACE_DEVICE_UNROLL
        for (std::uint32_t other = 4; other < warp_threads; other *= 2)
          largest = greater(largest, block.shuffle_xor(largest, other));
        const float before = m[n][c];
        m[n][c] = greater(before, largest);
        const float base = m[n][c] == no_logit ? 0.0f : m[n][c];  // nothing seen so far: all weights are 0
        alpha[c] = block.exp(before - base);
        s[c] = block.exp(s[c] - base);
        s[2 + c] = block.exp(s[2 + c] - base);
        const float sum = s[c] + s[2 + c];  // of this thread's tokens; the lanes' sums meet at the end
        l[n][c] = l[n][c] * alpha[c] + sum;
        if (kernel.args.tiles.rows != nullptr) write_tile(token, n, c, sum);
      }
      TERRACE_DEVICE_UNROLL
      for (std::uint32_t d = 0; d < dim / 16; ++d) {
        TERRACE_DEVICE_UNROLL
        for (std::uint32_t j = 0; j < 4; ++j) o[n][d][j] *= alpha[j % 2];
      }
      p[0] = block.transpose_matrix(block.template pack<T>(s[0], s[1]));
      p[1] = block.transpose_matrix(block.template pack<T>(s[2], s[3]));
    }
    // Does not let a NaN through: it is in l, and that is enough.
    TERRACE_DEVICE static float greater(float a, float b) { return a < b ? b : a; }

    TERRACE_DEVICE float sum_of_lanes(float x) const {
      TERRACE_DEVICE_UNROLL
      for (std::uint32_t other = 4; other < warp_threads; other *= 2) x += block.shuffle_xor(x, other);
      return x;
    }
    TERRACE_DEVICE void write_tile(std::int32_t token, std::uint32_t n, std::uint32_t c, float sum) const {
      sum = sum_of_lanes(sum);
      const std::uint32_t column = column_of(n, c);
      if (lane < 4 && column < work.columns)
        kernel.args.tiles.rows[work.tile_row(kernel.args, kv_head, column, token)] = {m[n][c], sum};
    }

    // The states of the four warps in their order.
    TERRACE_DEVICE void merge_warps(std::uint32_t split) {
      auto* const outputs = reinterpret_cast<float*>(block.shared());  // [warp][column][dim]
      auto* const scalars =
          reinterpret_cast<softmax_row*>(outputs + warps * columns * dim);  // [warp][column]
      block.sync();                                                         // nobody needs the rings any more
      const std::uint32_t g = lane / 4, t = lane % 4 * 2;
      TERRACE_DEVICE_UNROLL
      for (std::uint32_t n = 0; n < column_tiles; ++n) {
        TERRACE_DEVICE_UNROLL
        for (std::uint32_t c = 0; c < 2; ++c) {
          const float sum = sum_of_lanes(l[n][c]);
          if (g == 0) scalars[warp * columns + n * 8 + t + c] = {m[n][c], sum};
        }
        TERRACE_DEVICE_UNROLL
        for (std::uint32_t d = 0; d < dim / 16; ++d) {
          TERRACE_DEVICE_UNROLL
          for (std::uint32_t j = 0; j < 4; ++j)
            outputs[(warp * columns + n * 8 + t + j % 2) * dim + d * 16 + g + j / 2 * 8] = o[n][d][j];
        }
      }
      block.sync();
      for (std::uint32_t at = block.thread(); at < columns * dim; at += threads) {
        const std::uint32_t c = at / dim, d = at % dim;
        if (first_column + c >= work.columns) break;
        softmax_row row = scalars[c];
        float out = outputs[at];
        TERRACE_DEVICE_UNROLL
        for (std::uint32_t w = 1; w < warps; ++w) {
          const merged_row both = merge(row, scalars[w * columns + c]);
          out = merge_output(both, out, outputs[w * columns * dim + at]);
          row = both.row;
        }
        const std::size_t r =
            work.row(kernel.args, kv_head, first_column + c) * kernel.args.out.splits + split;
        kernel.args.out.o[r * dim + d] = out;
        if (d == 0) kernel.args.out.rows[r] = row;
      }
    }
  };
};

}  // namespace terrace::cuda
