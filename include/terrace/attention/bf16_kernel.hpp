// Included once, for AVX-512 with its products of bf16 (see core/for_each_isa.hpp): attention over raw bf16 blocks as
// attention/attention_arithmetic.hpp defines it. One instruction multiplies 32 elements as they are stored, adds the
// products in pairs, and adds those to sixteen floats: twice the arithmetic of FMA, and nothing to convert.
#if defined(TERRACE_ISA)

namespace terrace::kernels::TERRACE_ISA {

// ---- pairs of bf16

struct bf16_pairs {
  __m512i v;
};
TERRACE_TARGET TERRACE_ALWAYS_INLINE bf16_pairs load_pairs(const void* p) noexcept {
  return {_mm512_loadu_si512(p)};
}
TERRACE_TARGET TERRACE_ALWAYS_INLINE bf16_pairs splat_pair(const std::uint16_t* p) noexcept {
  std::int32_t pair;
  std::memcpy(&pair, p, sizeof pair);
  return {_mm512_set1_epi32(pair)};
}
// Adds a[2 * i] * b[2 * i] + a[2 * i + 1] * b[2 * i + 1] to sum[i].
TERRACE_TARGET TERRACE_ALWAYS_INLINE f32x16 dot(f32x16 sum, bf16_pairs a, bf16_pairs b) noexcept {
  return {_mm512_dpbf16_ps(sum.v, reinterpret_cast<__m512bh>(a.v), reinterpret_cast<__m512bh>(b.v))};
}
// Sixteen floats as bf16, rounded.
TERRACE_TARGET TERRACE_ALWAYS_INLINE void store_bf16(std::uint16_t* p, f32x16 v) noexcept {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v.v)));
}
// The pairs (a[d], b[d]), in the order that in_order undoes.
TERRACE_TARGET TERRACE_ALWAYS_INLINE void pair_up(bf16_pairs a, bf16_pairs b, bf16_pairs (&out)[2]) noexcept {
  out[0] = {_mm512_unpacklo_epi16(a.v, b.v)};
  out[1] = {_mm512_unpackhi_epi16(a.v, b.v)};
}

// ---- scores

// Sums of q . k for `blocks` blocks of as many keys as fill sums_per_block, as [block][row][key]. `queries` is
// [dim / 32][leading, rest][row][32], of which `parts` are used.
template <int rows, int parts>
[[gnu::noinline]] TERRACE_TARGET void score_pairs(const std::uint16_t* queries, std::size_t dim,
                                                  const std::byte* key, std::size_t stride, rows_ahead ahead,
                                                  std::size_t blocks, float* out) noexcept {
  constexpr std::size_t columns = sums_per_block / rows;
  row_lines lines(key, ahead, dim * sizeof(bf16), stride);
  for (; blocks > 0; --blocks, key += columns * stride, out += sums_per_block) {
    f32x16 sum[sums_per_block];
    TERRACE_UNROLL
    for (int i = 0; i < sums_per_block; ++i) sum[i] = splat(0);
    const std::uint16_t* q = queries;
    for (std::size_t d = 0; d < dim; d += 32, q += 64 * rows) {
      lines.template fetch_next<columns * 64>();
      bf16_pairs of[parts][rows];
      TERRACE_UNROLL
      for (std::size_t p = 0; p < parts; ++p) {
        TERRACE_UNROLL
        for (std::size_t r = 0; r < rows; ++r) of[p][r] = load_pairs(q + 32 * (p * rows + r));
      }
      TERRACE_UNROLL
      for (std::size_t c = 0; c < columns; ++c) {
        const bf16_pairs k = load_pairs(key + c * stride + d * sizeof(bf16));
        TERRACE_UNROLL
        for (std::size_t p = 0; p < parts; ++p) {
          TERRACE_UNROLL
          for (std::size_t r = 0; r < rows; ++r)
            sum[r * columns + c] = dot(sum[r * columns + c], k, of[p][r]);
        }
      }
    }
    store_sums(sum, out);
  }
}

