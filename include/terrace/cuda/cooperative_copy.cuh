#pragma once
#include <cstddef>
#include <cstdint>

#include "terrace/core/config.hpp"
#include "terrace/cuda/block_context.hpp"

namespace terrace::cuda {

/// Whether both addresses are multiples of `alignment`.
TERRACE_HD inline bool aligned_to(const void* a, const void* b, std::size_t alignment) noexcept {
  return (reinterpret_cast<std::uintptr_t>(a) | reinterpret_cast<std::uintptr_t>(b)) % alignment == 0;
}

/// The threads of a block copy the elements of U that lie wholly in [begin, end) of a run of bytes.
template <class U, std::uint32_t threads, class Block>
TERRACE_DEVICE inline void copy_elements(Block& block, const std::byte* from, std::byte* to,
                                         std::size_t begin, std::size_t end) {
  for (std::size_t at = begin + block.thread() * sizeof(U); at + sizeof(U) <= end; at += threads * sizeof(U))
    *reinterpret_cast<U*>(to + at) = *reinterpret_cast<const U*>(from + at);
}

/// The same for all bytes of [begin, end), by the widest elements that both addresses allow. `begin` is a multiple of
/// 16. No barrier.
template <std::uint32_t threads, class Block>
TERRACE_DEVICE inline void copy_bytes(Block& block, const std::byte* from, std::byte* to, std::size_t begin,
                                      std::size_t end) {
  if (aligned_to(from, to, 16)) {
    copy_elements<vec16, threads>(block, from, to, begin, end);
    copy_elements<std::byte, threads>(block, from, to, begin + (end - begin) / 16 * 16, end);
  } else if (aligned_to(from, to, 4)) {
    copy_elements<std::uint32_t, threads>(block, from, to, begin, end);
    copy_elements<std::byte, threads>(block, from, to, begin + (end - begin) / 4 * 4, end);
  } else {
    copy_elements<std::byte, threads>(block, from, to, begin, end);
  }
}

}  // namespace terrace::cuda
