#pragma once
// The functions of attention/select.hpp.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "terrace/attention/select.hpp"
#include "terrace/core/config.hpp"

namespace terrace {

namespace detail {

// Reads the newest blocks, and others in descending order of the mass that they can have, until
// `enough(read, missed)`.
template <class Enough>
block_selection select_blocks(const key_summaries& keys, std::span<const float> query, float scale,
                              const always_read& always, Enough enough) {
  struct candidate {
    double low, high;  // logarithms of the bounds of the block's sum of exponentials
    std::uint32_t block;
  };
  std::vector<candidate> order;
  for (std::uint32_t b = 0; b < keys.blocks(); ++b) {
    const auto logits = keys.bounds(b, query, scale);
    const double tokens = std::log(static_cast<double>(keys.tokens(b)));
    order.push_back({logits.low + tokens, logits.high + tokens, b});
  }
  const auto newest = static_cast<std::ptrdiff_t>(std::min<std::size_t>(always.newest, order.size()));
  std::rotate(order.begin(), order.end() - newest, order.end());
  std::sort(order.begin() + newest, order.end(), [](const candidate& a, const candidate& b) {
    return a.high != b.high ? a.high > b.high : a.block < b.block;
  });
  // Logarithms throughout: bounds of different blocks may lie thousands apart, where exponentials vanish.
  constexpr double nothing = -std::numeric_limits<double>::infinity();
  const auto plus = [](double a, double b) {
    const double more = std::max(a, b);
    return std::isinf(more) ? more : more + std::log1p(std::exp(std::min(a, b) - more));
  };
  std::vector<double> rest(order.size() + 1, nothing);  // the most that blocks from i on can have
  for (std::size_t i = order.size(); i-- > 0;) rest[i] = plus(rest[i + 1], order[i].high);

  block_selection out;
  double read = always.log_mass;  // the least that the read blocks have
  std::size_t i = 0;
  const auto missed = [&] {
    if (std::isinf(rest[i])) return rest[i] == nothing ? 0.0 : 1.0;
    return 1 / (1 + std::exp(read - rest[i]));
  };
  const auto first = static_cast<std::size_t>(newest);
  for (; i < order.size() && (i < first || !enough(i, missed())); ++i) {
    read = plus(read, order[i].low);
    out.blocks.push_back(order[i].block);
  }
  out.missed = missed();
  std::sort(out.blocks.begin(), out.blocks.end());
  return out;
}

}  // namespace detail

TERRACE_BODY block_selection top_k::operator()(const key_summaries& keys, std::span<const float> query,
                                               float scale, const always_read& always) const {
  return detail::select_blocks(keys, query, scale, always,
                               [this](std::size_t read, double) { return read >= k; });
}

TERRACE_BODY block_selection certified::operator()(const key_summaries& keys, std::span<const float> query,
                                                   float scale, const always_read& always) const {
  return detail::select_blocks(keys, query, scale, always,
                               [this](std::size_t, double missed) { return missed <= eps; });
}

}  // namespace terrace
