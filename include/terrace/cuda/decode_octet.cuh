#pragma once
#include <cstddef>
#include <cstdint>

#include "terrace/codec/block_encoding.hpp"
#include "terrace/core/config.hpp"
#include "terrace/core/element.hpp"
#include "terrace/cuda/block_context.hpp"

namespace terrace::cuda {

/// Eight consecutive values of an encoded run, not rounded to the plane's type. `octet` counts from the start of the
/// run, which is aligned to 2 bytes. Exact: a code of at most 8 bits times a scale of 11 bits fits a float, so
/// neither a fused addition nor flushed subnormals (the scale is at least 2^-24) can change it.
template <block_encoding encoding, class Block>
TERRACE_DEVICE inline void decode_octet(Block& block, const std::byte* encoded, std::uint32_t octet,
                                        float (&value)[8]) {
  static_assert(encoding == block_encoding::q8_0 || encoding == block_encoding::q4_0 ||
                encoding == block_encoding::fp8);
  const auto half_at = [](const std::byte* p) -> std::uint32_t {
    return *reinterpret_cast<const std::uint16_t*>(p);
  };
  if constexpr (encoding == block_encoding::q8_0) {
    const std::byte* const group = encoded + octet / 4 * 34;
    const float scale = block.to_float(fp16{static_cast<std::uint16_t>(half_at(group))});
    TERRACE_DEVICE_UNROLL
    for (std::uint32_t i = 0; i < 4; ++i) {
      const std::uint32_t two = half_at(group + 2 + octet % 4 * 8 + i * 2);
      value[2 * i] = static_cast<float>(static_cast<std::int8_t>(two & 0xffu)) * scale;
      value[2 * i + 1] = static_cast<float>(static_cast<std::int8_t>(two >> 8)) * scale;
    }
  } else if constexpr (encoding == block_encoding::q4_0) {
    const std::byte* const group = encoded + octet / 4 * 18;
    const float scale = block.to_float(fp16{static_cast<std::uint16_t>(half_at(group))});
    const std::uint32_t shift = octet % 4 / 2 * 4;  // the first half of the group is in the low nibbles
    TERRACE_DEVICE_UNROLL
    for (std::uint32_t i = 0; i < 4; ++i) {
      const std::uint32_t two = half_at(group + 2 + octet % 2 * 8 + i * 2) >> shift;
      value[2 * i] = static_cast<float>(static_cast<int>(two & 15u) - 8) * scale;
      value[2 * i + 1] = static_cast<float>(static_cast<int>(two >> 8 & 15u) - 8) * scale;
    }
  } else {
    TERRACE_DEVICE_UNROLL
    for (std::uint32_t i = 0; i < 4; ++i) {
      const std::uint32_t two = half_at(encoded + octet * 8 + i * 2);
      value[2 * i] = to_float(fp8_e4m3{static_cast<std::uint8_t>(two)});
      value[2 * i + 1] = to_float(fp8_e4m3{static_cast<std::uint8_t>(two >> 8)});
    }
  }
}

/// Two floats as elements of T, fp16 or bf16, in one word: `from_float`, NaN included, at the speed of `pack`.
template <class T, class Block>
TERRACE_DEVICE inline std::uint32_t pack_any(Block& block, float lo, float hi) {
  if (lo == lo && hi == hi) return block.template pack<T>(lo, hi);
  return std::uint32_t{from_float<T>(lo).bits} | std::uint32_t{from_float<T>(hi).bits} << 16;
}

/// The eight values as elements of T, fp16 or bf16: what the codec's decode gives, bit for bit, where the scale is a
/// number.
template <class T, block_encoding encoding, class Block>
TERRACE_DEVICE inline vec16 decode_octet_as(Block& block, const std::byte* encoded, std::uint32_t octet) {
  float value[8];
  decode_octet<encoding>(block, encoded, octet, value);
  vec16 out;
  TERRACE_DEVICE_UNROLL
  for (std::uint32_t i = 0; i < 4; ++i) {
    if constexpr (encoding == block_encoding::fp8)
      out.word[i] = pack_any<T>(block, value[2 * i], value[2 * i + 1]);
    else
      out.word[i] = block.template pack<T>(value[2 * i], value[2 * i + 1]);
  }
  return out;
}

}  // namespace terrace::cuda