// Queries without the scale of the logits: where they were bf16, as a model's are, they are so again, and one bf16
// is enough. Otherwise they are the sum of two.
template <int rows>
class bf16_queries {
 public:
  TERRACE_TARGET bf16_queries(const float* const (&query)[rows], std::size_t key_dim,
                              float logit_scale) noexcept
      : dim_(key_dim), scale_(logit_scale) {
    float unscale = 1 / scale_;
    if (!(std::fabs(unscale) <= std::numeric_limits<float>::max())) scale_ = unscale = 1;
    for (std::size_t r = 0; r < rows; ++r) {
      for (std::size_t d = 0; d < key_dim; d += 16) {
        const f32x16 q = mul(load(query[r] + d), splat(unscale));
        std::uint16_t* const to = values_ + d / 32 * 64 * rows + 32 * r + d % 32;
        store_bf16(to, q);
        const f32x16 leading = load_as<bf16>(reinterpret_cast<const std::byte*>(to)), rest = sub(q, leading);
        // What rounding to float has left behind is not worth a product.
        const mask16 counts = less(mul(abs(leading), splat(0x1p-20f)), abs(rest));
        have_rest_ |= counts != 0;
        store_bf16(to + 32 * rows, select(counts, rest, splat(0)));
      }
    }
  }

  // The logits of `blocks` blocks of keys, as [block][row][key].
  TERRACE_TARGET void score(const std::byte* key, std::size_t stride, rows_ahead ahead, std::size_t blocks,
                            float* out) const noexcept {
    (have_rest_ ? score_pairs<rows, 2> : score_pairs<rows, 1>)(values_, dim_, key, stride, ahead, blocks,
                                                               out);
    for (std::size_t i = 0; i < blocks * sums_per_block; i += 16)
      store(out + i, mul(load(out + i), splat(scale_)));
  }

 private:
  alignas(64) std::uint16_t values_[2 * rows * max_bf16_dim];  // as score_pairs takes them
  std::size_t dim_;
  float scale_;
  bool have_rest_ = false;
};

// ---- values

alignas(64) inline constexpr std::byte zero_line[64] = {};

// Weights of a row: those of a tile, and zeros, because a pair may begin with the last of them.
inline constexpr std::size_t weight_stride = max_tile_tokens + 16;

// o[row] += the weighted values of a run of tokens, for `width` times 32 dimensions from `first` on. Values are
// multiplied two tokens at a time; the last of an odd number beside zeros.
template <int rows, int width>
[[gnu::noinline]] TERRACE_TARGET void add_pairs(const std::uint16_t* weights, const token_rows& values,
                                                std::size_t first, token_run run, rows_ahead ahead,
                                                float* const* o) noexcept {
  f32x16 sum[rows][2 * width];
  TERRACE_UNROLL
  for (std::size_t r = 0; r < rows; ++r) {
    TERRACE_UNROLL
    for (std::size_t w = 0; w < 2 * width; ++w) sum[r][w] = splat(0);
  }
  const std::size_t stride = values.stride;
  const std::byte* row = values[run.begin] + first * sizeof(bf16);
  const std::uint16_t* weight = weights + run.begin;
  const auto step = [&](auto both) TERRACE_TARGET {
    fetch_run<width * 64>(row + ahead.distance, ahead.into_second);
    if constexpr (both) fetch_run<width * 64>(row + stride + ahead.distance, ahead.into_second);
    TERRACE_UNROLL
    for (std::size_t w = 0; w < width; ++w) {
      bf16_pairs v[2];
      pair_up(load_pairs(row + 64 * w), load_pairs(both ? row + stride + 64 * w : zero_line), v);
      TERRACE_UNROLL
      for (std::size_t r = 0; r < rows; ++r) {
        const bf16_pairs pair = splat_pair(weight + r * weight_stride);
        sum[r][2 * w] = dot(sum[r][2 * w], v[0], pair);
        sum[r][2 * w + 1] = dot(sum[r][2 * w + 1], v[1], pair);
      }
    }
  };
  for (std::uint32_t t = run.begin + 1; t < run.end; t += 2, row += 2 * stride, weight += 2)
    step(std::true_type{});
  if ((run.end - run.begin) % 2 != 0) step(std::false_type{});
  TERRACE_UNROLL
  for (std::size_t r = 0; r < rows; ++r) {
    TERRACE_UNROLL
    for (std::size_t w = 0; w < width; ++w) {
      f32x16 low = sum[r][2 * w], high = sum[r][2 * w + 1];
      in_order(low, high);
      float* const to = o[r] + first + 32 * w;
      store(to, add(load(to), low));
      store(to + 16, add(load(to + 16), high));
    }
  }
}

