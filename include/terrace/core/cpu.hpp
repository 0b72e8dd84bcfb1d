#pragma once
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <initializer_list>
#include <optional>
#include <string_view>

#include "terrace/core/config.hpp"

namespace terrace {

/// The instruction sets that CPU kernels are written for, weakest first. `avx2` includes FMA and F16C;
/// `avx512` is F, BW, DQ and VL, with VNNI.
enum class isa : std::uint8_t { portable, avx2, avx512 };

constexpr std::string_view name(isa set) noexcept {
  switch (set) {
    case isa::portable:
      return "portable";
    case isa::avx2:
      return "avx2";
    case isa::avx512:
      return "avx512";
  }
  return "unknown";
}

/// The instruction set of that name, or nothing.
constexpr std::optional<isa> parse_isa(std::string_view text) noexcept {
  for (const isa set : {isa::portable, isa::avx2, isa::avx512})
    if (text == name(set)) return set;
  return std::nullopt;
}

/// The strongest set that this processor and its operating system support.
inline isa probe_isa() noexcept {
#if TERRACE_X86
  // Every processor with AVX2 and FMA has F16C; older compilers do not know the name.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512vnni");
  if (avx2 && avx512) return isa::avx512;
  if (avx2) return isa::avx2;
#endif
  return isa::portable;
}

/// The set that kernels use unless told otherwise: the strongest that the processor supports, or a lower one given by
/// the environment variable TERRACE_ISA (portable, avx2 or avx512), which never raises it. Determined once and
/// remembered, so results stay the same from the first call to the last.
inline isa best_isa() noexcept {
  static const isa chosen = [] {
    const isa most = probe_isa();
    const char* const wish = std::getenv("TERRACE_ISA");
    const std::optional<isa> limit = wish != nullptr ? parse_isa(wish) : std::nullopt;
    return limit && *limit < most ? *limit : most;
  }();
  return chosen;
}

/// Whether the processor multiplies pairs of bf16 (AVX512_BF16: Zen 4, Cooper Lake, Sapphire Rapids and later).
inline bool has_bf16_products() noexcept {
#if TERRACE_X86
  static const bool has = __builtin_cpu_supports("avx512bf16") != 0;
  return has;
#else
  return false;
#endif
}

/// Whether cache lines that are needed later should be prefetched into L2 rather than L1. Where L1 is no larger than
/// 32 KiB (Zen 4 and older), L2 can wait for more lines at a time; where it is larger (Zen 5), L1 was the better
/// place. Asks the operating system once.
inline bool misses_wait_in_second_cache() noexcept {
#if defined(_SC_LEVEL1_DCACHE_SIZE)
  static const bool waits = ::sysconf(_SC_LEVEL1_DCACHE_SIZE) <= 32 * 1024;
  return waits;
#else
  return true;
#endif
}

}  // namespace terrace
