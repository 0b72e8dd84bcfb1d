#pragma once
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "terrace/codec/block_quantizer.hpp"
#include "terrace/codec/codec.hpp"
#include "terrace/core/cpu.hpp"
#include "terrace/core/element.hpp"

namespace terrace {

/// Each value as one OCP E4M3 byte (core/element.hpp), and nothing else: an encoded block is what an engine that
/// keeps its KV in fp8 would have written, with a scale of 1. Values are in the order of the block.
///
/// Encoding rounds to nearest, ties to even. Magnitudes beyond 448, including infinities, become 448; a NaN stays a
/// NaN. Below 2^-6 the step is 2^-9: KV whose values are far from 1 needs a scale of the engine's own. Decoding is
/// exact in every element type, so attention reads encoded blocks as exactly the decoded values. Any byte decodes to
/// something.
struct fp8 : block_quantizer<fp8> {
  static constexpr std::uint32_t format_id = 0x1100;
  static constexpr std::string_view name = "fp8";
  static constexpr bool lossless = false;
  static constexpr std::uint8_t loss = 32;
  static constexpr bool fixed_rate = true;
  static constexpr bool attendable = true;

  static constexpr std::size_t group_values = 1;
  static constexpr std::size_t group_bytes = 1;

 private:
  friend block_quantizer<fp8>;
  static constexpr const char* bad_dimension = "fp8 encodes any number of values";
  static constexpr const char* bad_type =
      "fp8 encodes fp16, bf16 and fp32; a plane of fp8 elements needs no codec";
  static constexpr const char* bad_size = "a stored fp8 block has not the size of its group's blocks";
  static constexpr const char* bad_code = "a stored fp8 block can hold any bytes";

  template <element_value Type>
  static void encode_groups(Type type, const std::byte* in, std::byte* out, std::size_t values,
                            isa set) noexcept;
  template <element_value Type>
  static bool decode_groups(Type type, const std::byte* in, std::byte* out, std::size_t values,
                            isa set) noexcept;
};

static_assert(codec<fp8>);

}  // namespace terrace

#if !defined(TERRACE_PREBUILT)
#include "terrace/codec/fp8_groups.hpp"  // IWYU pragma: export
#endif
