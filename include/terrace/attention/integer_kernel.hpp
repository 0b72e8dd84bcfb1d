// Included once for each instruction set (see core/for_each_isa.hpp): attention over q8_0 and q4_0 blocks with dot
// products of integers, as attention/attention_arithmetic.hpp defines it.
//
// No integer overflows. Codes are at most 128 in magnitude, queries and weights at most 32767; a dot product has
// 32 terms, a sum of weighted values at most 64: both stay below 2^28.1.
#if defined(TERRACE_ISA)

namespace terrace::kernels::TERRACE_ISA {

// ---- codes: how the 32 codes of a group lie behind its scale. `bias` is the code of 0 as `even` and `odd` give it.

struct q8_0_codes {
  static constexpr std::size_t bytes = q8_0::group_bytes, columns = 8;
  static constexpr std::int32_t bias = 0;
  // Dimensions 4 * c to 4 * c + 3 of sixteen tokens: the first and the third, the second and the fourth.
  TERRACE_TARGET TERRACE_ALWAYS_INLINE static int_lanes even(const int_lanes (&column)[columns],
                                                             std::size_t c) noexcept {
    return even_bytes(column[c]);
  }
  TERRACE_TARGET TERRACE_ALWAYS_INLINE static int_lanes odd(const int_lanes (&column)[columns],
                                                            std::size_t c) noexcept {
    return odd_bytes(column[c]);
  }
  TERRACE_TARGET TERRACE_ALWAYS_INLINE static void pairs(const std::byte* a, const std::byte* b,
                                                         int_lanes (&out)[2]) noexcept {
    load_byte_pairs(a, b, out);
  }
  TERRACE_TARGET TERRACE_ALWAYS_INLINE static void order(f32x16& low, f32x16& high) noexcept {
    in_order(low, high);
  }
};

struct q4_0_codes {
  static constexpr std::size_t bytes = q4_0::group_bytes, columns = 4;
  static constexpr std::int32_t bias = 8;
  TERRACE_TARGET TERRACE_ALWAYS_INLINE static int_lanes even(const int_lanes (&column)[columns],
                                                             std::size_t c) noexcept {
    return c < 4 ? even_nibbles<0>(column[c]) : even_nibbles<4>(column[c - 4]);
  }
  TERRACE_TARGET TERRACE_ALWAYS_INLINE static int_lanes odd(const int_lanes (&column)[columns],
                                                            std::size_t c) noexcept {
    return c < 4 ? odd_nibbles<0>(column[c]) : odd_nibbles<4>(column[c - 4]);
  }
  TERRACE_TARGET TERRACE_ALWAYS_INLINE static void pairs(const std::byte* a, const std::byte* b,
                                                         int_lanes (&out)[2]) noexcept {
    load_nibble_pairs(a, b, out);
  }
  TERRACE_TARGET TERRACE_ALWAYS_INLINE static void order(f32x16&, f32x16&) noexcept {}
};

// ---- scales

inline constexpr std::size_t max_groups = max_integer_dim / 32;

// The scales of a tile's keys or values, by group. Zeros follow the last token.
struct tile_scales {
  alignas(64) fp16 of[max_groups][max_tile_tokens];

