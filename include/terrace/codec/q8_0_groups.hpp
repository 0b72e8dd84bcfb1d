#pragma once
// q8_0: the arithmetic of codec/q8_0.hpp, for the instruction set at hand.
#include <cstddef>

#include "terrace/codec/group_encoding.hpp"
#include "terrace/codec/q8_0.hpp"
#include "terrace/core/any_element.hpp"

#define TERRACE_KERNEL "terrace/codec/q8_0_kernel.hpp"
#include "terrace/core/for_each_isa.hpp"

namespace terrace {

template <element_value Type>
void q8_0::encode_groups(Type type, const std::byte* in, std::byte* out, std::size_t groups,
                         isa set) noexcept {
#if TERRACE_X86
  if (set == isa::avx512)
    return with_constant(type, [&](auto t) { return kernels::avx512::encode_q8_0(t, in, out, groups); });
  if (set == isa::avx2)
    return with_constant(type, [&](auto t) { return kernels::avx2::encode_q8_0(t, in, out, groups); });
#endif
  static_cast<void>(set);
  kernels::portable::encode_q8_0(type, in, out, groups);
}

template <element_value Type>
bool q8_0::decode_groups(Type type, const std::byte* in, std::byte* out, std::size_t groups,
                         isa set) noexcept {
#if TERRACE_X86
  if (set == isa::avx512)
    return with_constant(type, [&](auto t) { return kernels::avx512::decode_q8_0(t, in, out, groups); });
  if (set == isa::avx2)
    return with_constant(type, [&](auto t) { return kernels::avx2::decode_q8_0(t, in, out, groups); });
#endif
  static_cast<void>(set);
  return kernels::portable::decode_q8_0(type, in, out, groups);
}

#if defined(TERRACE_PREBUILT)
template void q8_0::encode_groups(element, const std::byte*, std::byte*, std::size_t, isa) noexcept;
template bool q8_0::decode_groups(element, const std::byte*, std::byte*, std::size_t, isa) noexcept;
#endif

}  // namespace terrace
