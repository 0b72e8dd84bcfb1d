#pragma once
#include <cstddef>
#include <cstdint>

#include "terrace/core/error.hpp"
#include "terrace/cuda/block_addresses.hpp"
#include "terrace/cuda/launch.hpp"

namespace terrace::cuda {

/// Copies `count` blocks of `bytes` bytes each, from[i] to to[i], by a kernel on at most `ctas` blocks of threads:
/// gather where the sources are scattered, scatter where the targets are. Sources and targets may be VRAM or
/// pinned RAM, at any alignment and of any size; where both are aligned to 16 it moves 16 bytes at a time. No two
/// targets may overlap, nor a source and a target.
///
/// `ctas` limits what is taken from the compute that runs beside it: each occupies an eighth of the threads of one SM
/// and has `loads_in_flight` * 4 KiB in flight. A link of 55 GB/s with 2 us of latency is filled by 110 KiB.
///
/// Enqueues and returns. O(count * bytes). Errors: those of `launch`. Defined in cuda/gather.cuh; some .cu of the
/// program says `template terrace::result<void> terrace::cuda::gather<8>(...)`.
template <std::uint32_t loads_in_flight = 8>
result<void> gather(const block_addresses& from, const block_addresses& to, std::uint32_t count,
                    std::size_t bytes, stream_handle stream, std::uint32_t ctas = 8) noexcept;

}  // namespace terrace::cuda
