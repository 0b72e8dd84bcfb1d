#pragma once
#include <cstddef>
#include <cstdint>

#include "terrace/core/element.hpp"
#include "terrace/core/error.hpp"
#include "terrace/cuda/attention.hpp"
#include "terrace/cuda/kernels.hpp"
#include "terrace/cuda/launch.hpp"

// What kernels.cu gives to the host code. It also instantiates attention and its merge, for fp16 and heads of 64 and
// 128.
namespace runner {

/// New keys and values, and where they go: token t of `mapping` is row t of `k` and `v`, [token][kv_head][dim] of fp16
/// in device memory.
struct token_rows {
  const std::byte* k = nullptr;
  const std::byte* v = nullptr;
  const std::int64_t* mapping = nullptr;  ///< of cuda::reserved_slots
  std::byte* pages = nullptr;             ///< cuda::batch::pages()
  std::size_t page_stride = 0;
  terrace::cuda::kv_page page{};
  std::uint32_t tokens = 0;
};
/// Writes them through the slot mapping, as an engine's own kernel would. Enqueues and returns.
terrace::result<void> write_tokens(const token_rows& rows, terrace::cuda::stream_handle stream) noexcept;

/// Terrace's kernels.
terrace::cuda::kernel_set device_kernels() noexcept;

}  // namespace runner
