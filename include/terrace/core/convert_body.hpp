#pragma once
// The function of core/convert.hpp.
#include <cstddef>
#include <cstring>

#include "terrace/core/convert.hpp"

#define TERRACE_KERNEL "terrace/core/convert_kernel.hpp"
#include "terrace/core/for_each_isa.hpp"

namespace terrace {

template <element_type From, element_type To>
void convert(const std::byte* in, std::byte* out, std::size_t count, isa set) noexcept {
#if TERRACE_X86
  if (set == isa::avx512) return kernels::avx512::convert<From, To>(in, out, count);
  if (set == isa::avx2) return kernels::avx2::convert<From, To>(in, out, count);
#endif
  static_cast<void>(set);
  kernels::portable::convert<From, To>(in, out, count);
}

#if defined(TERRACE_PREBUILT)
#define TERRACE_CONVERT(From, To) \
  template void convert<From, To>(const std::byte*, std::byte*, std::size_t, isa) noexcept;
#define TERRACE_CONVERT_FROM(From) \
  TERRACE_CONVERT(From, float)     \
  TERRACE_CONVERT(From, fp16)      \
  TERRACE_CONVERT(From, bf16)      \
  TERRACE_CONVERT(From, fp8_e4m3)
TERRACE_CONVERT_FROM(float)
TERRACE_CONVERT_FROM(fp16)
TERRACE_CONVERT_FROM(bf16)
TERRACE_CONVERT_FROM(fp8_e4m3)
#undef TERRACE_CONVERT_FROM
#undef TERRACE_CONVERT
#endif

}  // namespace terrace