  template <class codes>
  [[gnu::noinline]] TERRACE_TARGET void collect(const token_rows& rows, std::size_t tokens) noexcept {
    const std::size_t groups = rows.dim / 32, stride = rows.stride;
    if (tokens < max_tile_tokens) std::fill_n(&of[0][0], groups * max_tile_tokens, fp16{});
    for (std::size_t g = 0; g < groups; ++g) {
      const std::byte* from = rows.first + g * codes::bytes;
      fp16* const to = of[g];
      std::size_t t = 0;
      for (; t + 4 <= tokens; t += 4, from += 4 * stride) {
        std::memcpy(to + t, from, sizeof(fp16));
        std::memcpy(to + t + 1, from + stride, sizeof(fp16));
        std::memcpy(to + t + 2, from + 2 * stride, sizeof(fp16));
        std::memcpy(to + t + 3, from + 3 * stride, sizeof(fp16));
      }
      for (; t < tokens; ++t, from += stride) std::memcpy(to + t, from, sizeof(fp16));
    }
  }
  TERRACE_TARGET TERRACE_ALWAYS_INLINE f32x16 at(std::size_t group, std::size_t token) const noexcept {
    return load_as<fp16>(reinterpret_cast<const std::byte*>(of[group] + token));
  }
};

// The scales of a tile, each collected only when the first rows need them: by then, the cache lines of the values
// have had the time that the scores take to arrive from memory.
template <class codes>
class scales_of_tile {
 public:
  TERRACE_TARGET const tile_scales& of_keys(const tile& part) noexcept {
    if (!std::exchange(has_keys_, true)) keys_.template collect<codes>(part.keys, part.tokens);
    return keys_;
  }
  TERRACE_TARGET const tile_scales& of_values(const tile& part) noexcept {
    if (!std::exchange(has_values_, true)) values_.template collect<codes>(part.values, part.tokens);
    return values_;
  }
  void forget() noexcept { has_keys_ = has_values_ = false; }

 private:
  bool has_keys_ = false, has_values_ = false;
  tile_scales keys_, values_;
};

// How floats are rounded, given their largest magnitude: `factor` turns them into integers up to 32767, and `unit`
// turns these back into floats. If it is NaN or infinite, they become zeros with the unit NaN; if it is too small for
// a factor, zeros.
struct rounding_to_i16 {
  float factor = 0, unit = 0;
  explicit rounding_to_i16(float largest) noexcept {
    if (!(largest <= std::numeric_limits<float>::max())) {
      unit = std::numeric_limits<float>::quiet_NaN();
    } else if (largest >= 0x1p-100f) {
      factor = 32767 / largest;
      unit = largest / 32767;
    }
  }
};

// ---- scores

// Queries as integers of 16 bits.
template <int rows>
struct integer_queries {
  // [group][row][dimension], with the middle two of each four dimensions swapped, to match even and odd.
  alignas(64) std::int16_t values[max_groups * rows * 32];
  std::int32_t start[max_groups * rows];  // minus what the bias of the codes adds to a dot product
  float unit[rows];

