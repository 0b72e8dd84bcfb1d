#pragma once
// Keys, values and queries of a ragged set of sequences as the kernels take them, and attention in double beside it.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "terrace/attention/partial_state.hpp"
#include "terrace/attention/visible_tokens.hpp"
#include "terrace/codec/fp8.hpp"
#include "terrace/codec/q4_0.hpp"
#include "terrace/codec/q8_0.hpp"
#include "terrace/core/element.hpp"
#include "terrace/core/layout.hpp"
#include "terrace/cuda/attention.hpp"
#include "terrace/cuda/block_context.hpp"

/// One sequence of a test.
struct sequence_of {
  std::int32_t tokens = 0;          ///< in the table
  std::int64_t first_position = 0;  ///< of the table
  std::int32_t queries = 1;         ///< the last of them stands on the last token
};

/// T is the type of queries and of raw elements.
template <class T, terrace::block_encoding encoding = terrace::block_encoding::raw>
struct paged_kv {
  using element_type = T;
  static constexpr terrace::block_encoding stored_as = encoding;
  /// An element of a query (token: its position), a key or a value.
  using generator =
      std::function<float(char which, std::uint32_t head, std::int64_t position, std::uint32_t d)>;

  paged_kv(terrace::layer_group g, std::uint32_t heads, std::vector<sequence_of> of, const generator& value)
      : group(g), q_heads(heads), sequences(std::move(of)) {
    group.k.type = group.v.type = terrace::element_of<T>;
    for (const sequence_of& s : sequences) {
      for (std::int32_t token = 0; token < s.tokens; token += static_cast<std::int32_t>(group.tokens))
        add_block(s, token, value);
      indptr.push_back(static_cast<std::int32_t>(pointers.size()));
      const auto page = static_cast<std::int32_t>(group.tokens);
      last_page_len.push_back(s.tokens == 0 ? 0 : (s.tokens - 1) % page + 1);
      first_position.push_back(s.first_position);
      for (std::int32_t i = 0; i < s.queries; ++i)
        for (std::uint32_t h = 0; h < q_heads; ++h)
          for (std::uint32_t d = 0; d < group.k.dim; ++d)
            queries.push_back(terrace::from_float<T>(value('q', h, position_of(s, i), d)));
      query_indptr.push_back(query_indptr.back() + s.queries);
      query_position.push_back(position_of(s, 0));
      most_queries = std::max(most_queries, static_cast<std::uint32_t>(s.queries));
    }
  }

  static std::int64_t position_of(const sequence_of& s, std::int32_t query) {
    return s.first_position + s.tokens - s.queries + query;
  }
  std::size_t rows() const { return static_cast<std::size_t>(query_indptr.back()) * q_heads; }

  /// The arguments of the kernel; results go to `states`, which it sizes.
  terrace::cuda::attention_args args(std::uint32_t split_blocks) {
    std::int32_t blocks = 0;
    for (std::size_t s = 0; s < sequences.size(); ++s) blocks = std::max(blocks, indptr[s + 1] - indptr[s]);
    const std::uint32_t splits = terrace::cuda::splits_for(static_cast<std::uint32_t>(blocks), split_blocks);
    scalars.assign(rows() * splits, {77, 77});
    outputs.assign(rows() * splits * group.v_dim(), std::numeric_limits<float>::quiet_NaN());
    // An array of its own, which is not there for device code to be read beyond.
    return {.page = terrace::cuda::page_of(group, 0, encoding),
            .table = {.blocks = {.pointers = pointers.data()},
                      .indptr = indptr.data(),
                      .last_page_len = last_page_len.data(),
                      .first_position = first_position.data(),
                      .sequences = static_cast<std::uint32_t>(sequences.size())},
            .queries = {.values = queries.data(),
                        .indptr = query_indptr.data(),
                        .first_position = query_position.data(),
                        .q_heads = q_heads,
                        .most = most_queries},
            .out = {.rows = scalars.data(), .o = outputs.data(), .splits = splits},
            .keep = group.keep,
            .split_blocks = split_blocks};
  }

