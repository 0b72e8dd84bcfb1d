// Included once for each instruction set (see core/for_each_isa.hpp): what encoders of groups of 32 values share.
#if defined(TERRACE_ISA)

namespace terrace::kernels::TERRACE_ISA {

// ggml's rules do not cover these: a NaN becomes 0, and a value that is too large the largest that can be stored.
TERRACE_TARGET TERRACE_ALWAYS_INLINE simd::TERRACE_ISA::f32x16 tame(simd::TERRACE_ISA::f32x16 x,
                                                                    float most) noexcept {
  using namespace simd::TERRACE_ISA;
  const f32x16 bounded = max(splat(-most), min(splat(most), x));
  return select(is_number(x), bounded, splat(0));
}

// Lane g of `most` becomes the largest magnitude of group g of sixteen, found by one transpose. Returns false if one
// of them has a value that must be tamed.
TERRACE_TARGET TERRACE_ALWAYS_INLINE bool largest_of_sixteen(element_value auto type, const std::byte* in,
                                                             float limit,
                                                             simd::TERRACE_ISA::f32x16& most) noexcept {
  using namespace simd::TERRACE_ISA;
  f32x16 magnitudes[16];
  for (std::size_t g = 0; g < 16; ++g) {
    const f32x32 x = load_any(type, in + g * 32 * size_of(type));
    magnitudes[g] = larger_magnitude(x.low, x.high);
  }
  most = largest_of_each(magnitudes);
  return (less(splat(limit), most) | static_cast<mask16>(~is_number(most))) == 0;
}

// Encodes sixteen groups at a time with sixteen(in, out). Those that it refuses, having written nothing, and those
// left over are encoded one by one with one(in, out). An encoded group takes `bytes`.
template <class Sixteen, class One>
TERRACE_TARGET TERRACE_ALWAYS_INLINE void encode_groups(element_value auto type, const std::byte* in,
                                                        std::byte* out, std::size_t groups, std::size_t bytes,
                                                        Sixteen sixteen, One one) noexcept {
  const std::size_t stride = 32 * size_of(type);
  for (std::size_t g = 0; g < groups;) {
    if (groups - g >= 16 && sixteen(in + g * stride, out + g * bytes)) {
      g += 16;
      continue;
    }
    for (const std::size_t end = std::min(g + 16, groups); g < end; ++g)
      one(in + g * stride, out + g * bytes);
  }
}

}  // namespace terrace::kernels::TERRACE_ISA

#endif
