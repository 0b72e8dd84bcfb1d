// Included once for each instruction set (see core/for_each_isa.hpp): q8_0 groups, in and out. Every set
// gives the same bits: each step is exact or rounds once, and no product feeds a sum that a compiler could fuse it
// with.
#if defined(TERRACE_ISA)

namespace terrace::kernels::TERRACE_ISA {

// The codes at most one away from `code`, if any, that give x of a bf16 plane exactly.
struct nearby_codes {
  simd::TERRACE_ISA::f32x16 code;
  bool exact;
};
template <std::same_as<bf16> T>
TERRACE_TARGET TERRACE_ALWAYS_INLINE nearby_codes exact_codes(simd::TERRACE_ISA::f32x16 x, fp16 scale,
                                                              simd::TERRACE_ISA::f32x16 code) noexcept {
  using namespace simd::TERRACE_ISA;
  const f32x16 d = splat(scale);
  const f32x16 up = min(splat(127), add(code, splat(1))), down = max(splat(-127), sub(code, splat(1)));
  const mask16 as_is = equal(x, round_as<T>(mul(code, d)));
  const mask16 above = equal(x, round_as<T>(mul(up, d)));
  const mask16 below = equal(x, round_as<T>(mul(down, d)));
  return {select(as_is, code, select(above, up, down)), (as_is | above | below) == 0xffff};
}

// Stores the codes of a group whose scale has been written.
TERRACE_TARGET TERRACE_ALWAYS_INLINE void store_codes(element_value auto type, const f32x32& x, fp16 scale,
                                                      simd::TERRACE_ISA::f32x16 inverse,
                                                      std::byte* out) noexcept {
  using namespace simd::TERRACE_ISA;
  store_i8(out + 2, mul(x.low, inverse));
  store_i8(out + 18, mul(x.high, inverse));
  // bf16 is so coarse that decoded values can lie half a code from where they came: see codec/q8_0.hpp.
  if (type == element::bf16) {
    const nearby_codes lo = exact_codes<bf16>(x.low, scale, load_i8(out + 2));
    if (!lo.exact) return;
    const nearby_codes hi = exact_codes<bf16>(x.high, scale, load_i8(out + 18));
    if (!hi.exact) return;
    store_i8(out + 2, lo.code);
    store_i8(out + 18, hi.code);
  }
}

TERRACE_TARGET inline void encode_q8_0_group(element_value auto type, const std::byte* in,
                                             std::byte* out) noexcept {
  using namespace simd::TERRACE_ISA;
  const q8_0_limits limits = q8_0_limits::of(type);
  f32x32 x = load_any(type, in);
  float most = largest_magnitude(x.low, x.high);
  if (!(most <= limits.value)) {
    x = {tame(x.low, limits.value), tame(x.high, limits.value)};
    most = largest_magnitude(x.low, x.high);
  }
  const float d = most / 127.0f;
  const fp16 scale = narrow(d < limits.scale ? d : limits.scale);
  // A scale that rounds to zero decodes to zeros whatever the codes are: then the codes are zeros too.
  const f32x16 inverse = splat(scale.bits != 0 ? 1.0f / d : 0.0f);
  std::memcpy(out, &scale, sizeof scale);
  store_codes(type, x, scale, inverse, out);
}

// Sixteen groups at once: they share a transpose and a division. Returns false, with nothing written, if one of them
// has a value that must be tamed.
TERRACE_TARGET inline bool encode_q8_0_sixteen(element_value auto type, const std::byte* in,
                                               std::byte* out) noexcept {
  using namespace simd::TERRACE_ISA;
  const q8_0_limits limits = q8_0_limits::of(type);
  const std::size_t stride = 32 * size_of(type);
  f32x16 most;
  if (!largest_of_sixteen(type, in, limits.value, most)) return false;
  const f32x16 d = div(most, splat(127.0f));
  fp16 scales[16];
  store_as<fp16>(reinterpret_cast<std::byte*>(scales), min(d, splat(limits.scale)));
  const f32x16 stored = load_as<fp16>(reinterpret_cast<const std::byte*>(scales));
  alignas(64) float inverses[16];
  store(inverses, select(equal(stored, splat(0)), splat(0), div(splat(1.0f), d)));
  for (std::size_t g = 0; g < 16; ++g, out += 34) {
    std::memcpy(out, &scales[g], sizeof scales[g]);
    store_codes(type, load_any(type, in + g * stride), scales[g], splat(inverses[g]), out);
  }
  return true;
}

TERRACE_TARGET inline void encode_q8_0(element_value auto type, const std::byte* in, std::byte* out,
                                       std::size_t groups) noexcept {
  encode_groups(
      type, in, out, groups, q8_0::group_bytes,
      [type](const std::byte* from, std::byte* to)
          TERRACE_TARGET { return encode_q8_0_sixteen(type, from, to); },
      [type](const std::byte* from, std::byte* to) TERRACE_TARGET { encode_q8_0_group(type, from, to); });
}

// Returns false if a scale is infinite or NaN, which no encoder writes.
TERRACE_TARGET inline bool decode_q8_0(element_value auto type, const std::byte* in, std::byte* out,
                                       std::size_t groups) noexcept {
  using namespace simd::TERRACE_ISA;
  bool good = true;
  for (std::size_t g = 0; g < groups; ++g, in += 34, out += 32 * size_of(type)) {
    fp16 scale;
    std::memcpy(&scale, in, sizeof scale);
    good &= (scale.bits & 0x7c00u) != 0x7c00u;
    const f32x16 d = splat(scale);
    store_any(type, out, {mul(d, load_i8(in + 2)), mul(d, load_i8(in + 18))});
  }
  return good;
}

}  // namespace terrace::kernels::TERRACE_ISA

#endif
