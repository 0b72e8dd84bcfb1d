#pragma once
// Attention of open reservations, under way while everything else goes on. Part of testing/simulator.hpp.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "terrace/testing/simulator.hpp"

namespace terrace {
inline namespace TERRACE_EX {

inline void simulator::attend(const simulated_operation& o) {
  if (streams_.size() >= most_streams) return;
  const std::uint32_t layer = o.b % ladder_.setup.layout.layers();
  const layer_group& g = ladder_.setup.layout.groups[ladder_.setup.layout.group_of(layer)];
  const stream_options options{.window_bytes = o.c % 4 * ladder_.setup.layout.largest_block()};
  seeded_random random(o.c);
  std::vector<float> queries, expected;
  const auto ask = [&](const simulated_sequence& s) {
    std::vector<float> own(s.writing.size() * g.k.heads * g.k.dim);
    for (float& q : own) q = static_cast<float>(random.below(2001)) / 1000.0f - 1.0f;
    const std::vector<float> result = attended(s, layer, own);
    queries.insert(queries.end(), own.begin(), own.end());
    expected.insert(expected.end(), result.begin(), result.end());
  };
  if (simulated_batch* const b = pick_batch(o.a);
      b != nullptr && b->reserved && !b->streaming && o.c / 4 % 2 == 1) {
    for (std::size_t i = 0; i < b->members.size(); ++i)
      if (b->reserves(i)) ask(*b->members[i]);
    if (queries.empty()) return;
    streams_.emplace_back(std::move(queries), std::move(expected)).start(cache(), *b, layer, options);
  } else if (simulated_sequence* const s = pick_sequence(o.a); s != nullptr && s->open && !s->streaming) {
    ask(*s);
    streams_.emplace_back(std::move(queries), std::move(expected)).start(cache(), *s, layer, options);
  }
}

// In double, over every token that the sequence still has.
inline std::vector<float> simulator::attended(const simulated_sequence& s, std::uint32_t layer,
                                              const std::vector<float>& queries) const {
  const page_table& pages = s.tokens.pages();
  const std::uint32_t row = pages.row_of(layer).first;
  const layer_group& g = pages.group(row);
  std::vector<std::uint64_t> stamps = s.stamps;
  stamps.insert(stamps.end(), s.writing.begin(), s.writing.end());
  const std::size_t dim = g.k.dim, v_dim = g.v.dim;
  std::vector<float> out;
  for (std::size_t q = 0; q < s.writing.size(); ++q)
    for (std::uint32_t h = 0; h < g.k.heads; ++h) {
      std::vector<double> sum(v_dim);
      double mass = 0;
      for (std::size_t t = 0; t <= s.stamps.size() + q; ++t) {
        if (!pages.rows[row][t / g.tokens].valid()) continue;
        const std::vector<float> k = contents_.row(stamps[t], layer, false, h, dim);
        const std::vector<float> v = contents_.row(stamps[t], layer, true, h, v_dim);
        double logit = 0;
        for (std::size_t d = 0; d < dim; ++d)
          logit += double{queries[(q * g.k.heads + h) * dim + d]} * double{k[d]};
        const double p = std::exp(logit / std::sqrt(static_cast<double>(dim)));
        mass += p;
        for (std::size_t d = 0; d < v_dim; ++d) sum[d] += p * double{v[d]};
      }
      for (const double x : sum) out.push_back(static_cast<float>(x / mass));
    }
  return out;
}

inline void simulator::examine(simulated_stream& s) {
  if (s.failure) {
    const block_error& e = *s.failure;
    if (e.code == errc::out_of_capacity && e.lost.empty())
      ++counts.refused;
    else if (e.code != errc::lost || e.lost.empty())
      violate("a stream has failed in a way that is none: " + e.message());
    for (const lost_block& l : e.lost) {
      ++counts.lost;
      if (std::find(s.excused.begin(), s.excused.end(), l.id) == s.excused.end() && !explained(l.id, l.cause))
        violate("a stream has lost a block that no fault has struck: " + std::string(l.cause.message()));
    }
  } else if (s.stopped) {
    if (!s.asked_to_stop) violate("a stream has stopped, and nobody has asked it to");
  } else {
    ++counts.streams;
    const bool lossless = std::all_of(ladder_.rungs.begin(), ladder_.rungs.end(),
                                      [](const simulated_ladder::rung& r) { return r.codec.loss == 0; });
    for (std::size_t i = 0; i < s.out.size(); ++i)
      if (!(std::abs(s.out[i] - s.expected[i]) <= (lossless ? 1e-4f : 0.5f)))
        return violate("a stream has computed something else than attention");
  }
}

}  // namespace TERRACE_EX
}  // namespace terrace