  TERRACE_TARGET integer_queries(const float* const (&query)[rows], std::size_t groups,
                                 std::int32_t bias) noexcept {
    for (std::size_t r = 0; r < rows; ++r) {
      const float* const q = query[r];
      f32x16 most = splat(0);
      for (std::size_t d = 0; d < 32 * groups; d += 16) most = larger_magnitude(most, load(q + d));
      const rounding_to_i16 rounding(largest_magnitude(most, most));
      unit[r] = rounding.unit;
      const f32x16 factor = splat(rounding.factor);
      for (std::size_t g = 0; g < groups; ++g) {
        std::int16_t* const to = values + (g * rows + r) * 32;
        store_i16(to, swap_middle(mul(load(q + 32 * g), factor)));
        store_i16(to + 16, swap_middle(mul(load(q + 32 * g + 16), factor)));
        std::int32_t sum = 0;
        for (std::size_t d = 0; d < 32; ++d) sum += to[d];
        start[g * rows + r] = -bias * sum;
      }
    }
  }
};

// Groups of sixteen tokens that are scored at a time: given enough registers, two of them share the loaded queries.
inline constexpr int most_sixteens = max_rows >= 4 ? 2 : 1;

// out[row][token] = q . k for 16 * sixteens tokens, `stride` apart. A lane is a token: their codes are transposed
// once for all rows, and nothing is summed over lanes.
template <class codes, int rows, int sixteens>
[[gnu::noinline]] TERRACE_TARGET void score_tokens(const integer_queries<rows>& queries,
                                                   const std::byte* keys, std::size_t stride,
                                                   std::size_t groups, const tile_scales& scales,
                                                   std::size_t token, rows_ahead ahead, float* out) noexcept {
  f32x16 sum[sixteens][rows];
  TERRACE_UNROLL
  for (std::size_t s = 0; s < sixteens; ++s) {
    TERRACE_UNROLL
    for (std::size_t r = 0; r < rows; ++r) sum[s][r] = splat(0);
  }
  const std::int16_t* q = queries.values;
  for (std::size_t g = 0; g < groups; ++g, q += 32 * rows) {
    fetch_part<16 * sixteens, codes::bytes>(keys, ahead, stride, groups, g);
    int_lanes column[sixteens][codes::columns];
    int_lanes dots[sixteens][rows];
    TERRACE_UNROLL
    for (std::size_t s = 0; s < sixteens; ++s) {
      load_columns(keys + 16 * s * stride + g * codes::bytes + sizeof(fp16), stride, column[s]);
      TERRACE_UNROLL
      for (std::size_t r = 0; r < rows; ++r) dots[s][r] = splat_i32(queries.start[g * rows + r]);
    }
    TERRACE_UNROLL
    for (std::size_t c = 0; c < 8; ++c) {
      int_lanes even[sixteens], odd[sixteens];
      TERRACE_UNROLL
      for (std::size_t s = 0; s < sixteens; ++s) {
        even[s] = codes::even(column[s], c);
        odd[s] = codes::odd(column[s], c);
      }
      TERRACE_UNROLL
      for (std::size_t r = 0; r < rows; ++r) {
        const int_lanes q_even = splat_pair(q + 32 * r + 4 * c), q_odd = splat_pair(q + 32 * r + 4 * c + 2);
        TERRACE_UNROLL
        for (std::size_t s = 0; s < sixteens; ++s)
          dots[s][r] = dot(dot(dots[s][r], even[s], q_even), odd[s], q_odd);
      }
    }
    TERRACE_UNROLL
    for (std::size_t s = 0; s < sixteens; ++s) {
      const f32x16 scale = scales.at(g, token + 16 * s);
      TERRACE_UNROLL
      for (std::size_t r = 0; r < rows; ++r) sum[s][r] = fma(to_float(dots[s][r]), scale, sum[s][r]);
    }
  }
  TERRACE_UNROLL
  for (std::size_t s = 0; s < sixteens; ++s) {
    TERRACE_UNROLL
    for (std::size_t r = 0; r < rows; ++r)
      store(out + r * score_stride + token + 16 * s, mul(sum[s][r], splat(queries.unit[r])));
  }
}

// scores[row][token] for the tokens of `mask`. The other entries are some number.
template <class codes, int rows>
TERRACE_TARGET inline void score_integers(const integer_queries<rows>& queries, const token_rows& keys,
                                          std::size_t tokens, token_mask mask, const tile_scales& scales,
                                          rows_ahead ahead, float* scores) noexcept {
  const std::size_t groups = keys.dim / 32, row_bytes = groups * codes::bytes;
  for (std::size_t t = 0; t < tokens; t += 16) {
    if ((mask >> t & 0xffff) == 0) {
      for (std::size_t r = 0; r < rows; ++r) store(scores + r * score_stride + t, splat(0));
    } else if (most_sixteens == 2 && t + 32 <= tokens) {
      score_tokens<codes, rows, most_sixteens>(queries, keys[t], keys.stride, groups, scales, t, ahead,
                                               scores);
      t += 16;
    } else if (t + 16 <= tokens) {
      score_tokens<codes, rows, 1>(queries, keys[t], keys.stride, groups, scales, t, ahead, scores);
    } else {  // nothing past the last token may be read
      std::byte padded[16 * max_groups * codes::bytes] = {};
      for (std::size_t i = t; i < tokens; ++i) std::memcpy(padded + (i - t) * row_bytes, keys[i], row_bytes);
      score_tokens<codes, rows, 1>(queries, padded, row_bytes, groups, scales, t, {}, scores);
    }
  }
}

// ---- values

// The weights p * scale as integers, zero where a row does not see the token.
template <int rows>
struct integer_weights {
  alignas(64) std::int16_t of[max_groups][rows][max_tile_tokens];
  float unit[max_groups][rows];