// ---- rows

template <int rows>
class bf16_rows {
 public:
  TERRACE_TARGET bf16_rows(const attend_item& item, std::size_t first) noexcept
      : of_(item, first), queries_(of_.query, item.keys.dim, item.queries->shape().logit_scale()) {}

  // Folds one tile. The first rows of an item to do so prefetch the next tile.
  [[gnu::noinline]] TERRACE_TARGET void fold(const tile& part, bool first) noexcept {
    token_mask visible[rows];
    const token_mask any = of_.see(part, visible);
    if (any == 0) return;
    const tiles_ahead next = first ? after(part, of_.item) : tiles_ahead{};
    alignas(64) float scores[rows * score_stride];
    score_tile<rows>(part.keys, part.tokens, any, next.keys, scores,
                     [&](const std::byte* key, std::size_t stride, rows_ahead ahead, std::size_t blocks,
                         float* out) TERRACE_TARGET { queries_.score(key, stride, ahead, blocks, out); });
    float rescale[rows];
    weigh<rows, bf16>(visible, parts(part), scores, of_.m, of_.l, rescale);
    rescale_rows<rows>(of_.o, part.values.dim, rescale);
    alignas(64) std::uint16_t weights[rows][weight_stride];
    for (std::size_t r = 0; r < rows; ++r) {
      for (std::size_t t = 0; t < 16 * parts(part); t += 16)
        store_bf16(weights[r] + t, load(scores + r * score_stride + t));
      store_bf16(weights[r] + 16 * parts(part), splat(0));
    }
    // Tokens are paired by what a row sees, so that its bits do not depend on what others see.
    if (std::all_of(visible, visible + rows, [&](token_mask m) { return m == any; }))
      return add<rows>(weights[0], part.values, any, next.values, of_.o);
    for (std::size_t r = 0; r < rows; ++r) add<1>(weights[r], part.values, visible[r], {}, of_.o + r);
  }

 private:
  // Adds the values of the tokens of a mask to `n` rows.
  template <int n>
  TERRACE_TARGET static void add(const std::uint16_t* weights, const token_rows& values, token_mask seen,
                                 rows_ahead ahead, float* const* o) noexcept {
    while (seen != 0) {
      const token_run run = next_run(seen, static_cast<std::uint32_t>(std::countr_zero(seen)));
      std::size_t d = 0;
      for (; d + 64 <= values.dim; d += 64) add_pairs<n, 2>(weights, values, d, run, ahead, o);
      if (d < values.dim) add_pairs<n, 1>(weights, values, d, run, ahead, o);
      seen &= ~token_range(run.begin, run.end);
    }
  }

  item_rows<rows> of_;
  bf16_queries<rows> queries_;
};

TERRACE_TARGET inline void attend_bf16(const attend_item& item) noexcept {
  const std::size_t rows = item.rows();
  if (rows == 4) {  // as in most decodes: the queries are rounded once
    bf16_rows<4> all(item, 0);
    for (std::uint32_t begin = 0; begin < item.tokens; begin += item.tile_tokens)
      all.fold(tile_at(item, begin), true);
    return;
  }
  for (std::uint32_t begin = 0; begin < item.tokens; begin += item.tile_tokens) {
    const tile part = tile_at(item, begin);
    for_each_rows(rows, rows, [&](auto n, std::size_t row) TERRACE_TARGET {
      bf16_rows<decltype(n)::value>(item, row).fold(part, row == 0);
    });
  }
}

inline bool computes_in_bf16(const attend_item& item) noexcept {
  const auto fits = [](const token_rows& rows) noexcept {
    return rows.type == element::bf16 && rows.encoding == block_encoding::raw && rows.dim % 32 == 0 &&
           rows.dim <= max_bf16_dim;
  };
  return item.queries->shape().arithmetic == attention_arithmetic::bf16 && fits(item.keys) &&
         fits(item.values) && has_bf16_products();
}

}  // namespace terrace::kernels::TERRACE_ISA

#endif
