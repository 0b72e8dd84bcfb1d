#pragma once
#include <cstddef>
#include <span>
#include <type_traits>

#include "terrace/core/bytes.hpp"
#include "terrace/core/config.hpp"
#include "terrace/core/cpu.hpp"
#include "terrace/core/element.hpp"

namespace terrace {

/// Converts `count` elements stored as bytes, at any alignment: widening is exact, narrowing rounds to nearest, ties
/// to even. Each value is what `to_float` and `from_float` (core/element.hpp) give, bit for bit, with every
/// instruction set. Preconditions: `in` and `out` have room for them and do not overlap, and the processor supports
/// `set`. O(count), at about the speed of memory.
template <element_type From, element_type To>
void convert(const std::byte* in, std::byte* out, std::size_t count, isa set = best_isa()) noexcept;

/// The same for arrays. Precondition: equal sizes.
template <class From, class To>
requires(element_type<std::remove_const_t<From>>&& element_type<To>) inline void convert(
    std::span<From> in, std::span<To> out, isa set = best_isa()) noexcept {
  TERRACE_ASSERT(in.size() == out.size(), "a conversion needs as many elements out as in");
  convert<std::remove_const_t<From>, To>(std::as_bytes(in).data(), std::as_writable_bytes(out).data(),
                                         in.size(), set);
}

}  // namespace terrace

#if !defined(TERRACE_PREBUILT)
#include "terrace/core/convert_body.hpp"  // IWYU pragma: export
#endif