  [[gnu::noinline]] TERRACE_TARGET integer_weights(const float* p, const token_mask (&visible)[rows],
                                                   const tile_scales& scales, std::size_t groups) noexcept {
    constexpr std::size_t parts = max_tile_tokens / 16;
    for (std::size_t g = 0; g < groups; ++g) {
      f32x16 scale[parts];
      TERRACE_UNROLL
      for (std::size_t i = 0; i < parts; ++i) scale[i] = scales.at(g, 16 * i);
      for (std::size_t r = 0; r < rows; ++r) {
        f32x16 w[parts];
        TERRACE_UNROLL
        for (std::size_t i = 0; i < parts; ++i) {
          const auto seen = static_cast<mask16>(visible[r] >> (16 * i));
          w[i] = select(seen, mul(load(p + r * score_stride + 16 * i), scale[i]), splat(0));
        }
        const rounding_to_i16 rounding(
            largest_magnitude(larger_magnitude(w[0], w[1]), larger_magnitude(w[2], w[3])));
        unit[g][r] = rounding.unit;
        const f32x16 factor = splat(rounding.factor);
        TERRACE_UNROLL
        for (std::size_t i = 0; i < parts; ++i) store_i16(of[g][r] + 16 * i, mul(w[i], factor));
      }
    }
  }
};

// o[row] = o[row] * rescale[row] + the weighted values of tokens [begin, end), for `width` groups from `first` on and
// the rows that see any. `begin` is even; `tokens` is how many may be read.
template <class codes, int rows, int width>
[[gnu::noinline]] TERRACE_TARGET void add_groups(const integer_weights<rows>& weights,
                                                 const token_rows& values, std::size_t first, token_run run,
                                                 std::size_t tokens, const token_mask (&visible)[rows],
                                                 const float (&rescale)[rows], rows_ahead ahead,
                                                 float* const (&o)[rows]) noexcept {
  int_lanes sum[rows][2 * width];
  TERRACE_UNROLL
  for (std::size_t r = 0; r < rows; ++r) {
    TERRACE_UNROLL
    for (std::size_t w = 0; w < 2 * width; ++w) sum[r][w] = splat_i32(0);
  }
  const std::byte* row = values[run.begin] + first * codes::bytes + sizeof(fp16);
  const std::int16_t* weight = weights.of[first][0] + run.begin;
  const std::int16_t* const last = weights.of[first][0] + tokens - 1;
  const std::int16_t* const end = weights.of[first][0] + run.end;
  for (; weight < end; weight += 2, row += 2 * values.stride) {
    fetch_run<width * codes::bytes>(row + ahead.distance, ahead.into_second);
    fetch_run<width * codes::bytes>(row + ahead.distance + values.stride, ahead.into_second);
    // The last of an odd number is paired with itself; its second weight is zero.
    const std::byte* const next = weight == last ? row : row + values.stride;
    TERRACE_UNROLL
    for (std::size_t w = 0; w < width; ++w) {
      int_lanes v[2];
      codes::pairs(row + w * codes::bytes, next + w * codes::bytes, v);
      TERRACE_UNROLL
      for (std::size_t r = 0; r < rows; ++r) {
        const int_lanes pair = splat_pair(weight + (w * rows + r) * max_tile_tokens);
        sum[r][2 * w] = dot(sum[r][2 * w], v[0], pair);
        sum[r][2 * w + 1] = dot(sum[r][2 * w + 1], v[1], pair);
      }
    }
  }
  TERRACE_UNROLL
  for (std::size_t r = 0; r < rows; ++r) {
    if (visible[r] == 0) continue;
    const f32x16 factor = splat(rescale[r]);
    TERRACE_UNROLL
    for (std::size_t w = 0; w < width; ++w) {
      f32x16 low = to_float(sum[r][2 * w]), high = to_float(sum[r][2 * w + 1]);
      codes::order(low, high);
      const f32x16 unit = splat(weights.unit[first + w][r]);
      float* const to = o[r] + 32 * (first + w);
      store(to, fma(low, unit, mul(load(to), factor)));
      store(to + 16, fma(high, unit, mul(load(to + 16), factor)));
    }
  }
}

// ---- rows

template <class codes, int rows>
class integer_rows {
 public:
  TERRACE_TARGET integer_rows(const attend_item& item, std::size_t first) noexcept
      : of_(item, first), queries_(of_.query, item.keys.dim / 32, codes::bias) {}

