#pragma once
// What the tests of streams share: queries of chance, attention in double over what `pattern` wrote, and a decode.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

#include "catch.hpp"
#include "pattern.hpp"
#include "terrace/attention/stream.hpp"
#include "terrace/execution/sync_wait.hpp"
#include "terrace/medium/nvme.hpp"
#include "terrace/medium/ram.hpp"
#include "terrace/policy/lru.hpp"
#include "terrace/testing/scripted.hpp"
#include "terrace/tiered_cache.hpp"

namespace stream_test {

using namespace terrace;

inline constexpr std::uint32_t layers = 2, q_heads = 2, dim = 64;

inline std::vector<float> queries(std::size_t tokens, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<float> q(tokens * q_heads * dim);
  for (float& x : q) x = static_cast<float>(static_cast<int>(random() % 2001) - 1000) / 250.0f;
  return q;
}

// Full attention in double over what `pattern` wrote.
inline std::vector<double> reference(std::uint32_t tag, std::uint32_t layer, const std::vector<float>& q,
                                     std::uint64_t first, retention keep = {}, std::uint64_t forgotten = 0,
                                     const std::vector<bool>& left_out = {}) {
  const std::size_t tokens = q.size() / (q_heads * dim);
  std::vector<double> out(q.size());
  for (std::size_t t = 0; t < tokens; ++t)
    for (std::uint32_t h = 0; h < q_heads; ++h) {
      const float* row = q.data() + (t * q_heads + h) * dim;
      const std::uint64_t position = first + t;
      std::vector<double> p(position + 1, -INFINITY);
      double most = -INFINITY, sum = 0;
      for (std::uint64_t k = forgotten; k <= position; ++k) {
        if (keep.window != 0 && k >= keep.sinks && k + keep.window <= position) continue;
        if (k < left_out.size() && left_out[k]) continue;
        double s = 0;
        for (std::uint32_t d = 0; d < dim; ++d)
          s += static_cast<double>(row[d]) *
               static_cast<double>(to_float(pattern::element_at(tag, layer, false, 0, k, d)));
        p[k] = s / std::sqrt(static_cast<double>(dim));
        most = std::max(most, p[k]);
      }
      for (double& x : p) sum += x = std::exp(x - most);
      for (std::uint64_t k = 0; k <= position; ++k)
        for (std::uint32_t d = 0; d < dim; ++d)
          out[(t * q_heads + h) * dim + d] +=
              p[k] / sum * static_cast<double>(to_float(pattern::element_at(tag, layer, true, 0, k, d)));
    }
  return out;
}

inline double rel_l2(const std::vector<float>& got, const std::vector<double>& want) {
  double error = 0, norm = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    error += std::pow(static_cast<double>(got[i]) - want[i], 2);
    norm += want[i] * want[i];
  }
  return std::sqrt(error / norm);
}

// Appends tokens in chunks, attending each; returns all results of layer 1.
template <class Cache>
std::vector<float> decode(context& ctx, Cache& cache, const std::vector<std::uint32_t>& chunks,
                          unsigned seed = 1) {
  sequence s = cache.make_sequence();
  std::vector<float> all;
  std::uint32_t step = 0;
  for (const std::uint32_t n : chunks) {
    cache.advance_step(++step);
    auto r = s.reserve(n);
    REQUIRE(r);
    pattern::write(*r, layers, 1);
    for (std::uint32_t layer = 0; layer < layers; ++layer) {
      // A query depends on its position only, whatever the chunks.
      std::vector<float> q;
      for (std::uint32_t t = 0; t < n; ++t) {
        const auto one = queries(1, seed + static_cast<unsigned>(s.length()) + t);
        q.insert(q.end(), one.begin(), one.end());
      }
      std::vector<float> out(q.size());
      auto done = ctx.sync_wait(stream(cache, s, *r, layer, q, out));
      REQUIRE(done);
      if (layer == 1) all.insert(all.end(), out.begin(), out.end());
    }
    s.commit(std::move(*r), n);
  }
  return all;
}

using resident = tiered_cache<tier<ram>, lru>;
using ladder = tiered_cache<tier<ram>, tier<ram>, tier<nvme>, lru>;
using over_script = tiered_cache<tier<ram>, tier<scripted>, lru>;

}  // namespace stream_test
