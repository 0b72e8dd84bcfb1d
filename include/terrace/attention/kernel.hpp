#pragma once
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "terrace/attention/attend_item.hpp"
#include "terrace/attention/attention_arithmetic.hpp"
#include "terrace/attention/integer_simd.hpp"
#include "terrace/attention/partial_state.hpp"
#include "terrace/attention/query_tile.hpp"
#include "terrace/attention/visible_tokens.hpp"
#include "terrace/cache/block_view.hpp"
#include "terrace/codec/q4_0_simd.hpp"
#include "terrace/core/config.hpp"
#include "terrace/core/element.hpp"

#define TERRACE_KERNEL "terrace/attention/rows_kernel.hpp"
#include "terrace/core/for_each_isa.hpp"
#define TERRACE_KERNEL "terrace/attention/float_kernel.hpp"
#include "terrace/core/for_each_isa.hpp"
#define TERRACE_KERNEL "terrace/attention/integer_kernel.hpp"
#include "terrace/core/for_each_isa.hpp"
#define TERRACE_KERNEL "terrace/attention/bf16_kernel.hpp"
#define TERRACE_KERNEL_OF_BF16
#include "terrace/core/for_each_isa.hpp"

namespace terrace {

TERRACE_BODY void kernels::attend(const attend_item& item, isa set) noexcept {
#if TERRACE_X86
  if (set == isa::avx512)
    return avx512::computes_in_bf16(item) ? avx512::attend_bf16(item) : avx512::attend(item);
  if (set == isa::avx2) return avx2::attend(item);
#endif
  static_cast<void>(set);
  portable::attend(item);
}

}  // namespace terrace
