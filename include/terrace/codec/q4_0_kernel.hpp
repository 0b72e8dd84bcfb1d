// Included once for each instruction set (see core/for_each_isa.hpp): q4_0 groups, in and out. Every set
// gives the same bits: each step is exact or rounds once, and no product feeds a sum that a compiler could fuse it
// with.
#if defined(TERRACE_ISA)

namespace terrace::kernels::TERRACE_ISA {

// The opposite sign of the value of magnitude `most`, the first if there are several. It is as good as random, and a
// misprediction would cost more than the rest of a group: hence no branch, except for a group that has the magnitude
// with both signs, as a group of zeros does. A product tests for both signs at once.
TERRACE_TARGET TERRACE_ALWAYS_INLINE std::uint32_t q4_0_sign(const f32x32& x,
                                                             simd::TERRACE_ISA::f32x16 most) noexcept {
  using namespace simd::TERRACE_ISA;
  const f32x16 least = mul(most, splat(-1));
  std::uint32_t ups = equal(max(x.low, x.high), most), downs = equal(min(x.low, x.high), least);
  if (ups * downs != 0) {
    ups = std::uint32_t{equal(x.low, most)} | std::uint32_t{equal(x.high, most)} << 16;
    downs = std::uint32_t{equal(x.low, least)} | std::uint32_t{equal(x.high, least)} << 16;
    if (std::countr_zero(ups) <= std::countr_zero(downs)) downs = 0;
  }
  return downs == 0 ? 0x80000000u : 0u;
}

// Stores a group whose largest magnitude, scale and inverse are known except for the sign.
TERRACE_TARGET TERRACE_ALWAYS_INLINE void store_q4_0_group(const f32x32& x, simd::TERRACE_ISA::f32x16 most,
                                                           fp16 scale, float inverse,
                                                           std::byte* out) noexcept {
  using namespace simd::TERRACE_ISA;
  const std::uint32_t sign = q4_0_sign(x, most);
  scale.bits = static_cast<std::uint16_t>(scale.bits | sign >> 16);
  f32x16 factor = splat(std::bit_cast<float>(std::bit_cast<std::uint32_t>(inverse) | sign));
  // A scale that rounds to zero decodes to zeros whatever the codes are: the group is stored as if all its values
  // were zero.
  if ((scale.bits & 0x7fffu) == 0) {
    scale.bits = 0x8000u;
    factor = splat(0);
  }
  std::memcpy(out, &scale, sizeof scale);
  store_q4(out + 2, mul(x.low, factor), mul(x.high, factor));
}

// The codes are rounded as multiples of 2^-26.
inline constexpr float q4_0_unit = 0x1p26f;

TERRACE_TARGET inline void encode_q4_0_group(element_value auto type, const std::byte* in,
                                             std::byte* out) noexcept {
  using namespace simd::TERRACE_ISA;
  const float limit = q4_0_largest(type);
  f32x32 x = load_any(type, in);
  float most = largest_magnitude(x.low, x.high);
  if (!(most <= limit)) {
    x = {tame(x.low, limit), tame(x.high, limit)};
    most = largest_magnitude(x.low, x.high);
  }
  const float d = most / 8.0f;
  store_q4_0_group(x, splat(most), narrow(d), q4_0_unit / d, out);
}

// Sixteen groups at once: they share a transpose and a division. Returns false, with nothing written, if one of them
// has a value that must be tamed.
TERRACE_TARGET inline bool encode_q4_0_sixteen(element_value auto type, const std::byte* in,
                                               std::byte* out) noexcept {
  using namespace simd::TERRACE_ISA;
  const std::size_t stride = 32 * size_of(type);
  f32x16 most;
  if (!largest_of_sixteen(type, in, q4_0_largest(type), most)) return false;
  const f32x16 d = mul(most, splat(1.0f / 8));
  fp16 scales[16];
  alignas(64) float inverses[16], largest[16];
  store_as<fp16>(reinterpret_cast<std::byte*>(scales), d);
  store(inverses, div(splat(q4_0_unit), d));
  store(largest, most);
  for (std::size_t g = 0; g < 16; ++g)
    store_q4_0_group(load_any(type, in + g * stride), splat(largest[g]), scales[g], inverses[g],
                     out + g * 18);
  return true;
}

TERRACE_TARGET inline void encode_q4_0(element_value auto type, const std::byte* in, std::byte* out,
                                       std::size_t groups) noexcept {
  encode_groups(
      type, in, out, groups, q4_0::group_bytes,
      [type](const std::byte* from, std::byte* to)
          TERRACE_TARGET { return encode_q4_0_sixteen(type, from, to); },
      [type](const std::byte* from, std::byte* to) TERRACE_TARGET { encode_q4_0_group(type, from, to); });
}

// Returns false if a scale is infinite or NaN, which no encoder writes.
TERRACE_TARGET inline bool decode_q4_0(element_value auto type, const std::byte* in, std::byte* out,
                                       std::size_t groups) noexcept {
  using namespace simd::TERRACE_ISA;
  bool good = true;
  for (std::size_t g = 0; g < groups; ++g, in += 18, out += 32 * size_of(type)) {
    fp16 scale;
    std::memcpy(&scale, in, sizeof scale);
    good &= (scale.bits & 0x7c00u) != 0x7c00u;
    const q4_values values = load_q4<float>(in + 2, scale);
    store_any(type, out, {values.low, values.high});
  }
  return good;
}

}  // namespace terrace::kernels::TERRACE_ISA

#endif
