// Included once for each instruction set (see core/for_each_isa.hpp): elements of one type to another.
#if defined(TERRACE_ISA)

namespace terrace::kernels::TERRACE_ISA {

template <element_type From, element_type To>
TERRACE_TARGET inline void convert(const std::byte* in, std::byte* out, std::size_t count) noexcept {
  using namespace simd::TERRACE_ISA;
  const std::size_t rest = count % 16, whole = count - rest;
  for (std::size_t i = 0; i < whole; i += 16)
    store_as<To>(out + i * sizeof(To), load_as<From>(in + i * sizeof(From)));
  if (rest == 0) return;
  std::byte last_in[16 * sizeof(From)] = {}, last_out[16 * sizeof(To)];
  std::memcpy(last_in, in + whole * sizeof(From), rest * sizeof(From));
  store_as<To>(last_out, load_as<From>(last_in));
  std::memcpy(out + whole * sizeof(To), last_out, rest * sizeof(To));
}

}  // namespace terrace::kernels::TERRACE_ISA

#endif
