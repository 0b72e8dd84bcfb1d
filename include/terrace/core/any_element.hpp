#pragma once
#include <cstddef>
#include <type_traits>

#include "terrace/core/config.hpp"
#include "terrace/core/element.hpp"

namespace terrace {

/// Calls f with `type` as a constant (fp16, bf16, otherwise fp32), for kernels worth compiling once for each type.
template <class F>
auto with_constant(element type, F f) noexcept {
  if (type == element::fp16) return f(std::integral_constant<element, element::fp16>{});
  if (type == element::bf16) return f(std::integral_constant<element, element::bf16>{});
  return f(std::integral_constant<element, element::fp32>{});
}

}  // namespace terrace

#define TERRACE_KERNEL "terrace/core/any_element_kernel.hpp"
#include "terrace/core/for_each_isa.hpp"
