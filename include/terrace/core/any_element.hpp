#pragma once
#include <concepts>
#include <cstddef>
#include <type_traits>

#include "terrace/core/config.hpp"
#include "terrace/core/element.hpp"

namespace terrace {

/// An element type as a value: an `element`, or a constant of that type. Functions that take one are
/// templates, and so are compiled only for those who call them: kernels are large, and there are three of
/// each.
template <class T>
concept element_value = std::convertible_to<T, element>;

/// Calls f with `type` (fp16, bf16, or else fp32) as a constant, for kernels that are worth compiling once for
/// each type.
template <class F>
auto with_constant(element type, F f) noexcept {
  if (type == element::fp16) return f(std::integral_constant<element, element::fp16>{});
  if (type == element::bf16) return f(std::integral_constant<element, element::bf16>{});
  return f(std::integral_constant<element, element::fp32>{});
}

}  // namespace terrace

#define TERRACE_KERNEL "terrace/core/any_element_kernel.hpp"
#include "terrace/core/for_each_isa.hpp"
