#pragma once
#include <cstddef>
#include <cstdint>

#include "terrace/core/element.hpp"

namespace terrace {

/// How a block that attention reads is stored: as the engine wrote it, or as an `attendable` codec left it.
/// The values are the codecs' format ids.
enum class block_encoding : std::uint32_t { raw = 0, q8_0 = 8, q4_0 = 2, fp8 = 0x1100 };

/// Bytes that `raw` bytes of a plane, a whole number of the encoding's groups, take when encoded. Offsets and strides
/// within a block scale in the same way.
constexpr std::size_t encoded_bytes(std::size_t raw, element type, block_encoding encoding) noexcept {
  const std::size_t values = raw / size_of(type);
  switch (encoding) {
    case block_encoding::raw:
      break;
    case block_encoding::q8_0:
      return values / 32 * 34;
    case block_encoding::q4_0:
      return values / 32 * 18;
    case block_encoding::fp8:
      return values;
  }
  return raw;
}

}  // namespace terrace
