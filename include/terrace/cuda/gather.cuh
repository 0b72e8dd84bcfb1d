#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "terrace/cuda/block_context.hpp"
#include "terrace/cuda/cooperative_copy.cuh"
#include "terrace/cuda/gather.hpp"
#include "terrace/cuda/launch.hpp"

namespace terrace::cuda {

/// The kernel of `gather`. A work item is a chunk of one block; blocks of threads stride over the items, so that
/// any number of them does the whole.
template <std::uint32_t loads_in_flight>
struct gather_kernel {
  static constexpr std::uint32_t threads = 256;
  static constexpr std::size_t chunk_bytes = std::size_t{threads} * loads_in_flight * 16;

  block_addresses from, to;
  std::size_t bytes;
  std::uint64_t items;
  std::uint32_t chunks;  // of one block

  template <class Block>
  TERRACE_DEVICE void operator()(Block& block) const {
    for (std::uint64_t item = block.index().x; item < items; item += block.count().x) {
      const std::size_t begin = item % chunks * chunk_bytes;
      const std::size_t length = bytes - begin < chunk_bytes ? bytes - begin : chunk_bytes;
      const std::byte* const source = from[item / chunks] + begin;
      std::byte* const target = to[item / chunks] + begin;
      const bool wide = aligned_to(source, target, 16);
      if (wide) copy16(block, source, target, length);
      copy_bytes<threads>(block, source, target, wide ? length / 16 * 16 : 0, length);
    }
  }

 private:
  // All loads of a thread are issued before its first store: that is what keeps them in flight together.
  template <class Block>
  TERRACE_DEVICE static void copy16(Block& block, const std::byte* source, std::byte* target,
                                    std::size_t length) {
    vec16 v[loads_in_flight];
    const std::size_t first = std::size_t{block.thread()} * 16, step = std::size_t{threads} * 16;
    TERRACE_DEVICE_UNROLL
    for (std::uint32_t i = 0; i < loads_in_flight; ++i)
      if (first + i * step + 16 <= length) v[i] = block.load16(source + first + i * step);
    TERRACE_DEVICE_UNROLL
    for (std::uint32_t i = 0; i < loads_in_flight; ++i)
      if (first + i * step + 16 <= length) block.store16(target + first + i * step, v[i]);
  }
};

template <std::uint32_t loads_in_flight>
result<void> gather(const block_addresses& from, const block_addresses& to, std::uint32_t count,
                    std::size_t bytes, stream_handle stream, std::uint32_t ctas) noexcept {
  using kernel = gather_kernel<loads_in_flight>;
  if (count == 0 || bytes == 0) return {};
  const std::size_t chunks = (bytes + kernel::chunk_bytes - 1) / kernel::chunk_bytes;
  if (chunks > 0xffffffffu) return fail(errc::invalid_argument, "a block of that size cannot be gathered");
  const std::uint64_t items = std::uint64_t{count} * chunks;
  const auto blocks = static_cast<std::uint32_t>(std::min<std::uint64_t>(items, std::max(ctas, 1u)));
  return launch(kernel{from, to, bytes, items, static_cast<std::uint32_t>(chunks)}, {.x = blocks}, stream);
}

}  // namespace terrace::cuda
