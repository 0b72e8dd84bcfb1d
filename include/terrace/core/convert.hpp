#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <type_traits>

#include "terrace/core/bytes.hpp"
#include "terrace/core/config.hpp"
#include "terrace/core/cpu.hpp"
#include "terrace/core/element.hpp"

#define TERRACE_KERNEL "terrace/core/convert_kernel.hpp"
#include "terrace/core/for_each_isa.hpp"

namespace terrace {

/// Converts `count` elements that stand as bytes, at any alignment: widening is exact, narrowing rounds to
/// nearest, ties to even. Each value is what `to_float` and `from_float` (core/element.hpp) give, bit for bit,
/// with every instruction set. Preconditions: `in` and `out` have room for them and do not overlap, and the
/// processor has `set`. O(count), about the speed of memory.
template <element_type From, element_type To>
inline void convert(const std::byte* in, std::byte* out, std::size_t count, isa set = best_isa()) noexcept {
#if TERRACE_X86
  if (set == isa::avx512) return kernels::avx512::convert<From, To>(in, out, count);
  if (set == isa::avx2) return kernels::avx2::convert<From, To>(in, out, count);
#endif
  static_cast<void>(set);
  kernels::portable::convert<From, To>(in, out, count);
}

/// The same for arrays. Precondition: equal sizes.
template <class From, class To>
requires(element_type<std::remove_const_t<From>>&& element_type<To>) inline void convert(
    std::span<From> in, std::span<To> out, isa set = best_isa()) noexcept {
  TERRACE_ASSERT(in.size() == out.size(), "a conversion needs as many elements out as in");
  convert<std::remove_const_t<From>, To>(std::as_bytes(in).data(), std::as_writable_bytes(out).data(),
                                         in.size(), set);
}

}  // namespace terrace
