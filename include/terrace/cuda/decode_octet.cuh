#pragma once
#include <cstddef>
#include <cstdint>

#include "terrace/attention/block_encoding.hpp"
#include "terrace/core/config.hpp"
#include "terrace/core/element.hpp"
#include "terrace/cuda/block_context.hpp"

namespace terrace::cuda {

/// Eight consecutive values of an encoded run as elements of T, fp16 or bf16: what the codec's decode gives, bit for
/// bit, where the scale is a number. `octet` counts from the start of the run, `encoded`, which is aligned to 2 bytes.
///
/// It is exact because there is one rounding: a code of at most 8 bits times a scale of 11 is a float without
/// rounding, so neither the order of the product nor a fused addition can change it, and `pack` rounds that to T.
template <class T, block_encoding encoding, class Block>
TERRACE_DEVICE inline vec16 decode_octet(Block& block, const std::byte* encoded, std::uint32_t octet) {
  static_assert(encoding == block_encoding::q8_0 || encoding == block_encoding::q4_0 ||
                encoding == block_encoding::fp8);
  const auto half_at = [](const std::byte* p) { return *reinterpret_cast<const std::uint16_t*>(p); };
  float value[8];
  if constexpr (encoding == block_encoding::q8_0) {
    const std::byte* const group = encoded + octet / 4 * 34;
    const float scale = block.to_float(fp16{half_at(group)});
    TERRACE_DEVICE_UNROLL
    for (std::uint32_t i = 0; i < 4; ++i) {
      const std::uint32_t two = half_at(group + 2 + octet % 4 * 8 + i * 2);
      value[2 * i] = static_cast<float>(static_cast<std::int8_t>(two & 0xffu)) * scale;
      value[2 * i + 1] = static_cast<float>(static_cast<std::int8_t>(two >> 8)) * scale;
    }
  } else if constexpr (encoding == block_encoding::q4_0) {
    const std::byte* const group = encoded + octet / 4 * 18;
    const float scale = block.to_float(fp16{half_at(group)});
    const std::uint32_t shift = octet % 4 / 2 * 4;  // the first half of the group is in the low nibbles
    TERRACE_DEVICE_UNROLL
    for (std::uint32_t i = 0; i < 4; ++i) {
      const std::uint32_t two =
          static_cast<std::uint32_t>(half_at(group + 2 + octet % 2 * 8 + i * 2)) >> shift;
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
  vec16 out;
  TERRACE_DEVICE_UNROLL
  for (std::uint32_t i = 0; i < 4; ++i) out.word[i] = block.template pack<T>(value[2 * i], value[2 * i + 1]);
  return out;
}

}  // namespace terrace::cuda
