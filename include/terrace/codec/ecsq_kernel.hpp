// Included once for each instruction set (see core/for_each_isa.hpp): heads of ecsq, in and out.
#if defined(TERRACE_ISA)

namespace terrace::kernels::TERRACE_ISA {

// Loads one row of a head, in the order of channels: where neighbours are paired, their first elements come first.
template <element_type T>
TERRACE_TARGET TERRACE_KERNEL_INLINE void load_channels(const ecsq_head& h, const std::byte* row,
                                                        float* channels) noexcept {
  using namespace simd::TERRACE_ISA;
  if (h.turns == nullptr || h.pairs == rope::pairing::halves) {
    for (std::uint32_t c = 0; c < h.dim; c += 16) store(channels + c, load_as<T>(row + c * sizeof(T)));
    return;
  }
  float e[32];
  for (std::uint32_t c = 0; c < h.dim; c += 32) {
    store(e, load_as<T>(row + c * sizeof(T)));
    store(e + 16, load_as<T>(row + (c + 16) * sizeof(T)));
    for (std::uint32_t i = 0; i < 16; ++i) {
      channels[c / 2 + i] = e[2 * i];
      channels[h.dim / 2 + c / 2 + i] = e[2 * i + 1];
    }
  }
}
template <element_type T>
TERRACE_TARGET TERRACE_KERNEL_INLINE void store_channels(const ecsq_head& h, const float* channels,
                                                         std::byte* row) noexcept {
  using namespace simd::TERRACE_ISA;
  if (h.turns == nullptr || h.pairs == rope::pairing::halves) {
    for (std::uint32_t c = 0; c < h.dim; c += 16) store_as<T>(row + c * sizeof(T), load(channels + c));
    return;
  }
  float e[32];
  for (std::uint32_t c = 0; c < h.dim; c += 32) {
    for (std::uint32_t i = 0; i < 16; ++i) {
      e[2 * i] = channels[c / 2 + i];
      e[2 * i + 1] = channels[h.dim / 2 + c / 2 + i];
    }
    store_as<T>(row + c * sizeof(T), load(e));
    store_as<T>(row + (c + 16) * sizeof(T), load(e + 16));
  }
}

// Rotates a row forward, or back. Each product rounds once, and so does the sum where the set fuses.
template <bool Back>
TERRACE_TARGET TERRACE_KERNEL_INLINE void turn(const ecsq_head& h, std::uint32_t token,
                                               float* channels) noexcept {
  using namespace simd::TERRACE_ISA;
  const std::uint32_t half = h.dim / 2;
  const float* const cosines = h.turns + std::size_t{token} * h.dim;
  for (std::uint32_t c = 0; c < half; c += 16) {
    const f32x16 a = load(channels + c), b = load(channels + half + c);
    const f32x16 cosine = load(cosines + c), up = load(cosines + half + c);
    const f32x16 sine = Back ? sub(splat(0), up) : up;
    store(channels + c, fma(a, cosine, sub(splat(0), mul(b, sine))));
    store(channels + half + c, fma(b, cosine, mul(a, sine)));
  }
}

// Whether all values are multiples of the step, apart from what rounding to T may have done to them.
template <element_type T>
TERRACE_TARGET TERRACE_KERNEL_INLINE bool all_multiples(const ecsq_head& h, const float* values, float step,
                                                        float tolerance, float unit) noexcept {
  using namespace simd::TERRACE_ISA;
  const std::uint32_t half = h.turns != nullptr ? h.dim / 2 : 0;
  const f32x16 inverse = splat(1 / step);
  std::byte rounded[16];
  for (std::uint32_t t = 0; t < h.tokens; ++t) {
    const float* const row = values + std::size_t{t} * h.dim;
    for (std::uint32_t c = 0; c < h.dim; c += 16) {
      const std::uint32_t other = half == 0 ? c : c < half ? c + half : c - half;
      const f32x16 x = mul(load(row + c), inverse), y = mul(load(row + other), inverse);
      store_i8(rounded, x);
      const f32x16 off = abs(sub(x, load_i8(rounded)));
      const f32x16 allowed = fma(add(abs(x), abs(y)), splat(unit), splat(tolerance));
      if (less(off, allowed) != 0xffff) return false;
    }
  }
  return true;
}

// Codes one head: its multiples go to `codes`, [token][channel]. `values` is scratch for as many floats. Returns the
// step of the head's record.
template <element_type T>
TERRACE_TARGET inline std::int8_t quantise_head(const ecsq_head& h, const std::byte* in, std::uint32_t tenths,
                                                float* values, std::int8_t* codes) noexcept {
  using namespace simd::TERRACE_ISA;
  constexpr std::int8_t zeros = ecsq_record::zeros, stored = ecsq_record::stored;
  const std::size_t count = std::size_t{h.tokens} * h.dim;
  if (count < 256) return stored;
  float most = 0;
  for (std::uint32_t t = 0; t < h.tokens; ++t) {
    float* const row = values + std::size_t{t} * h.dim;
    load_channels<T>(h, in + t * h.stride, row);
    for (std::uint32_t c = 0; c < h.dim; c += 16) {
      const f32x16 x = load(row + c);
      const float here = largest_magnitude(x, x);
      if (!(here <= 30000.0f)) return stored;
      most = here > most ? here : most;
    }
    if (h.turns != nullptr) turn<true>(h, t, row);
  }
  if (most == 0) return zeros;

  // The spread about the channels' means.
  double squares = 0;
  most = 0;
  for (std::uint32_t c = 0; c < h.dim; c += 16) {
    f32x16 sum = splat(0);
    for (std::uint32_t t = 0; t < h.tokens; ++t) sum = add(sum, load(values + std::size_t{t} * h.dim + c));
    const f32x16 mean = mul(sum, splat(1 / static_cast<float>(h.tokens)));
    f32x16 square = splat(0);
    for (std::uint32_t t = 0; t < h.tokens; ++t) {
      const f32x16 x = load(values + std::size_t{t} * h.dim + c), off = sub(x, mean);
      square = fma(off, off, square);
      const float here = largest_magnitude(x, x);
      most = here > most ? here : most;
    }
    squares += static_cast<double>(terrace::simd::TERRACE_ISA::sum(square));
  }
  const double wanted = std::sqrt(squares / static_cast<double>(count)) * tenths / 10;
  if (!(wanted >= 0x1p-14 && wanted <= 0x1p8)) return stored;
  const int asked = static_cast<int>(std::lround(8 * std::log2(wanted)));

  const ecsq_rounding rounding = ecsq_rounding::of(element_of<T>);
  int step = ecsq_record::most_step + 1;
  bool coded_before = false;
  for (int s = asked + ecsq_steps_up; s >= asked - ecsq_steps_down && !coded_before; --s) {
    if (s < ecsq_record::least_step || s > ecsq_record::most_step || most > 127 * ecsq_step(s)) continue;
    coded_before = all_multiples<T>(h, values, ecsq_step(s), ecsq_tolerance, rounding.unit);
    step = s;
  }
  if (!coded_before) step = asked;
  if (step < ecsq_record::least_step || step > ecsq_record::most_step) return stored;
  const float size = ecsq_step(step);
  if (most > (rounding.most_steps - 0.5f) * size) return stored;

  bool any = false;
  const f32x16 inverse = splat(1 / size);
  for (std::size_t i = 0; i < count; i += 16) {
    store_i8(reinterpret_cast<std::byte*>(codes + i), mul(load(values + i), inverse));
    const f32x16 code = load_i8(reinterpret_cast<const std::byte*>(codes + i));
    any |= equal(code, splat(0)) != 0xffff;
    store(values + i, code);
  }
  if (!any) return coded_before ? stored : zeros;
  // The multiples themselves must not look like those of another step that would be tried sooner.
  for (int more = 1; more <= ecsq_steps_up + ecsq_steps_down && !coded_before; ++more)
    if (all_multiples<T>(h, values, ecsq_step(more), 2 * ecsq_tolerance, 2 * rounding.unit)) return stored;
  return static_cast<std::int8_t>(step);
}

// Writes one head, from its end to its beginning, as a range coder requires.
TERRACE_TARGET inline void write_head(const ecsq_head& h, const std::int8_t* codes, const ecsq_channels& c,
                                      rans_writer& to) noexcept {
  using simd::TERRACE_ISA::put;
  alignas(64) std::int16_t numbers[ecsq_format::most_channels];
  for (std::uint32_t t = h.tokens; t-- != 0;) {
    const std::int8_t* const row = codes + std::size_t{t} * h.dim;
    for (std::uint32_t at = 0; at < h.dim; at += 16)
      for (std::uint32_t i = at; i < at + 16; ++i)
        numbers[i] = static_cast<std::int16_t>(row[i] - c.means[i]);
    for (std::uint32_t at = h.dim; at != 0;) {
      at -= 16;
      put(to, numbers + at, c.distributions + at);
    }
  }
  std::uint8_t same[rans::lanes];
  std::fill_n(same, rans::lanes, c.record.means);
  for (std::uint32_t at = h.dim; at != 0;) put(to, c.means + (at -= 16), same);
  std::fill_n(same, rans::lanes, static_cast<std::uint8_t>(c.record.spread & 15));
  for (std::uint32_t at = h.dim; at != 0;) put(to, c.distances + (at -= 16), same);
}

// Reads one head that was coded, and writes its rows.
template <element_type T>
TERRACE_TARGET inline void restore_head(const ecsq_head& h, ecsq_record record, rans_reader& from,
                                        std::byte* out) noexcept {
  using namespace simd::TERRACE_ISA;
  const std::uint32_t* const table = rans::table().at.data();
  alignas(64) std::int32_t bases[ecsq_format::most_channels], means[ecsq_format::most_channels];
  alignas(64) float row[ecsq_format::most_channels];
  alignas(64) std::int32_t same[16];
  constexpr int slots = static_cast<int>(rans::slots);
  rans_lanes lanes = load_lanes(from);
  const auto all = [&](int distribution) TERRACE_TARGET {
    for (std::int32_t& base : same) base = distribution * slots;
  };
  all(record.spread & 15);
  const int middle = record.spread >> 4;
  for (std::uint32_t c = 0; c < h.dim; c += 16) {
    store(bases + c, next(lanes, from, table, same));
    for (std::uint32_t i = c; i < c + 16; ++i)
      bases[i] = std::clamp(middle + bases[i], 0, rans::distributions - 1) * slots;
  }
  all(record.means & 15);
  for (std::uint32_t c = 0; c < h.dim; c += 16) store(means + c, next(lanes, from, table, same));

  const f32x16 step = splat(ecsq_step(record.step));
  for (std::uint32_t t = 0; t < h.tokens; ++t) {
    for (std::uint32_t c = 0; c < h.dim; c += 16)
      store(row + c, mul(step, to_f32(add(next(lanes, from, table, bases + c), load_i32(means + c)))));
    if (h.turns != nullptr) turn<false>(h, t, row);
    store_channels<T>(h, row, out + t * h.stride);
  }
  store_lanes(from, lanes);
}

}  // namespace terrace::kernels::TERRACE_ISA

#endif
