#pragma once
#include <cstddef>
#include <cstdint>

#include "terrace/core/element.hpp"
#include "terrace/core/error.hpp"
#include "terrace/cuda/attention.hpp"
#include "terrace/cuda/launch.hpp"

namespace terrace::cuda {

/// The share of the softmax mass that each block drew: exp(lse of the block - lse of everything), the mean over the
/// rows of its sequence that saw a key; 0 where none did. `args` are those of the `attend` call that wrote
/// args.tiles; `lse` is that of all rows, from `merge`, once the last window of the sequence has been merged.
/// shares[e] is that of entry e of the block table. The shares of a sequence's blocks sum to 1, up to rounding.
///
/// `entries` is the number of entries in the table. Enqueues and returns. Errors: those of `launch`.
/// O(entries * tiles * rows). Defined in cuda/mass.cuh. `threads` is the size of a block of threads, of which each
/// warp does one block.
template <std::uint32_t threads = 128>
result<void> block_mass(const attention_args& args, const float* lse, std::uint32_t entries, float* shares,
                        stream_handle stream) noexcept;

}  // namespace terrace::cuda
