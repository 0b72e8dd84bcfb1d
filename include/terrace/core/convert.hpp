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

/// Converts elements in bulk: widening is exact, narrowing rounds to nearest, ties to even. Each value is
/// what `to_float` and `from_float` (core/element.hpp) give, bit for bit, with every instruction set.
/// Preconditions: equal sizes, no overlap, and a processor that has `set`. O(size), about the speed of
/// memory.
template <class From, class To>
requires(element_type<std::remove_const_t<From>>&& element_type<To>) inline void convert(
    std::span<From> in, std::span<To> out, isa set = best_isa()) noexcept {
  TERRACE_ASSERT(in.size() == out.size(), "a conversion needs as many elements out as in");
  using source = std::remove_const_t<From>;
  const std::byte* const from = std::as_bytes(in).data();
  std::byte* const to = std::as_writable_bytes(out).data();
#if TERRACE_X86
  if (set == isa::avx512) return kernels::avx512::convert<source, To>(from, to, in.size());
  if (set == isa::avx2) return kernels::avx2::convert<source, To>(from, to, in.size());
#endif
  static_cast<void>(set);
  kernels::portable::convert<source, To>(from, to, in.size());
}

}  // namespace terrace