  /// The splits of a row merged on the host: o / l.
  std::vector<float> merged(std::size_t row, std::uint32_t splits) const {
    terrace::partial_state state;
    static_cast<void>(state.reset(1, group.v_dim()));
    for (std::size_t s = row * splits; s < (row + 1) * splits; ++s)
      state.merge_row(0, scalars[s], {outputs.data() + s * group.v_dim(), group.v_dim()});
    std::vector<float> out(group.v_dim());
    state.finish_row(0, std::span<float>(out));
    return out;
  }

  /// Logit of a query's head and a key; token counts from the table's start.
  double logit(std::size_t s, std::int32_t query, std::uint32_t head, std::int32_t token) const {
    const T* const q =
        queries.data() + (static_cast<std::size_t>(query_indptr[s] + query) * q_heads + head) * group.k.dim;
    double sum = 0;
    for (std::uint32_t d = 0; d < group.k.dim; ++d)
      sum +=
          double{terrace::to_float(q[d])} * element_at(s, false, head / (q_heads / group.k.heads), token, d);
    return sum / std::sqrt(double{static_cast<float>(group.k.dim)});
  }
  bool sees(std::size_t s, std::int32_t query, std::int32_t token) const {
    const auto at = static_cast<std::uint64_t>(sequences[s].first_position + token);
    return terrace::visible_tokens(group.keep, static_cast<std::uint64_t>(position_of(sequences[s], query)),
                                   at, 1) != 0;
  }
  /// Attention of one row in double.
  std::vector<double> reference(std::size_t s, std::int32_t query, std::uint32_t head) const {
    double most = -std::numeric_limits<double>::infinity(), sum = 0;
    std::vector<double> out(group.v_dim()), logits(static_cast<std::size_t>(sequences[s].tokens));
    for (std::int32_t t = 0; t < sequences[s].tokens; ++t)
      if (sees(s, query, t))
        most = std::max(most, logits[static_cast<std::size_t>(t)] = logit(s, query, head, t));
    for (std::int32_t t = 0; t < sequences[s].tokens; ++t) {
      if (!sees(s, query, t)) continue;
      const double p = std::exp(logits[static_cast<std::size_t>(t)] - most);
      sum += p;
      for (std::uint32_t d = 0; d < out.size(); ++d)
        out[d] += p * element_at(s, true, head / (q_heads / group.k.heads), t, d);
    }
    for (double& x : out) x = sum > 0 ? x / sum : 0;
    return out;
  }
  /// The largest distance of a row from the reference, relative to the length of the reference's row.
  double error(std::uint32_t splits) const {
    double worst = 0;
    for (std::size_t s = 0; s < sequences.size(); ++s)
      for (std::int32_t i = 0; i < sequences[s].queries; ++i)
        for (std::uint32_t h = 0; h < q_heads; ++h) {
          const auto exact = reference(s, i, h);
          const auto got = merged(static_cast<std::size_t>(query_indptr[s] + i) * q_heads + h, splits);
          double distance = 0, length = 0;
          for (std::size_t d = 0; d < exact.size(); ++d) {
            distance += (exact[d] - double{got[d]}) * (exact[d] - double{got[d]});
            length += exact[d] * exact[d];
          }
          const double relative = std::sqrt(distance) / std::max(std::sqrt(length), 1e-30);
          if (!(relative <= worst)) worst = relative;  // a NaN stays
        }
    return worst;
  }

  terrace::layer_group group;
  std::uint32_t q_heads;
  std::vector<sequence_of> sequences;
  std::vector<std::unique_ptr<terrace::cuda::vec16[]>> memory;
  std::vector<void*> pointers;
  std::vector<std::vector<T>> decoded;  // [entry], in the order hnd or nhd of the group
  std::vector<std::int32_t> indptr{0}, last_page_len, query_indptr{0};
  std::vector<std::int64_t> first_position, query_position;
  std::vector<T> queries;
  std::uint32_t most_queries = 1;
  std::vector<terrace::softmax_row> scalars;
  std::vector<float> outputs;

