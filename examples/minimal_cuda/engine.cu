#include "engine.hpp"

#include <cuda_fp16.h>

#include <cstring>

#include "terrace/cuda/attention.cuh"
#include "terrace/cuda/kernels.cuh"
#include "terrace/cuda/merge.cuh"

namespace engine {
namespace {

// One thread block for each token: page slot / page_tokens, row slot % page_tokens of each head of K, then of V. A
// token whose sequence was dropped has the slot -1, and nothing of it is kept.
__global__ void project_kernel(new_tokens tokens, std::byte* pages, std::size_t page_stride,
                               __half* queries) {
  const std::uint64_t position = tokens.first_position + blockIdx.x;
  const std::int64_t slot = tokens.mapping[blockIdx.x];
  auto* const k = reinterpret_cast<__half*>(pages + slot / page_tokens * page_stride);
  __half* const v = k + kv_heads * page_tokens * dim;
  const std::uint64_t row = slot % page_tokens;
  for (std::uint32_t i = threadIdx.x; slot >= 0 && i < kv_heads * dim; i += blockDim.x) {
    const std::uint32_t head = i / dim, d = i % dim;
    const std::uint64_t at = (head * page_tokens + row) * dim + d;
    k[at] = __float2half(key_of(position, tokens.layer, head, d));
    v[at] = __float2half(value_of(position, tokens.layer, head, d));
  }
  for (std::uint32_t i = threadIdx.x; i < q_heads * dim; i += blockDim.x)
    queries[blockIdx.x * q_heads * dim + i] =
        __float2half(query_of(position, tokens.layer, i / dim, i % dim));
}

}  // namespace

cudaError_t project(const new_tokens& tokens, std::byte* pages, std::size_t page_stride,
                    terrace::fp16* queries, cudaStream_t stream) {
  project_kernel<<<tokens.count, 128, 0, stream>>>(tokens, pages, page_stride,
                                                   reinterpret_cast<__half*>(queries));
  return cudaGetLastError();
}

terrace::cuda::kernel_set device_kernels() noexcept { return terrace::cuda::device_kernels(); }

}  // namespace engine

// The instances that decode_attention<fp16, dim> calls.
namespace terrace::cuda {
template result<void> attend<fp16, engine::dim>(const attention_args&, stream_handle) noexcept;
template result<void> merge<fp16>(const split_states&, std::uint32_t, std::uint32_t, const row_states&,
                                  const finished_rows<fp16>&, stream_handle, bool) noexcept;
}  // namespace terrace::cuda