  // Folds one tile. The first rows of an item to do so prefetch the next tile.
  TERRACE_TARGET void fold(const tile& part, scales_of_tile<codes>& scales, bool first) noexcept {
    token_mask visible[rows];
    const token_mask any = of_.see(part, visible);
    if (any == 0) return;
    const tiles_ahead next = first ? after(part, of_.item) : tiles_ahead{};
    alignas(64) float scores[rows * score_stride];
    score_integers<codes, rows>(queries_, part.keys, part.tokens, any, scales.of_keys(part), next.keys,
                                scores);
    float rescale[rows];
    weigh<rows>(visible, parts(part), scores, of_.m, of_.l, rescale);

    const std::size_t groups = part.values.dim / 32;
    const integer_weights<rows> weights(scores, visible, scales.of_values(part), groups);
    const token_run run{static_cast<std::uint32_t>(std::countr_zero(any)) & ~1u,
                        static_cast<std::uint32_t>(std::bit_width(any))};
    constexpr int width = max_rows >= 4 ? 2 : 1;
    std::size_t g = 0;
    for (; g + width <= groups; g += width)
      add_groups<codes, rows, width>(weights, part.values, g, run, part.tokens, visible, rescale, next.values,
                                     of_.o);
    if constexpr (width > 1)
      if (g < groups)
        add_groups<codes, rows, 1>(weights, part.values, g, run, part.tokens, visible, rescale, next.values,
                                   of_.o);
  }

 private:
  item_rows<rows> of_;
  integer_queries<rows> queries_;
};

template <class codes>
TERRACE_TARGET inline void attend_codes(const attend_item& item) noexcept {
  scales_of_tile<codes> scales;
  const std::size_t rows = item.rows();
  if constexpr (max_rows >= 4) {
    if (rows == 4) {  // as in most decodes: the queries are rounded once
      integer_rows<codes, 4> all(item, 0);
      for (std::uint32_t begin = 0; begin < item.tokens; begin += item.tile_tokens, scales.forget())
        all.fold(tile_at(item, begin), scales, true);
      return;
    }
  }
  for (std::uint32_t begin = 0; begin < item.tokens; begin += item.tile_tokens, scales.forget()) {
    const tile part = tile_at(item, begin);
    for_each_rows(rows, rows, [&](auto n, std::size_t row) TERRACE_TARGET {
      integer_rows<codes, decltype(n)::value>(item, row).fold(part, scales, row == 0);
    });
  }
}

TERRACE_TARGET inline void attend(const attend_item& item) noexcept {
  if (!computes_in_integers(item.queries->shape().arithmetic, item.keys.encoding, item.keys.dim,
                            item.values.dim))
    return attend_floats(item);
  item.keys.encoding == block_encoding::q8_0 ? attend_codes<q8_0_codes>(item)
                                             : attend_codes<q4_0_codes>(item);
}

}  // namespace terrace::kernels::TERRACE_ISA

#endif
