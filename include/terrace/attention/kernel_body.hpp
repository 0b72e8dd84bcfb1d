// Included once for each instruction set (see core/for_each_isa.hpp): the arithmetic that
// attention/attend.hpp defines. Whatever the shape of a register block, each row's sums are formed in the
// same order.
#if defined(TERRACE_ISA)

namespace terrace::kernels::TERRACE_ISA {

using namespace simd::TERRACE_ISA;

// Query rows that share a key while it is in a register; with the tokens of a block they fill sums_per_block.
inline constexpr int max_rows = most_sum_rows;
// Scores are computed for whole register blocks of tokens, which may end behind the tile.
inline constexpr std::size_t score_stride = max_tile_tokens + 16;

// ---- elements: a reader gives 16 * vectors of a row, from element d on, a multiple of as many

template <element_type T>
struct raw_elements {
  static constexpr std::size_t vectors = 1;
  TERRACE_TARGET TERRACE_ALWAYS_INLINE static void load(const std::byte* row, std::size_t d,
                                                        f32x16* out) noexcept {
    out[0] = load_as<T>(row + d * sizeof(T));
  }
};

// The values that decoding q8_0 or q4_0 into elements of type T gives, so that it does not matter whether a
// block was decoded or is read in place.
template <element_type T>
struct q8_0_elements {
  static constexpr std::size_t vectors = 2;
  TERRACE_TARGET TERRACE_ALWAYS_INLINE static void load(const std::byte* row, std::size_t d,
                                                        f32x16* out) noexcept {
    const std::byte* const group = row + d / q8_0::group_values * q8_0::group_bytes;
    fp16 scale;
    std::memcpy(&scale, group, sizeof scale);
    const f32x16 factor = splat(scale);
    out[0] = round_as<T>(mul(factor, load_i8(group + sizeof scale)));
    out[1] = round_as<T>(mul(factor, load_i8(group + sizeof scale + 16)));
  }
};
template <element_type T>
struct q4_0_elements {
  static constexpr std::size_t vectors = 2;
  TERRACE_TARGET TERRACE_ALWAYS_INLINE static void load(const std::byte* row, std::size_t d,
                                                        f32x16* out) noexcept {
    const std::byte* const group = row + d / q4_0::group_values * q4_0::group_bytes;
    fp16 scale;
    std::memcpy(&scale, group, sizeof scale);
    const q4_values values = load_q4<T>(group + sizeof scale, scale);
    out[0] = values.low;
    out[1] = values.high;
  }
};

// Calls f with the reader of these rows. A combination more costs every user compile time.
template <class F>
TERRACE_TARGET TERRACE_ALWAYS_INLINE void with_elements(const token_rows& rows, F f) noexcept {
  switch (rows.encoding) {
    case block_encoding::q8_0:
      return rows.type == element::bf16 ? f(q8_0_elements<bf16>{}) : f(q8_0_elements<fp16>{});
    case block_encoding::q4_0:
      return rows.type == element::bf16 ? f(q4_0_elements<bf16>{}) : f(q4_0_elements<fp16>{});
    default:
      break;
  }
  switch (rows.type) {
    case element::fp16:
      return f(raw_elements<fp16>{});
    case element::bf16:
      return f(raw_elements<bf16>{});
    case element::fp8_e4m3:
      return f(raw_elements<fp8_e4m3>{});
    default:
      return f(raw_elements<float>{});
  }
}

// A reader of whatever the rows are, which asks anew for each sixteen elements. The set without register
// blocks uses it: that set is compiled everywhere, and is the slow one anyway.
struct any_elements {
  static constexpr std::size_t vectors = 1;
  token_rows rows;
  TERRACE_TARGET TERRACE_ALWAYS_INLINE void load(const std::byte* row, std::size_t d,
                                                 f32x16* out) const noexcept {
    with_elements(rows, [&](auto as) TERRACE_TARGET {
      f32x16 loaded[as.vectors];
      as.load(row, d - d % (16 * as.vectors), loaded);
      out[0] = loaded[d / 16 % as.vectors];
    });
  }
};

template <class F>
TERRACE_TARGET inline void read(const token_rows& rows, F f) noexcept {
  if constexpr (max_rows == 1)
    f(any_elements{rows});
  else
    with_elements(rows, f);
}

// Rows that will be read next, asked for one by one between the arithmetic: memory is never idle.
struct rows_ahead {
  const std::byte* first = nullptr;
  std::size_t stride = 0;
  std::size_t bytes = 0;  // of a row; 0 asks for nothing