 private:
  void add_block(const sequence_of& s, std::int32_t first, const generator& value) {
    using namespace terrace;
    std::vector<T> raw(group.block_bytes() / sizeof(T));
    for (const bool values : {false, true}) {
      if (values && !group.v.present()) continue;
      const plane& p = values ? group.v : group.k;
      for (std::uint32_t h = 0; h < p.heads; ++h)
        for (std::uint32_t t = 0; t < group.tokens; ++t)
          for (std::uint32_t d = 0; d < p.dim; ++d) {
            const std::int64_t position = s.first_position + first + t;
            const bool there = first + static_cast<std::int32_t>(t) < s.tokens;
            raw[offset(values, h, t, d)] = there ? from_float<T>(value(values ? 'v' : 'k', h, position, d))
                                                 : from_float<T>(std::numeric_limits<float>::quiet_NaN());
          }
    }
    std::vector<std::byte> stored(group.block_bytes());
    std::memcpy(stored.data(), raw.data(), stored.size());
    if constexpr (encoding != block_encoding::raw) stored = encode(raw, s.tokens - first);
    // Exactly its bytes: block sizes here are multiples of 16.
    memory.emplace_back(new cuda::vec16[stored.size() / 16]);
    std::memcpy(memory.back().get(), stored.data(), stored.size() / 16 * 16);
    pointers.push_back(memory.back().get());
    decoded.push_back(std::move(raw));
  }
  // Encodes, leaves the decoded values in `raw`, and makes scales behind the last token NaN.
  std::vector<std::byte> encode(std::vector<T>& raw, std::int32_t valid) const {
    using namespace terrace;
    using codec = std::conditional_t<encoding == block_encoding::q8_0, q8_0,
                                     std::conditional_t<encoding == block_encoding::q4_0, q4_0, fp8>>;
    std::vector<std::byte> out(codec::max_encoded_size(group));
    static_cast<void>(codec::encode(group, std::as_bytes(std::span(raw)), out));
    static_cast<void>(codec::decode(group, out, std::as_writable_bytes(std::span(raw))));
    const std::size_t row = encoded_bytes(group.k.dim * sizeof(T), group.k.type, encoding);
    if (group.order == page_order::hnd)
      for (std::size_t at = 0; at < 2 * std::size_t{group.k.heads} * group.tokens; ++at)
        if (static_cast<std::int32_t>(at % group.tokens) >= valid)
          std::memset(out.data() + at * row, 0xff, row);
    return out;
  }
  std::size_t offset(bool values, std::uint32_t head, std::uint32_t token, std::uint32_t d) const {
    const terrace::plane& p = values && group.v.present() ? group.v : group.k;
    return ((values && group.v.present() ? group.v_offset() : 0) + head * group.head_stride(p) +
            token * group.token_stride(p)) /
               sizeof(T) +
           d;
  }
  double element_at(std::size_t s, bool values, std::uint32_t head, std::int32_t token,
                    std::uint32_t d) const {
    const auto t = static_cast<std::uint32_t>(token);
    const auto entry = static_cast<std::size_t>(indptr[s]) + t / group.tokens;
    return double{terrace::to_float(decoded[entry][offset(values, head, t % group.tokens, d)])};
  }
};

/// Gaussian elements that are a function of their place alone.
inline float gaussian_at(char which, std::uint32_t head, std::int64_t position, std::uint32_t d) {
  std::uint64_t x = static_cast<std::uint64_t>(which) << 56 ^ std::uint64_t{head} << 40 ^
                    static_cast<std::uint64_t>(position) << 12 ^ d;
  double sum = 0;
  for (int i = 0; i < 4; ++i) {
    x = (x ^ x >> 31) * 0x9e3779b97f4a7c15u + 0x2545f4914f6cdd1du;
    sum += static_cast<double>(x >> 11) * 0x1p-53;
  }
  return static_cast<float>((sum - 2) * 1.7320508);
}
