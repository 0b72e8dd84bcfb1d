// Included once for each instruction set (see core/for_each_isa.hpp): what both arithmetics of attention share, the
// rows of an item and their softmax.
#if defined(TERRACE_ISA)

namespace terrace::kernels::TERRACE_ISA {

using namespace simd::TERRACE_ISA;

// Query rows that share a key while it is in a register; with the tokens of a block they fill sums_per_block.
inline constexpr int max_rows = most_sum_rows;
inline constexpr std::size_t score_stride = max_tile_tokens;

struct tile {
  token_rows keys, values;  // from the tile's first token on
  std::uint64_t first_position;
  std::uint32_t tokens;
  std::uint32_t left;  // tokens from its first to the block's end
};

inline tile tile_at(const attend_item& item, std::uint32_t begin) noexcept {
  tile part{item.keys, item.values, item.first_position + begin,
            std::min(item.tile_tokens, item.tokens - begin), item.tokens - begin};
  part.keys.first = item.keys[begin];
  part.values.first = item.values[begin];
  return part;
}

// Where the rows that are read one tile later than those at hand lie, in this block or the next. A kernel prefetches
// them in between its arithmetic, which keeps memory busy all the time.
struct rows_ahead {
  std::ptrdiff_t distance = 0;  // bytes; 0 where it is not known
  bool into_second = true;      // cache: see misses_wait_in_second_cache()
};
struct tiles_ahead {
  rows_ahead keys, values;
};

inline tiles_ahead after(const tile& part, const attend_item& item) noexcept {
  const auto rows_after = [&](const token_rows& rows, const token_rows& next) noexcept {
    std::ptrdiff_t distance = 0;
    if (part.left > item.tile_tokens)
      distance = static_cast<std::ptrdiff_t>(item.tile_tokens * rows.stride);
    else if (next.first != nullptr && next.stride == rows.stride)
      distance = next.first - rows.first;
    return rows_ahead{distance, misses_wait_in_second_cache()};
  };
  return {rows_after(part.keys, item.next_keys), rows_after(part.values, item.next_values)};
}

// Prefetches `bytes` contiguous bytes.
template <std::size_t bytes>
TERRACE_ALWAYS_INLINE void fetch_run(const std::byte* first, bool into_second) noexcept {
  if constexpr (bytes > 0) {
    if (into_second) [[likely]] {
      TERRACE_UNROLL
      for (std::size_t b = 0; b < bytes; b += 64) __builtin_prefetch(first + b, 0, 2);
    } else {
      TERRACE_UNROLL
      for (std::size_t b = 0; b < bytes; b += 64) __builtin_prefetch(first + b, 0, 3);
    }
  }
}

// Prefetches a row.
TERRACE_ALWAYS_INLINE void fetch_row(const std::byte* first, std::size_t bytes, bool into_second) noexcept {
  if (into_second) [[likely]]
    for (std::size_t b = 0; b < bytes; b += 64) __builtin_prefetch(first + b, 0, 2);
  else
    for (std::size_t b = 0; b < bytes; b += 64) __builtin_prefetch(first + b, 0, 3);
}

// Prefetches what lies `ahead` of rows of `row_bytes`, `stride` apart, in memory order.
class row_lines {
 public:
  row_lines(const std::byte* first, rows_ahead ahead, std::size_t row_bytes, std::size_t stride) noexcept
      : at_(reinterpret_cast<std::uintptr_t>(first + ahead.distance)),
        end_(stride == row_bytes ? std::numeric_limits<std::uintptr_t>::max() : at_ + row_bytes),
        stride_(stride),
        gap_(stride - row_bytes),
        into_second_(ahead.into_second) {}
  template <std::size_t bytes>
  TERRACE_ALWAYS_INLINE void fetch_next() noexcept {
    fetch_run<bytes>(reinterpret_cast<const std::byte*>(at_), into_second_);
    at_ += bytes;
    if (at_ < end_) return;
    at_ = end_ + gap_;
    end_ += stride_;
  }

