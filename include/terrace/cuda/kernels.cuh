#pragma once
// Terrace's own kernels as a kernel_set: for one .cu of the program, which gives them to its host code:
//
//     terrace::cuda::kernel_set kernels() { return terrace::cuda::device_kernels(); }
#include <cstddef>
#include <cstdint>

#include "terrace/codec/fp8.hpp"
#include "terrace/codec/q4_0.hpp"
#include "terrace/codec/q8_0.hpp"
#include "terrace/cuda/codecs.cuh"
#include "terrace/cuda/gather.cuh"
#include "terrace/cuda/kernels.hpp"
#include "terrace/cuda/mass.cuh"

namespace terrace::cuda {

/// The runtime's error number of a result.
inline cudaError_t status_of(const result<void>& r) noexcept {
  if (r) return cudaSuccess;
  return r.error().system != 0 ? static_cast<cudaError_t>(r.error().system) : cudaErrorInvalidValue;
}

/// Pointers as kernels take them.
inline block_addresses addresses(const std::byte* const* pointers) noexcept {
  return {.pointers = const_cast<void* const*>(reinterpret_cast<const void* const*>(pointers))};
}

template <element_type T>
result<void> decode_blocks_of(const layer_group& group, std::uint32_t format_id,
                              const block_addresses& encoded, const block_addresses& raw, std::uint32_t count,
                              cudaStream_t stream) noexcept {
  switch (format_id) {
    case q8_0::format_id:
      return decode_blocks<T, block_encoding::q8_0>(group, encoded, raw, count, stream);
    case q4_0::format_id:
      return decode_blocks<T, block_encoding::q4_0>(group, encoded, raw, count, stream);
    case fp8::format_id:
      return decode_blocks<T, block_encoding::fp8>(group, encoded, raw, count, stream);
    default:
      return terrace::fail(errc::invalid_argument, "no kernel decodes blocks of this format");
  }
}

/// The functions of a kernel_set, with names because nvcc does not take lambdas in an aggregate's initialiser.
inline cudaError_t copy_by_kernel(const std::byte* const* from, std::byte* const* to, std::uint32_t count,
                                  std::size_t bytes, cudaStream_t stream) noexcept {
  return status_of(gather(addresses(from), addresses(to), count, bytes, stream));
}
inline cudaError_t decode_by_kernel(const layer_group& group, std::uint32_t format_id,
                                    const std::byte* const* encoded, std::byte* const* raw,
                                    std::uint32_t count, cudaStream_t stream) noexcept {
  const block_addresses from = addresses(encoded), to = addresses(raw);
  switch (group.k.type) {
    case element::fp16:
      return status_of(decode_blocks_of<fp16>(group, format_id, from, to, count, stream));
    case element::bf16:
      return status_of(decode_blocks_of<bf16>(group, format_id, from, to, count, stream));
    case element::fp32:
      return status_of(decode_blocks_of<float>(group, format_id, from, to, count, stream));
    default:
      return cudaErrorInvalidValue;
  }
}

inline cudaError_t mass_by_kernel(const attention_args& args, const float* lse, std::uint32_t entries,
                                  float* shares, cudaStream_t stream) noexcept {
  return status_of(block_mass<128>(args, lse, entries, shares, stream));
}

/// The planes must have one element type of two or four bytes, and dimensions of a multiple of 8. (q8_0 and q4_0 take
/// only multiples of 32 anyway.)
inline bool decodes_by_kernel(const layer_group& group) noexcept {
  const auto fits = [&](const plane& p) {
    return !p.present() || (p.type == group.k.type && p.dim % 8 == 0);
  };
  return size_of(group.k.type) >= 2 && fits(group.k) && fits(group.v);
}

/// Blocks in any codec that attention can read; see decodes_by_kernel.
inline kernel_set device_kernels() noexcept {
  return {.copy = &copy_by_kernel,
          .decode = &decode_by_kernel,
          .decodes = &decodes_by_kernel,
          .mass = &mass_by_kernel};
}

}  // namespace terrace::cuda
