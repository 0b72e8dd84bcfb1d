#pragma once
#include <cstddef>
#include <cstdint>

#include "terrace/codec/block_encoding.hpp"
#include "terrace/core/element.hpp"
#include "terrace/core/error.hpp"
#include "terrace/core/layout.hpp"
#include "terrace/cuda/block_addresses.hpp"
#include "terrace/cuda/launch.hpp"

namespace terrace::cuda {

/// Encodes `count` blocks of `group`, raw[i] to encoded[i], in one pass: gather, quantise and scatter. The bytes are
/// those of the host's codec of that name, for any values, including NaN and infinities.
///
/// T is the element type of the group's planes, which is the same for keys and values; `encoding` q8_0, q4_0 or fp8.
/// Raw blocks are aligned to 16 bytes; encoded ones may be anywhere, and are fastest on multiples of 16. Both may be
/// VRAM or pinned RAM. Runs on at most `ctas` blocks of threads, each with 16 KiB of raw bytes in flight.
///
/// Enqueues and returns. Errors: invalid_argument where the codec does not support the group; those of `launch`.
/// Defined in cuda/codecs.cuh; some .cu of the program instantiates it.
template <element_type T, block_encoding encoding>
result<void> encode_blocks(const layer_group& group, const block_addresses& raw,
                           const block_addresses& encoded, std::uint32_t count, stream_handle stream,
                           std::uint32_t ctas = 16) noexcept;

/// Decodes `count` blocks, encoded[i] to raw[i]: the bytes that the host's codec gives. A block whose scales are not
/// numbers cannot come from an encoder: bad[i] then becomes 1, if `bad` is given, and raw[i] holds anything. The
/// caller zeroes `bad` first. The rest is as for encode_blocks.
template <element_type T, block_encoding encoding>
result<void> decode_blocks(const layer_group& group, const block_addresses& encoded,
                           const block_addresses& raw, std::uint32_t count, stream_handle stream,
                           std::uint32_t* bad = nullptr, std::uint32_t ctas = 16) noexcept;

}  // namespace terrace::cuda