  TERRACE_TARGET TERRACE_ALWAYS_INLINE void fetch(std::size_t token, std::size_t begin,
                                                  std::size_t end) const noexcept {
    for (std::size_t at = begin; at < end; at += 64) __builtin_prefetch(first + token * stride + at);
  }
};

// ---- scores

// scores[row][token] = q . k for the tokens of `mask`. The other entries are without meaning.
template <class elements, int rows>
TERRACE_TARGET inline void score(elements as, const float* const (&query)[rows], const token_rows& keys,
                                 token_mask mask, const rows_ahead& ahead, float* scores) noexcept {
  constexpr std::uint32_t columns = sums_per_block / rows;
  constexpr std::size_t vectors = elements::vectors;
  const std::size_t dim = keys.dim;
  for (token_run run = next_run(mask); !run.empty(); run = next_run(mask, run.end)) {
    for (std::uint32_t t = run.begin; t < run.end; t += columns) {
      const std::byte* key[columns];
      TERRACE_UNROLL
      for (std::uint32_t c = 0; c < columns; ++c) key[c] = keys[std::min(t + c, run.end - 1)];
      f32x16 sum[sums_per_block];
      TERRACE_UNROLL
      for (int i = 0; i < sums_per_block; ++i) sum[i] = splat(0);
      std::size_t asked = 0;
      for (std::size_t d = 0; d < dim; d += 16 * vectors) {
        for (; asked * dim < d * columns; ++asked) ahead.fetch(t + asked, 0, ahead.bytes);
        f32x16 q[vectors][rows];
        TERRACE_UNROLL
        for (std::size_t v = 0; v < vectors; ++v) {
          TERRACE_UNROLL
          for (int r = 0; r < rows; ++r) q[v][r] = load(query[r] + d + 16 * v);
        }
        TERRACE_UNROLL
        for (std::uint32_t c = 0; c < columns; ++c) {
          f32x16 k[vectors];
          as.load(key[c], d, k);
          TERRACE_UNROLL
          for (std::size_t v = 0; v < vectors; ++v) {
            TERRACE_UNROLL
            for (std::uint32_t r = 0; r < rows; ++r)
              sum[r * columns + c] = fma(k[v], q[v][r], sum[r * columns + c]);
          }
        }
      }
      store_sums<rows>(sum, scores + t, score_stride);
    }
  }
}

// e^x for x <= 0, to about 1 ulp. Exactly 1 for 0, 0 for what would be below the normal floats, NaN for NaN.
// The polynomial is that of Cephes' expf.
TERRACE_TARGET TERRACE_ALWAYS_INLINE f32x16 exp_nonpositive(f32x16 x) noexcept {
  const f32x16 shift = splat(12582912.0f);  // 1.5 * 2^23: what is added to it is rounded to an integer
  const f32x16 shifted = fma(x, splat(1.44269504f), shift);
  const f32x16 n = sub(shifted, shift);
  f32x16 f = fma(n, splat(-0.693359375f), x);  // x - n * ln 2, in two parts
  f = fma(n, splat(2.12194440e-4f), f);
  f32x16 p = fma(f, splat(1.9875691500e-4f), splat(1.3981999507e-3f));
  p = fma(p, f, splat(8.3334519073e-3f));
  p = fma(p, f, splat(4.1665795894e-2f));
  p = fma(p, f, splat(1.6666665459e-1f));
  p = fma(p, f, splat(5.0000001201e-1f));
  p = fma(p, mul(f, f), f);
  p = mul(add(p, splat(1.0f)), power_of_two(shifted));
  // Selecting last also keeps a compiler from fusing the product with the caller's sum.
  return select(less(x, splat(-87.33654f)), splat(0), p);
}

// Turns a row's scores into exp(score - m), zero where the row does not see the token; updates m and l, and
// returns what the row's output must be multiplied with.
TERRACE_TARGET inline float weigh(token_mask visible, float* scores, float& m, float& l) noexcept {
  constexpr int parts = max_tile_tokens / 16;
  f32x16 s[parts];
  mask16 seen[parts];
  TERRACE_UNROLL
  for (int i = 0; i < parts; ++i) {
    seen[i] = static_cast<mask16>(visible >> (16 * i));
    const f32x16 bounded = min(splat(std::numeric_limits<float>::max()), load(scores + 16 * i));
    s[i] = select(seen[i], bounded, splat(no_logit));
  }
  const float tile_m = largest(max(max(s[0], s[1]), max(s[2], s[3])));
  const float new_m = tile_m > m ? tile_m : m;
  const f32x16 base = splat(new_m == no_logit ? 0.0f : new_m);  // -inf - -inf would be a NaN
  TERRACE_UNROLL
  for (int i = 0; i < parts; ++i) {
    s[i] = select(seen[i], exp_nonpositive(sub(s[i], base)), splat(0));
    store(scores + 16 * i, s[i]);
  }
  float rescale = 1;
  if (m != new_m) {
    alignas(64) float lanes[16];
    store(lanes, exp_nonpositive(sub(splat(m), base)));
    rescale = lanes[0];
  }
  l = fma(l, rescale, sum(add(add(s[0], s[1]), add(s[2], s[3]))));
  m = new_m;
  return rescale;
}

// ---- values

// o[row] += p[row][token] * v[token] for a run of tokens in ascending order; `width` registers of each row,
// from element `first` on.
template <class elements, int rows, int width>
TERRACE_TARGET inline void add_values(elements as, const float* p, const token_rows& values,
                                      std::size_t first, token_run run, const rows_ahead& ahead,
                                      float* const* o) noexcept {
  f32x16 sum[rows][width];
  TERRACE_UNROLL
  for (int r = 0; r < rows; ++r) {
    TERRACE_UNROLL
    for (std::size_t w = 0; w < width; ++w) sum[r][w] = load(o[r] + first + 16 * w);
  }
  const std::size_t fetch_begin = first * ahead.bytes / values.dim;
  const std::size_t fetch_end = (first + 16 * width) * ahead.bytes / values.dim;
  const std::size_t stride = values.stride;
  const std::byte* row = values[run.begin];
  for (std::size_t t = run.begin; t < run.end; ++t, row += stride) {
    ahead.fetch(t, fetch_begin, fetch_end);
    f32x16 v[width];
    TERRACE_UNROLL
    for (std::size_t w = 0; w < width; w += elements::vectors) as.load(row, first + 16 * w, v + w);
    TERRACE_UNROLL
    for (std::size_t r = 0; r < rows; ++r) {
      const f32x16 weight = splat(p[r * score_stride + t]);
      TERRACE_UNROLL
      for (std::size_t w = 0; w < width; ++w) sum[r][w] = fma(weight, v[w], sum[r][w]);
    }
  }
  TERRACE_UNROLL
  for (int r = 0; r < rows; ++r) {
    TERRACE_UNROLL
    for (std::size_t w = 0; w < width; ++w) store(o[r] + first + 16 * w, sum[r][w]);
  }
}

template <class elements, int rows>
TERRACE_TARGET inline void add_values(elements as, const float* p, const token_rows& values, token_run run,
                                      const rows_ahead& ahead, float* const* o) noexcept {
  constexpr int least = elements::vectors, width = max_rows > least ? max_rows : least;
  std::size_t d = 0;
  for (; d + 16 * width <= values.dim; d += 16 * width)
    add_values<elements, rows, width>(as, p, values, d, run, ahead, o);
  if constexpr (width > least)
    for (; d < values.dim; d += 16 * least)
      add_values<elements, rows, least>(as, p, values, d, run, ahead, o);
}

// Rows may see different tokens: each stretch of tokens is added to the rows that see it, and to no other.
template <class elements, int rows>
TERRACE_TARGET inline void add_visible_values(elements as, const float* p, const token_mask (&visible)[rows],
                                              const token_rows& values, token_mask any,
                                              const rows_ahead& ahead, float* const (&o)[rows]) noexcept {
  for (token_mask rest = any; rest != 0;) {
    const auto begin = static_cast<std::uint32_t>(std::countr_zero(rest));
    token_mask alike = rest, seeing = 0;
    for (int r = 0; r < rows; ++r) {
      const token_mask sees = (visible[r] >> begin) & 1;
      alike &= sees != 0 ? visible[r] : ~visible[r];
      seeing |= sees << r;
    }
    const token_run run = next_run(alike, begin);
    if (seeing == token_range(0, rows)) {
      add_values<elements, rows>(as, p, values, run, ahead, o);
    } else {
      for (std::size_t r = 0; r < rows; ++r)
        if (((seeing >> r) & 1) != 0)
          add_values<elements, 1>(as, p + r * score_stride, values, run, {}, o + r);
    }
    rest &= ~token_range(run.begin, run.end);
  }
}

// ---- one tile

struct tile {
  token_rows keys, values;  // from the tile's first token on
  std::uint64_t first_position;
  std::uint32_t tokens;
};

// Folds one tile into `rows` rows of the item, from the `first` on.
template <int rows>
TERRACE_TARGET inline void fold_rows(const attend_item& item, const tile& tile, std::size_t first) noexcept {
  const query_tile& queries = *item.queries;
  const float* q[rows];
  float* o[rows];
  std::size_t state_row[rows];
  token_mask visible[rows];
  token_mask any = 0;
  for (std::size_t r = 0; r < rows; ++r) {
    const auto query = item.first_query + static_cast<std::uint32_t>((first + r) / item.heads);
    const auto head = item.first_head + static_cast<std::uint32_t>((first + r) % item.heads);
    state_row[r] = queries.row(query, head);
    q[r] = queries.values(state_row[r]);
    o[r] = item.state->o(state_row[r]).data();
    visible[r] = visible_tokens(queries.shape().keep, queries.first_position() + query, tile.first_position,
                                tile.tokens);
    any |= visible[r];
  }
  if (any == 0) return;

  // The tile's values arrive while its first rows are scored, the next tile's keys during its last sums.
  const token_rows &keys = tile.keys, &values = tile.values;
  rows_ahead values_ahead, keys_ahead;
  if (first == 0) values_ahead = {values.first, values.stride, values.row_bytes()};
  if (first + rows == item.rows()) keys_ahead = {keys[item.tile_tokens], keys.stride, keys.row_bytes()};

  alignas(64) float scores[rows * score_stride] = {};
  read(keys, [&](auto as) TERRACE_TARGET { score(as, q, keys, any, values_ahead, scores); });
  for (std::size_t r = 0; r < rows; ++r) {
    if (visible[r] == 0) continue;
    const std::size_t row = state_row[r];
    const float rescale =
        weigh(visible[r], scores + r * score_stride, item.state->m(row), item.state->l(row));
    if (rescale == 1) continue;
    const f32x16 factor = splat(rescale);
    for (std::size_t d = 0; d < values.dim; d += 16) store(o[r] + d, mul(load(o[r] + d), factor));
  }
  read(values,
       [&](auto as) TERRACE_TARGET { add_visible_values(as, scores, visible, values, any, keys_ahead, o); });
}

TERRACE_TARGET inline void attend(const attend_item& item) noexcept {
  for (std::uint32_t begin = 0; begin < item.tokens; begin += item.tile_tokens) {
    tile part{item.keys, item.values, item.first_position + begin,
              std::min(item.tile_tokens, item.tokens - begin)};
    part.keys.first = item.keys[begin];
    part.values.first = item.values[begin];
    const std::size_t rows = item.rows();
    std::size_t row = 0;
    if constexpr (max_rows >= 4)
      for (; row + 4 <= rows; row += 4) fold_rows<4>(item, part, row);
    if constexpr (max_rows >= 2)
      for (; row + 2 <= rows; row += 2) fold_rows<2>(item, part, row);
    for (; row < rows; ++row) fold_rows<1>(item, part, row);
  }
}

}  // namespace terrace::kernels::TERRACE_ISA

#endif
