#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "terrace/cuda/attention.hpp"
#include "terrace/cuda/attention_plain.cuh"
#include "terrace/cuda/attention_tensor.cuh"
#include "terrace/cuda/launch.hpp"

namespace terrace::cuda {
namespace detail {

// The kernel that takes `Kernel::columns` columns at a time.
template <class Kernel>
result<void> launch_attention(const attention_args& args, std::uint32_t columns,
                              stream_handle stream) noexcept {
  const std::uint32_t chunks = (columns + Kernel::columns - 1) / Kernel::columns;
  const std::uint64_t y = std::uint64_t{chunks} * args.page.kv_heads;
  if (y > 65535 || args.table.sequences > 65535)
    return fail(errc::invalid_argument,
                "attention takes at most 65535 sequences, and queries of KV heads, at once");
  return launch(Kernel{args, chunks},
                {.x = args.out.splits,
                 .y = static_cast<std::uint32_t>(y),
                 .z = args.table.sequences,
                 .shared_bytes = Kernel::shared_bytes},
                stream);
}

// The tensor-core kernels, with rings of `stages` stages.
template <class T, std::uint32_t dim, block_encoding encoding, std::uint32_t stages>
struct tensor_kernels {
  using narrow = attention_tensor_kernel<T, dim, encoding, 1, stages>;
  // A wide one for large dimensions would not fit into the registers.
  using wide = attention_tensor_kernel<T, dim, encoding, dim <= 128 ? 2 : 1, stages>;
  static constexpr std::size_t shared_bytes =
      narrow::shared_bytes < wide::shared_bytes ? wide::shared_bytes : narrow::shared_bytes;

  static result<void> launch(const attention_args& args, std::uint32_t columns,
                             stream_handle stream) noexcept {
    if (columns <= narrow::columns) return launch_attention<narrow>(args, columns, stream);
    return launch_attention<wide>(args, columns, stream);
  }
};

// Whether asynchronous copies of 16 bytes can read the rows of the pages.
constexpr bool fits_tensor_kernel(const kv_page& page, std::size_t stored_row,
                                  block_encoding encoding) noexcept {
  const bool runs = encoding == block_encoding::raw ||
                    (page.k_token_stride == stored_row && page.v_token_stride == stored_row);
  const std::size_t token_strides =
      encoding == block_encoding::raw ? page.k_token_stride | page.v_token_stride : 0;
  const std::size_t steps =
      page.k_offset | page.v_offset | page.k_head_stride | page.v_head_stride | token_strides;
  return page.tokens % 16 == 0 && runs && steps % 16 == 0;
}

inline result<void> validate_attention(const attention_args& args, std::uint32_t dim) noexcept {
  const kv_page& page = args.page;
  if (page.tokens == 0 || page.kv_heads == 0 || args.queries.q_heads == 0 ||
      args.queries.q_heads % page.kv_heads != 0)
    return fail(errc::invalid_argument, "the KV heads must divide the query heads");
  if (page.k_dim != dim || page.v_dim == 0)
    return fail(errc::invalid_argument, "the keys have another dimension than the kernel");
  if (args.split_blocks == 0 || args.queries.most == 0)
    return fail(errc::invalid_argument, "a split has at least one block, and a sequence at least one query");
  if (args.keep.window != 0 && args.queries.first_position == nullptr)
    return fail(errc::invalid_argument, "a window needs the positions of the queries");
  return {};
}

}  // namespace detail

template <element_type T, std::uint32_t dim, block_encoding encoding>
result<void> attend(const attention_args& given, stream_handle stream) noexcept {
  static_assert(sizeof(T) >= 2,
                "queries are fp16, bf16 or fp32; a plane of fp8 elements is the encoding fp8");
  static_assert(sizeof(T) == 2 || encoding == block_encoding::raw, "encoded blocks stand for fp16 or bf16");
  static_assert(dim <= attention_plain_kernel<T, encoding>::most_dim, "head dimensions are at most 576");
  static_assert(encoding == block_encoding::raw || encoding == block_encoding::fp8 || dim % 32 == 0,
                "q8_0 and q4_0 need head dimensions that are multiples of 32");
  if (auto good = detail::validate_attention(given, dim); !good) return good;
  attention_args args = given;
  if (args.scale == 0) args.scale = 1.0f / std::sqrt(static_cast<float>(dim));
  const std::uint32_t columns = args.queries.most * (args.queries.q_heads / args.page.kv_heads);
  if constexpr (sizeof(T) == 2 && dim % 16 == 0 && dim <= 256) {
    constexpr std::uint32_t stages =
        dim > 128 ? (encoding == block_encoding::raw ? 2 : 3) : (dim > 64 ? 3 : 4);
    using deep = detail::tensor_kernels<T, dim, encoding, stages>;
    using shallow = detail::tensor_kernels<T, dim, encoding, 2>;
    if (args.page.v_dim == dim && detail::fits_tensor_kernel(args.page, deep::narrow::stored_row, encoding)) {
      if constexpr (deep::shared_bytes <= least_shared_bytes) {
        return deep::launch(args, columns, stream);
      } else {
        // Devices of compute capability 8.6 and 8.9 have less shared memory for a block than 8.0 and 9.0. What does
        // not fit there at all is left to the plain kernel.
        const std::size_t room = most_shared_bytes();
        if (deep::shared_bytes <= room) return deep::launch(args, columns, stream);
        if constexpr (shallow::shared_bytes <= least_shared_bytes)
          return shallow::launch(args, columns, stream);
      }
    }
  }
  if (args.page.v_dim > attention_plain_kernel<T, encoding>::most_dim)
    return fail(errc::invalid_argument, "attention takes values of at most 576 elements");
  return detail::launch_attention<attention_plain_kernel<T, encoding>>(args, columns, stream);
}

}  // namespace terrace::cuda
