// Included once for each instruction set (see core/for_each_isa.hpp): 32 elements of fp16, bf16 or float, to
// and from registers. Where the type is not a constant, one kernel serves all types: slower to run, but faster to
// compile. The portable set is used this way: its conversions are long, and it is the slow set anyway.
#if defined(TERRACE_ISA)

namespace terrace::kernels::TERRACE_ISA {

struct f32x32 {
  simd::TERRACE_ISA::f32x16 low, high;
};

template <element_type T>
TERRACE_TARGET TERRACE_ALWAYS_INLINE f32x32 load_two(const std::byte* in) noexcept {
  using namespace simd::TERRACE_ISA;
  return {load_as<T>(in), load_as<T>(in + 16 * sizeof(T))};
}
TERRACE_TARGET TERRACE_KERNEL_INLINE f32x32 load_any(element_value auto type, const std::byte* in) noexcept {
  if (type == element::fp16) return load_two<fp16>(in);
  if (type == element::bf16) return load_two<bf16>(in);
  return load_two<float>(in);
}

template <element_type T>
TERRACE_TARGET TERRACE_ALWAYS_INLINE void store_two(std::byte* out, const f32x32& v) noexcept {
  using namespace simd::TERRACE_ISA;
  store_as<T>(out, v.low);
  store_as<T>(out + 16 * sizeof(T), v.high);
}
TERRACE_TARGET TERRACE_KERNEL_INLINE void store_any(element_value auto type, std::byte* out,
                                                    const f32x32& v) noexcept {
  if (type == element::fp16) return store_two<fp16>(out, v);
  if (type == element::bf16) return store_two<bf16>(out, v);
  store_two<float>(out, v);
}

}  // namespace terrace::kernels::TERRACE_ISA

#endif
