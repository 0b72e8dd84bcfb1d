#pragma once
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "terrace/core/element.hpp"
#include "terrace/cuda/kernels.hpp"

// Stands for an engine: the shape of its model, and the kernels that engine.cu compiles.
namespace engine {

inline constexpr std::uint32_t layers = 4, q_heads = 8, kv_heads = 2, dim = 64, page_tokens = 64;

/// What the model computes of a token. Multiples of 1/8, so that fp16 has them exactly.
constexpr float key_of(std::uint64_t position, std::uint32_t layer, std::uint32_t head, std::uint32_t d) {
  return (static_cast<float>((position * 31 + layer * 5 + head * 3 + d * 7) % 17) - 8) / 8;
}
constexpr float value_of(std::uint64_t position, std::uint32_t layer, std::uint32_t head, std::uint32_t d) {
  return (static_cast<float>((position * 13 + layer * 3 + head * 5 + d) % 19) - 9) / 8;
}
constexpr float query_of(std::uint64_t position, std::uint32_t layer, std::uint32_t head, std::uint32_t d) {
  return (static_cast<float>((position + layer * 7 + head * 11 + d * 3) % 13) - 6) / 8;
}

/// Tokens that follow one another, and the slots that they were given (cuda::reserved_slots).
struct new_tokens {
  const std::int64_t* mapping = nullptr;  ///< of `layer`, in device memory
  std::uint64_t first_position = 0;
  std::uint32_t count = 0;
  std::uint32_t layer = 0;
};
/// Writes their keys and values into the pages, and their queries, [token][q_head][dim].
cudaError_t project(const new_tokens& tokens, std::byte* pages, std::size_t page_stride,
                    terrace::fp16* queries, cudaStream_t stream);

/// Terrace's kernels, for the batch.
terrace::cuda::kernel_set device_kernels() noexcept;

}  // namespace engine
