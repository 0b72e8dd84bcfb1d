#pragma once
#include <cstddef>
#include <cstdint>

#include "terrace/core/config.hpp"

namespace terrace::cuda {

/// Where the blocks of a list are, for kernels: an array of pointers, slots of one pool, or one run. What the
/// members point to is memory that the device reads: VRAM, or pinned RAM.
///
///     block_addresses{.pointers = p}                                 // block i at p[i]
///     block_addresses{.base = pool, .indices = n, .stride = bytes}   // block i at pool + n[i] * bytes
///     block_addresses{.base = run, .stride = bytes}                  // block i at run + i * bytes
///
/// Strides and addresses need no alignment; multiples of 16 are fastest.
struct block_addresses {
  void* const* pointers = nullptr;
  std::byte* base = nullptr;
  const std::int32_t* indices = nullptr;
  std::size_t stride = 0;

  /// Precondition: i is less than the length of the list, and every index at least 0.
  TERRACE_HD std::byte* operator[](std::size_t i) const noexcept {
    if (pointers != nullptr) return static_cast<std::byte*>(pointers[i]);
    return base +
           static_cast<std::size_t>(indices != nullptr ? static_cast<std::size_t>(indices[i]) : i) * stride;
  }
};

}  // namespace terrace::cuda
