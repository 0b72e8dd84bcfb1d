#pragma once
#include "kernels.hpp"
#include "terrace/cuda/attention.cuh"
#include "terrace/cuda/block_context.hpp"
#include "terrace/cuda/kernels.cuh"
#include "terrace/cuda/merge.cuh"

// The definitions, for one .cu of the program; in a header of their own, so that a test can run them without a
// device.
namespace runner {

struct write_tokens_kernel {
  static constexpr std::uint32_t threads = 128;
  token_rows rows;

  // One thread block for each token, 16 bytes at a time.
  template <class Block>
  TERRACE_DEVICE void operator()(Block& block) const {
    const terrace::cuda::kv_page& page = rows.page;
    const std::size_t token = block.index().x;
    const std::int64_t slot = rows.mapping[token];
    if (slot < 0) return;  // its sequence was dropped
    std::byte* const to = rows.pages + static_cast<std::size_t>(slot / page.tokens) * rows.page_stride;
    const auto row = static_cast<std::size_t>(slot % page.tokens);
    const std::size_t bytes = std::size_t{page.k_dim} * sizeof(terrace::fp16);
    for (std::size_t i = block.thread(); i < page.kv_heads * bytes / 16; i += threads) {
      const std::size_t head = i * 16 / bytes, at = i * 16 % bytes;
      const std::size_t from = (token * page.kv_heads + head) * bytes + at;
      block.store16(to + page.k_offset + head * page.k_head_stride + row * page.k_token_stride + at,
                    block.load16(rows.k + from));
      block.store16(to + page.v_offset + head * page.v_head_stride + row * page.v_token_stride + at,
                    block.load16(rows.v + from));
    }
  }
};

terrace::result<void> write_tokens(const token_rows& rows, terrace::cuda::stream_handle stream) noexcept {
  return terrace::cuda::launch(write_tokens_kernel{rows}, {.x = rows.tokens}, stream);
}

terrace::cuda::kernel_set device_kernels() noexcept { return terrace::cuda::device_kernels(); }

}  // namespace runner
