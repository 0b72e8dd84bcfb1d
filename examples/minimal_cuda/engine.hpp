#pragma once
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "terrace/core/element.hpp"
#include "terrace/cuda/kernels.hpp"

// Stands in for an engine: the shape of its model, and the kernels that engine.cu compiles.
namespace engine {

inline constexpr std::uint32_t layers = 4, q_heads = 8, kv_heads = 2, dim = 64, page_tokens = 64;

/// A number between -1 and 1 that depends only on its arguments: a multiple of 1/8, which fp16 represents exactly.
constexpr float noise(std::uint64_t kind, std::uint64_t position, std::uint32_t layer, std::uint32_t head,
                      std::uint32_t d) {
  std::uint64_t x = ((position * layers + layer) * q_heads + head) * 3 * dim + kind * dim + d;
  x = (x + 1) * 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 32)) * 0xd6e8feb86659fd93u;
  return (static_cast<float>((x >> 32) % 17) - 8) / 8;
}
/// What the model computes for a token. Each query looks for one earlier token: it is four times that token's key, so
/// attention that read another block would be far off.
constexpr float key_of(std::uint64_t position, std::uint32_t layer, std::uint32_t head, std::uint32_t d) {
  return noise(0, position, layer, head, d);
}
constexpr float value_of(std::uint64_t position, std::uint32_t layer, std::uint32_t head, std::uint32_t d) {
  return noise(1, position, layer, head, d);
}
constexpr float query_of(std::uint64_t position, std::uint32_t layer, std::uint32_t head, std::uint32_t d) {
  return 4 * key_of((head * 1031 + layer * 307) % (position + 1), layer, head / (q_heads / kv_heads), d);
}

/// Consecutive tokens, and the slots that they were given (cuda::reserved_slots).
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
