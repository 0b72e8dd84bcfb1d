#pragma once
#include <cstddef>
#include <cstdint>

#include "terrace/attention/softmax_row.hpp"
#include "terrace/codec/block_encoding.hpp"
#include "terrace/core/element.hpp"
#include "terrace/core/error.hpp"
#include "terrace/core/layout.hpp"
#include "terrace/cuda/block_addresses.hpp"
#include "terrace/cuda/launch.hpp"

namespace terrace::cuda {

/// Where one layer's keys and values stand in a block, in bytes as they are stored.
struct kv_page {
  std::uint32_t tokens = 0;  ///< of a block
  std::uint32_t kv_heads = 0;
  std::uint32_t k_dim = 0, v_dim = 0;
  std::size_t k_offset = 0, v_offset = 0;  ///< of head 0, token 0
  std::size_t k_head_stride = 0, v_head_stride = 0;
  std::size_t k_token_stride = 0, v_token_stride = 0;
};

/// The page of a block of `group`: its layer number `layer` of the block, stored in `encoding`.
constexpr kv_page page_of(const layer_group& group, std::uint32_t layer = 0,
                          block_encoding encoding = block_encoding::raw) noexcept {
  const bool own_values = group.v.present();
  const plane& v = own_values ? group.v : group.k;
  const auto k_stored = [&](std::size_t raw) { return encoded_bytes(raw, group.k.type, encoding); };
  const auto v_stored = [&](std::size_t raw) { return encoded_bytes(raw, v.type, encoding); };
  const std::size_t k_plane = k_stored(group.plane_bytes(group.k));
  const std::size_t first = layer * (k_plane + (own_values ? v_stored(group.plane_bytes(v)) : 0));
  return {.tokens = group.tokens,
          .kv_heads = group.k.heads,
          .k_dim = group.k.dim,
          .v_dim = group.v_dim(),
          .k_offset = first,
          .v_offset = first + (own_values ? k_plane : 0),
          .k_head_stride = k_stored(group.head_stride(group.k)),
          .v_head_stride = v_stored(group.head_stride(v)),
          .k_token_stride = k_stored(group.token_stride(group.k)),
          .v_token_stride = v_stored(group.token_stride(v))};
}

/// The blocks of a ragged set of sequences, in ascending order of position and without a gap: entries
/// indptr[s] to indptr[s + 1] of `blocks` are those of sequence s. Arrays are in memory that the device reads.
struct block_table {
  block_addresses blocks;                       ///< aligned to 16 bytes each
  const std::int32_t* indptr = nullptr;         ///< [sequences + 1]
  const std::int32_t* last_page_len = nullptr;  ///< [sequences], valid tokens of the last block, at least 1
  const std::int64_t* first_position =
      nullptr;  ///< [sequences], of the first entry's first token, a multiple of
                ///< page.tokens; null: 0
  std::uint32_t sequences = 0;
};

/// The queries, [query][q_head][dim], those of one sequence next to one another and at consecutive positions.
struct query_rows {
  const void* values = nullptr;          ///< aligned to 16 bytes, elements of the kernel's type
  const std::int32_t* indptr = nullptr;  ///< [sequences + 1], queries; null: one for each sequence
  const std::int64_t* first_position =
      nullptr;  ///< [sequences], of a sequence's first query; null: each query sees
                ///< all tokens of its sequence
  std::uint32_t q_heads = 0;
  std::uint32_t most = 1;  ///< at least the largest number of queries of any sequence
};

/// Partial states, to be merged in the order of their splits (cuda/merge.hpp). Row r is query r / q_heads,
/// head r % q_heads; its split s has the scalars `rows[r * splits + s]`, and v_dim floats of unnormalised output
/// from `o + (r * splits + s) * v_dim` on. If the scalars are empty the output is not written.
struct split_states {
  softmax_row* rows = nullptr;
  float* o = nullptr;
  std::uint32_t splits = 0;
};

/// The scalars of each tile of keys: those of entry e of the block table, tile t of its block, query q of the
/// sequence and head h are `rows[((e * tiles_of(page) + t) * queries.most + q) * q_heads + h]`. cuda/mass.hpp turns
/// them into shares of the softmax mass.
struct tile_scalars {
  softmax_row* rows = nullptr;  ///< null: not wanted
};
/// Tokens of a tile.
constexpr std::uint32_t tile_tokens_of(const kv_page& page) noexcept {
  return page.tokens % 16 == 0 ? 16 : page.tokens;
}
/// Tiles of a block.
constexpr std::uint32_t tiles_of(const kv_page& page) noexcept { return page.tokens / tile_tokens_of(page); }

/// What `attend` is asked for.
struct attention_args {
  kv_page page{};
  block_table table{};
  query_rows queries{};
  split_states out{};
  tile_scalars tiles{};
  float scale = 0;  ///< of the logits; 0 stands for 1 / sqrt(k_dim)
  retention keep =
      {};  ///< which keys a query may look at besides being no younger than it; needs query positions
  std::uint32_t split_blocks = 8;  ///< blocks of a split
};

/// Splits that tables of at most `blocks` blocks have, wherever they begin.
constexpr std::uint32_t splits_for(std::uint32_t blocks, std::uint32_t split_blocks) noexcept {
  return blocks == 0 ? 0 : (blocks + split_blocks - 2) / split_blocks + 1;
}
/// The same for tables that begin at a multiple of split_blocks.
constexpr std::uint32_t aligned_splits_for(std::uint32_t blocks, std::uint32_t split_blocks) noexcept {
  return (blocks + split_blocks - 1) / split_blocks;
}

/// Attention of each query to its sequence's keys, cut into splits: a partial state for each query, head and split.
///
/// T is the type of the queries and of the raw keys and values, `dim` the dimension of both. Query head h reads KV
/// head h / (q_heads / kv_heads), and the query heads of a KV head share each tile of it that is read. A query sees
/// what `visible_tokens` says (attention/visible_tokens.hpp).
///
/// **Splits are cut by position**: split s of a sequence has the blocks whose number, position / page.tokens, divided
/// by split_blocks is s more than that of its first block. A row of a split is a function of its query and of the
/// keys, values and positions in the split: not of the batch, of the other queries, nor of the number of splits. So
/// windows that begin and end between splits give the bits that one table gives.
///
/// What lies behind a sequence's last token may be anything. A NaN in a value that some query of a sequence sees may
/// reach each query of it; in a key it reaches the queries that see it. Logits are at most FLT_MAX.
///
/// Tensor cores do the work for 16-bit types, dim a multiple of 16 up to 256, blocks of a multiple of 16 tokens and
/// strides of a multiple of 16 bytes; encoded blocks also need the page order hnd. A plain kernel does the rest: any
/// dim up to 576, any strides.
///
/// Enqueues and returns. Preconditions: out.splits covers the longest sequence; entries are aligned. Errors:
/// invalid_argument with what is wrong; those of `launch`. O(queries * group * tokens * dim).
/// Defined in cuda/attention.cuh; some .cu of the program says
/// `template terrace::result<void> terrace::cuda::attend<fp16, 128>(...)`.
/// Source: FlashAttention-2, algorithm 1; Flash-Decoding for the splits.
template <element_type T, std::uint32_t dim, block_encoding encoding = block_encoding::raw>
result<void> attend(const attention_args& args, stream_handle stream) noexcept;

}  // namespace terrace::cuda