 private:
  std::uintptr_t at_;
  std::uintptr_t end_;  // of the row, unless the next one follows without a gap
  std::size_t stride_, gap_;
  bool into_second_;
};

// For a loop of `steps` steps, each of which reads `bytes` of each of `columns` rows: prefetches, in step i, as much
// of what lies `ahead` of them; in memory order where rows are contiguous, otherwise whole rows.
template <std::size_t columns, std::size_t bytes>
TERRACE_ALWAYS_INLINE void fetch_part(const std::byte* rows, rows_ahead ahead, std::size_t stride,
                                      std::size_t steps, std::size_t i) noexcept {
  const std::byte* const first = rows + ahead.distance;
  if (stride == steps * bytes)
    return fetch_run<columns * bytes>(first + i * columns * bytes, ahead.into_second);
  for (std::size_t c = i; c < columns; c += steps)
    fetch_row(first + c * stride, steps * bytes, ahead.into_second);
}

// Rows of an item that share each key and value while it is in a register.
template <int rows>
struct item_rows {
  const attend_item& item;
  std::uint64_t position[rows];
  const float* query[rows];
  float *m[rows], *l[rows], *o[rows];

  // The rows from `first` on.
  item_rows(const attend_item& of, std::size_t first) noexcept : item(of) {
    const query_tile& queries = *item.queries;
    for (std::size_t r = 0; r < rows; ++r) {
      const auto i = item.first_query + static_cast<std::uint32_t>((first + r) / item.heads);
      const auto head = item.first_head + static_cast<std::uint32_t>((first + r) % item.heads);
      const std::size_t row = queries.row(i, head);
      position[r] = queries.first_position() + i;
      query[r] = queries.values(row);
      m[r] = &item.state->m(row);
      l[r] = &item.state->l(row);
      o[r] = item.state->o(row).data();
    }
  }
  // Finds what each row sees of a tile; returns what any of them sees.
  token_mask see(const tile& part, token_mask (&visible)[rows]) const noexcept {
    token_mask any = 0;
    for (std::size_t r = 0; r < rows; ++r) {
      visible[r] = visible_tokens(item.queries->shape().keep, position[r], part.first_position, part.tokens);
      any |= visible[r];
    }
    return any;
  }
};

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

// Groups of sixteen tokens in a tile.
inline constexpr std::size_t max_parts = max_tile_tokens / 16;
inline std::size_t parts(const tile& part) noexcept { return (part.tokens + 15) / 16; }

// Turns the rows' scores of `parts` groups of sixteen tokens into exp(score - m), rounded to elements of type T, zero
// where a row does not see the token; updates m and l, and sets `rescale` to the factor for each row's output.
template <int rows, element_type T = float>
TERRACE_TARGET inline void weigh(const token_mask (&visible)[rows], std::size_t parts, float* scores,
                                 float* const (&m)[rows], float* const (&l)[rows],
                                 float (&rescale)[rows]) noexcept {
  f32x16 most[rows], total[rows], base[rows];
  float next[rows];
  TERRACE_UNROLL
  for (std::size_t r = 0; r < rows; ++r) {
    most[r] = splat(no_logit);
    total[r] = splat(0);
  }
  for (std::size_t i = 0; i < parts; ++i) {
    TERRACE_UNROLL
    for (std::size_t r = 0; r < rows; ++r) {
      const auto seen = static_cast<mask16>(visible[r] >> (16 * i));
      float* const at = scores + r * score_stride + 16 * i;
      const f32x16 bounded = min(splat(std::numeric_limits<float>::max()), load(at));
      const f32x16 score = select(seen, bounded, splat(no_logit));
      most[r] = max(most[r], score);
      store(at, score);
    }
  }
  TERRACE_UNROLL
  for (std::size_t r = 0; r < rows; ++r) {
    const float tile_m = largest(most[r]);
    next[r] = tile_m > *m[r] ? tile_m : *m[r];
    base[r] = splat(next[r] == no_logit ? 0.0f : next[r]);  // -inf - -inf would be a NaN
  }
  for (std::size_t i = 0; i < parts; ++i) {
    TERRACE_UNROLL
    for (std::size_t r = 0; r < rows; ++r) {
      const auto seen = static_cast<mask16>(visible[r] >> (16 * i));
      float* const at = scores + r * score_stride + 16 * i;
      const f32x16 weight = round_as<T>(select(seen, exp_nonpositive(sub(load(at), base[r])), splat(0)));
      total[r] = add(total[r], weight);
      store(at, weight);
    }
  }
  TERRACE_UNROLL
  for (std::size_t r = 0; r < rows; ++r) {
    rescale[r] = 1;
    if (*m[r] != next[r]) {
      alignas(64) float lanes[16];
      store(lanes, exp_nonpositive(sub(splat(*m[r]), base[r])));
      rescale[r] = lanes[0];
    }
    *l[r] = fma(*l[r], rescale[r], sum(total[r]));
    *m[r] = next[r];
  }
}

// scores[row][token] = q . k for the tokens of `mask`; the other entries are some number. `score_blocks(key, stride,
// ahead, blocks, out)` scores as many blocks of keys, each of which fills sums_per_block: [block][row][key].
template <int rows, class F>
TERRACE_TARGET inline void score_tile(const token_rows& keys, std::uint32_t tokens, token_mask mask,
                                      rows_ahead ahead, float* scores, F score_blocks) noexcept {
  constexpr std::uint32_t columns = sums_per_block / rows;
  for (std::uint32_t begin = 0; begin < tokens; begin += 16) {
    if ((mask >> begin & 0xffff) == 0) {
      for (std::size_t r = 0; r < rows; ++r) store(scores + r * score_stride + begin, splat(0));
      continue;
    }
    const std::uint32_t end = std::min(begin + 16, tokens), blocks = (end - begin) / columns;
    alignas(64) float sums[16 * rows] = {};  // [block of keys][row][key]
    score_blocks(keys[begin], keys.stride, ahead, blocks, sums);
    split_rows<rows>(sums, scores + begin, score_stride);
    // Keys that do not fill a block are done one by one: nothing past the last may be read.
    for (std::uint32_t t = begin + blocks * columns; t < end; ++t) {
      score_blocks(keys[t], std::size_t{0}, ahead, 1u, sums);
      for (std::size_t r = 0; r < rows; ++r) scores[r * score_stride + t] = sums[r * columns];
    }
  }
}

// o[row] *= rescale[row], for `dim` elements.
template <int rows>
TERRACE_TARGET inline void rescale_rows(float* const (&o)[rows], std::size_t dim,
                                        const float (&rescale)[rows]) noexcept {
  for (std::size_t r = 0; r < rows; ++r) {
    if (rescale[r] == 1) continue;
    const f32x16 factor = splat(rescale[r]);
    for (std::size_t d = 0; d < dim; d += 16) store(o[r] + d, mul(load(o[r] + d), factor));
  }
}

// Calls f(n, first row) for all rows of an item, where the n rows share keys.
template <class F>
TERRACE_TARGET TERRACE_ALWAYS_INLINE void for_each_rows(std::size_t rows, std::size_t sharing, F f) noexcept {
  std::size_t row = 0;
  if constexpr (max_rows >= 4)
    for (; row + 4 <= sharing; row += 4) f(std::integral_constant<int, 4>{}, row);
  if constexpr (max_rows >= 2)
    for (; row + 2 <= sharing; row += 2) f(std::integral_constant<int, 2>{}, row);
  for (; row < rows; ++row) f(std::integral_constant<int, 1>{}, row);
}

}  // namespace terrace::kernels::TERRACE_ISA

#endif
