#pragma once
#include <cstddef>
#include <cstdint>

#include "terrace/core/element.hpp"
#include "terrace/core/error.hpp"
#include "terrace/cuda/attention.hpp"
#include "terrace/cuda/launch.hpp"

namespace terrace::cuda {

/// The share of the softmax mass that each block drew: exp(lse of the block - lse of everything), the mean over the
/// rows of its sequence that saw a key; 0 where none did. `args` are those of the `attend` that wrote args.tiles, `lse`
/// that of all rows, of `merge`, when the last window of the sequence has been merged. shares[e] is that of entry e of
/// the block table. The shares of a sequence's blocks sum to 1, up to rounding.
///
/// `entries` are all of the table. Enqueues and returns. Errors: those of `launch`. O(entries * tiles * rows).
/// Defined in cuda/mass.cuh. `threads` is a warp's for each block.
template <std::uint32_t threads = 128>
result<void> block_mass(const attention_args& args, const float* lse, std::uint32_t entries, float* shares,
                        stream_handle stream) noexcept;

}  // namespace terrace::cuda
