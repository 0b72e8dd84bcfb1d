// Included once for each instruction set (see core/for_each_isa.hpp): the arithmetic that attention/attend.hpp defines,
// in float. Whatever the shape of a register block, each row's sums are formed in the same order.
#if defined(TERRACE_ISA)

namespace terrace::kernels::TERRACE_ISA {

// Several rows share keys only up to this dimension, which bounds the stack space that their packed queries take.
inline constexpr std::size_t max_shared_dim = 1024;

// ---- elements: a reader loads 16 * vectors elements of a row, stored in `bytes`, from element d, a multiple of that

template <element_type T>
struct raw_elements {
  static constexpr std::size_t vectors = 1, bytes = 16 * sizeof(T);
  TERRACE_TARGET TERRACE_ALWAYS_INLINE static void load(const std::byte* row, std::size_t d,
                                                        f32x16* out) noexcept {
    out[0] = load_as<T>(row + d * sizeof(T));
  }
};

// The values that decoding q8_0 or q4_0 into elements of type T gives, so that it does not matter whether a
// block was decoded or is read in place.
template <element_type T>
struct q8_0_elements {
  static constexpr std::size_t vectors = 2, bytes = 34;
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
  static constexpr std::size_t vectors = 2, bytes = 18;
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

// Calls f with the reader for these rows. Each further combination costs every user compile time.
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

// A reader for rows of any kind, which dispatches anew for every sixteen elements. The set without register blocks
// uses it: that set is compiled everywhere, and is the slow one anyway.
struct any_elements {
  static constexpr std::size_t vectors = 1, bytes = 0;
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

// ---- scores

// Adds to sum[row][key] the products with `columns` keys, `stride` apart, and calls `each` before each step. `query`
// is [dim / 16][row][16].
template <class elements, int rows, std::size_t columns, class Each>
TERRACE_TARGET TERRACE_ALWAYS_INLINE void add_products(elements as, const float* query, std::size_t dim,
                                                       const std::byte* key, std::size_t stride, f32x16* sum,
                                                       Each each) noexcept {
  constexpr std::size_t vectors = elements::vectors;
  for (std::size_t d = 0; d < dim; d += 16 * vectors) {
    each();
    f32x16 q[vectors][rows];
    TERRACE_UNROLL
    for (std::size_t v = 0; v < vectors; ++v) {
      TERRACE_UNROLL
      for (std::size_t r = 0; r < rows; ++r, query += 16) q[v][r] = load(query);
    }
    TERRACE_UNROLL
    for (std::size_t c = 0; c < columns; ++c) {
      f32x16 k[vectors];
      as.load(key + c * stride, d, k);
      TERRACE_UNROLL
      for (std::size_t v = 0; v < vectors; ++v) {
        TERRACE_UNROLL
        for (std::size_t r = 0; r < rows; ++r)
          sum[r * columns + c] = fma(k[v], q[v][r], sum[r * columns + c]);
      }
    }
  }
}

// Sums of q . k for `blocks` blocks of as many keys as fill sums_per_block, as [block][row][key]. Not inlined: on its
// own it has enough registers for its addresses.
template <class elements, int rows>
[[gnu::noinline]] TERRACE_TARGET void score_blocks(elements as, const float* query, std::size_t dim,
                                                   const std::byte* key, std::size_t stride, rows_ahead ahead,
                                                   std::size_t blocks, float* out) noexcept {
  constexpr std::size_t columns = sums_per_block / rows;
  const std::size_t row_bytes = dim / (16 * elements::vectors) * elements::bytes;
  row_lines lines(key, ahead, row_bytes, stride);
  for (; blocks > 0; --blocks, key += columns * stride, out += sums_per_block) {
    f32x16 sum[sums_per_block];
    TERRACE_UNROLL
    for (int i = 0; i < sums_per_block; ++i) sum[i] = splat(0);
    if constexpr (rows == 1) {
      // One row is bound by memory: key after key, in memory order, which the hardware prefetcher follows too.
      TERRACE_UNROLL
      for (std::size_t c = 0; c < columns; ++c) {
        const std::byte* const at = key + c * stride;
        fetch_row(at + ahead.distance, row_bytes, ahead.into_second);
        add_products<elements, 1, 1>(as, query, dim, at, stride, sum + c, []() TERRACE_TARGET {});
      }
    } else {
      add_products<elements, rows, columns>(as, query, dim, key, stride, sum, [&]() TERRACE_TARGET {
        lines.template fetch_next<columns * elements::bytes>();
      });
    }
    store_sums(sum, out);
  }
}

// ---- values

// o[row] += p[row][token] * v[token] for a run of tokens in ascending order; `width` registers of each row,
// from element `first` on.
template <class elements, int rows, int width>
TERRACE_TARGET inline void add_values(elements as, const float* p, const token_rows& values,
                                      std::size_t first, token_run run, rows_ahead ahead,
                                      float* const* o) noexcept {
  f32x16 sum[rows][width];
  TERRACE_UNROLL
  for (int r = 0; r < rows; ++r) {
    TERRACE_UNROLL
    for (std::size_t w = 0; w < width; ++w) sum[r][w] = load(o[r] + first + 16 * w);
  }
  const std::size_t stride = values.stride;
  const std::size_t d = elements::bytes == 0 ? first : 0;
  const std::byte* row = values[run.begin] + first / (16 * elements::vectors) * elements::bytes;
  for (std::size_t t = run.begin; t < run.end; ++t, row += stride) {
    fetch_run<width / elements::vectors * elements::bytes>(row + ahead.distance, ahead.into_second);
    f32x16 v[width];
    TERRACE_UNROLL
    for (std::size_t w = 0; w < width; w += elements::vectors) as.load(row, d + 16 * w, v + w);
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
                                      rows_ahead ahead, float* const* o) noexcept {
  constexpr int least = elements::vectors,
                width = std::max(least, std::min(2 * max_rows, sums_per_block / rows));
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
                                              const token_rows& values, token_mask any, rows_ahead ahead,
                                              float* const (&o)[rows]) noexcept {
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

// ---- rows

template <int rows>
class float_rows {
 public:
  TERRACE_TARGET float_rows(const attend_item& item, std::size_t first) noexcept : of_(item, first) {
    if constexpr (rows > 1) {
      for (std::size_t d = 0; d < item.keys.dim; d += 16)
        for (std::size_t r = 0; r < rows; ++r) store(packed_ + d * rows + 16 * r, load(of_.query[r] + d));
    }
  }

  // Folds one tile. The first rows of an item to do so prefetch the next tile.
  [[gnu::noinline]] TERRACE_TARGET void fold(const tile& part, bool first) noexcept {
    token_mask visible[rows];
    const token_mask any = of_.see(part, visible);
    if (any == 0) return;
    const token_rows &keys = part.keys, &values = part.values;
    const tiles_ahead next = first ? after(part, of_.item) : tiles_ahead{};
    const float* const query = rows == 1 ? of_.query[0] : packed_;
    alignas(64) float scores[rows * score_stride];
    read(keys, [&](auto as) TERRACE_TARGET {
      score_tile<rows>(
          keys, part.tokens, any, next.keys, scores,
          [&](const std::byte* key, std::size_t stride, rows_ahead ahead, std::size_t blocks, float* out)
              TERRACE_TARGET {
                score_blocks<decltype(as), rows>(as, query, keys.dim, key, stride, ahead, blocks, out);
              });
    });
    float rescale[rows];
    weigh<rows>(visible, parts(part), scores, of_.m, of_.l, rescale);
    rescale_rows<rows>(of_.o, values.dim, rescale);
    read(values, [&](auto as) TERRACE_TARGET {
      add_visible_values(as, scores, visible, values, any, next.values, of_.o);
    });
  }

 private:
  item_rows<rows> of_;
  // The queries in the order in which they are used, [dim / 16][row][16]: one address leads to all of them.
  alignas(64) float packed_[rows == 1 ? 16 : rows * max_shared_dim];
};

// All rows in one group, as in most decodes.
template <int rows>
TERRACE_TARGET inline void attend_together(const attend_item& item) noexcept {
  float_rows<rows> group(item, 0);
  for (std::uint32_t begin = 0; begin < item.tokens; begin += item.tile_tokens)
    group.fold(tile_at(item, begin), true);
}

TERRACE_TARGET inline void attend_floats(const attend_item& item) noexcept {
  const std::size_t rows = item.rows();
  const std::size_t sharing = item.keys.dim <= max_shared_dim ? rows : 0;
  if constexpr (max_rows >= 4)
    if (sharing == 4) return attend_together<4>(item);
  for (std::uint32_t begin = 0; begin < item.tokens; begin += item.tile_tokens) {
    const tile part = tile_at(item, begin);
    for_each_rows(rows, sharing, [&](auto n, std::size_t row) TERRACE_TARGET {
      float_rows<decltype(n)::value>(item, row).fold(part, row == 0);
    });
  }
}

}  // namespace terrace::kernels::TERRACE_ISA

#endif
