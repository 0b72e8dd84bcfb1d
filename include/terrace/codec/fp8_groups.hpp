#pragma once
// fp8: the arithmetic of codec/fp8.hpp, for the instruction set at hand.
#include <cstddef>

#include "terrace/codec/fp8.hpp"
#include "terrace/core/convert.hpp"

namespace terrace {

template <element_value Type>
void fp8::encode_groups(Type type, const std::byte* in, std::byte* out, std::size_t values,
                        isa set) noexcept {
  if (type == element::fp16) return convert<fp16, fp8_e4m3>(in, out, values, set);
  if (type == element::bf16) return convert<bf16, fp8_e4m3>(in, out, values, set);
  convert<float, fp8_e4m3>(in, out, values, set);
}

template <element_value Type>
bool fp8::decode_groups(Type type, const std::byte* in, std::byte* out, std::size_t values,
                        isa set) noexcept {
  if (type == element::fp16)
    convert<fp8_e4m3, fp16>(in, out, values, set);
  else if (type == element::bf16)
    convert<fp8_e4m3, bf16>(in, out, values, set);
  else
    convert<fp8_e4m3, float>(in, out, values, set);
  return true;
}

#if defined(TERRACE_PREBUILT)
template void fp8::encode_groups(element, const std::byte*, std::byte*, std::size_t, isa) noexcept;
template bool fp8::decode_groups(element, const std::byte*, std::byte*, std::size_t, isa) noexcept;
#endif

}  // namespace terrace
