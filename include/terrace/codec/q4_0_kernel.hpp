// Included once for each instruction set (see core/for_each_isa.hpp): q4_0 groups, in and out. Every set
// gives the same bits: each step is exact or rounds once, and no product meets a sum that a compiler could
// fuse it with.
#if defined(TERRACE_ISA)

namespace terrace::kernels::TERRACE_ISA {

// ggml's rule has no answer for these: a NaN becomes 0, and what is too large the most that can be stored.
TERRACE_TARGET TERRACE_ALWAYS_INLINE simd::TERRACE_ISA::f32x16 tame_for_q4_0(simd::TERRACE_ISA::f32x16 x,
                                                                             float most) noexcept {
  using namespace simd::TERRACE_ISA;
  const f32x16 bounded = max(splat(-most), min(splat(most), x));
  return select(is_number(x), bounded, splat(0));
}

// The value of magnitude `most`, the first of several, divided by -8. The sign is as good as random, and a
// misprediction would cost more than the rest of a group: hence no branch but for a group that has the
// magnitude with both signs, zeros among them. A product asks for that without a branch of its own.
TERRACE_TARGET TERRACE_ALWAYS_INLINE float q4_0_scale(simd::TERRACE_ISA::f32x16 a,
                                                      simd::TERRACE_ISA::f32x16 b, float most) noexcept {
  using namespace simd::TERRACE_ISA;
  const f32x16 up = splat(most), down = splat(-most);
  std::uint32_t ups = equal(max(a, b), up), downs = equal(min(a, b), down);
  if (ups * downs != 0) {
    ups = std::uint32_t{equal(a, up)} | std::uint32_t{equal(b, up)} << 16;
    downs = std::uint32_t{equal(a, down)} | std::uint32_t{equal(b, down)} << 16;
    if (std::countr_zero(ups) <= std::countr_zero(downs)) downs = 0;
  }
  const std::uint32_t sign = downs == 0 ? 0x80000000u : 0u;
  return std::bit_cast<float>(std::bit_cast<std::uint32_t>(most / 8.0f) | sign);
}

TERRACE_TARGET inline void encode_q4_0(element_value auto type, const std::byte* in, std::byte* out,
                                       std::size_t groups) noexcept {
  using namespace simd::TERRACE_ISA;
  const float limit = q4_0_largest(type);
  for (std::size_t g = 0; g < groups; ++g, in += 32 * size_of(type), out += 18) {
    auto [a, b] = load_any(type, in);
    float most = largest_magnitude(a, b);
    if (!(most <= limit)) {
      a = tame_for_q4_0(a, limit);
      b = tame_for_q4_0(b, limit);
      most = largest_magnitude(a, b);
    }
    const float d = q4_0_scale(a, b, most);
    fp16 scale = narrow(d);
    float inverse = 0x1p26f / d;  // the codes are rounded as multiples of 2^-26
    // A scale that rounds to zero decodes to zeros whatever the codes are: then it is what zeros have.
    if ((scale.bits & 0x7fffu) == 0) {
      scale.bits = 0x8000u;
      inverse = 0;
    }
    std::memcpy(out, &scale, sizeof scale);
    store_q4(out + 2, mul(a, splat(inverse)), mul(b, splat(inverse)));
  }
}

// False where a scale is no number, which no encoder writes.
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
