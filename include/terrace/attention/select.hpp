#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <span>
#include <vector>

#include "terrace/core/config.hpp"
#include "terrace/core/convert.hpp"
#include "terrace/core/element.hpp"

namespace terrace {

/// For each block of one row and KV head: the smallest and the largest value of each channel of its keys (the summary
/// of Quest, J. Tang et al., ICML 2024), and how far the farthest key lies from the middle of these; 8 bytes per
/// channel and 8 per block. They bound a query's logits over the block without reading it.
class key_summaries {
 public:
  explicit key_summaries(std::uint32_t dim) : dim_(dim) {}

  std::uint32_t dim() const noexcept { return dim_; }
  std::size_t blocks() const noexcept { return tokens_.size(); }
  std::uint32_t tokens(std::size_t block) const noexcept { return tokens_[block]; }
  /// What the summaries take in memory.
  std::size_t bytes() const noexcept {
    return blocks() * (dim_ * sizeof(channel) + sizeof(float) + sizeof(std::uint32_t));
  }

  /// Appends a block: its keys as attention sees them (with positions encoded), [token][dim]. Precondition: at least
  /// one token, whole tokens, no NaN. O(elements).
  template <element_type T>
  void add(std::span<const T> keys) {
    TERRACE_ASSERT(!keys.empty() && keys.size() % dim_ == 0, "a block has whole tokens, and at least one");
    const std::size_t at = bounds_.size();
    bounds_.resize(at + dim_);
    row_.resize(dim_);
    const auto for_each_key = [&](auto&& f) {
      for (std::size_t first = 0; first < keys.size(); first += dim_) {
        convert(keys.subspan(first, dim_), std::span<float>(row_));
        f();
      }
    };
    const std::span<channel> box = std::span(bounds_).subspan(at);
    for_each_key([&] {
      for (std::size_t d = 0; d < dim_; ++d) {
        box[d].low = std::min(box[d].low, row_[d]);
        box[d].high = std::max(box[d].high, row_[d]);
      }
    });
    double farthest = 0;
    for_each_key([&] {
      double square = 0;
      for (std::size_t d = 0; d < dim_; ++d) square += std::pow(double{row_[d]} - box[d].middle(), 2);
      farthest = std::max(farthest, square);
    });
    // Rounded up: no key may lie outside.
    radius_.push_back(std::nextafter(static_cast<float>(std::sqrt(farthest)), infinity));
    tokens_.push_back(static_cast<std::uint32_t>(keys.size() / dim_));
  }

  /// Bounds of scale * <query, key> over all keys of a block. The keys lie in a box and in a ball around its centre,
  /// so the product with a key differs from that with the centre by at most the sum of |q| * half the channel's
  /// width, and by at most the norm of q times the radius. In many dimensions the ball is the tighter of the two.
  /// O(dim).
  struct logit_bounds {
    double low = 0, high = 0;
  };
  logit_bounds bounds(std::size_t block, std::span<const float> query, float scale) const noexcept {
    const channel* const box = bounds_.data() + block * dim_;
    double centre = 0, in_box = 0, norm = 0;
    for (std::size_t d = 0; d < dim_; ++d) {
      const double x = double{scale} * double{query[d]};
      centre += x * box[d].middle();
      in_box += std::abs(x) * (double{box[d].high} - double{box[d].low});
      norm += x * x;
    }
    const double most = std::min(in_box / 2, std::sqrt(norm) * double{radius_[block]});
    // Not numbers: a key or the query is not finite, and any logit is possible.
    if (!(centre - most <= centre + most))
      return {-std::numeric_limits<double>::infinity(), std::numeric_limits<double>::infinity()};
    return {centre - most, centre + most};
  }

 private:
  static constexpr float infinity = std::numeric_limits<float>::infinity();
  struct channel {
    float low = infinity, high = -infinity;
    double middle() const noexcept { return (double{low} + double{high}) / 2; }
  };
  std::uint32_t dim_;
  std::vector<channel> bounds_;  // [block][channel]
  std::vector<float> radius_;    // around the middle of the channels
  std::vector<std::uint32_t> tokens_;
  std::vector<float> row_;  // scratch: a key
};

/// What a query always reads.
struct always_read {
  std::uint32_t newest = 0;  ///< how many of the last blocks
  /// The `log_mass` of keys that are in none of the blocks, such as those of the block being written.
  double log_mass = -std::numeric_limits<double>::infinity();
};

/// The logarithm of the sum of exponentials of scale * <query, key> over `keys`, [token][dim], which the caller
/// always reads; -infinity for none. O(elements).
template <element_type T>
double log_mass(std::span<const T> keys, std::span<const float> query, float scale) {
  constexpr double nothing = -std::numeric_limits<double>::infinity();
  std::vector<float> key(query.size());
  double most = nothing, sum = 0;  // of exp(logit - most)
  for (std::size_t first = 0; first < keys.size(); first += query.size()) {
    convert(keys.subspan(first, query.size()), std::span<float>(key));
    double dot = 0;
    for (std::size_t d = 0; d < key.size(); ++d) dot += double{query[d]} * double{key[d]};
    const double logit = double{scale} * dot;
    if (logit > most) sum *= std::exp(most - logit);
    most = std::max(most, logit);
    sum += std::exp(logit - most);
  }
  return sum > 0 ? most + std::log(sum) : nothing;
}

/// Which blocks a query should read, and how much of the softmax mass it may miss.
struct block_selection {
  std::vector<std::uint32_t> blocks;  ///< ascending
  double missed = 0;                  ///< proven: blocks not read have at most this share of the mass
};

/// Reads the k blocks that can have the most mass, counting those that are always read; `missed` says what this may
/// cost, but nothing keeps it small.
struct top_k {
  std::size_t k = 16;
  /// One query of `keys.dim()` elements. O(blocks * (dim + log blocks)).
  block_selection operator()(const key_summaries& keys, std::span<const float> query, float scale,
                             const always_read& always = {}) const;
};

/// Reads as many blocks as it takes to be sure that the others have at most `eps` of the softmax mass.
///
/// Why this holds: let block b have n_b keys, whose logits lie in [l_b, h_b]. Its sum of exponentials Z_b then lies
/// in [n_b exp(l_b), n_b exp(h_b)]. With U the sum of Z_b over unread blocks and R that over read ones, the share
/// missed is U / (U + R), which grows with U and falls with R. So it is at most U' / (U' + R'), with U' the sum of
/// n_b exp(h_b) over the unread and R' that of n_b exp(l_b) over the read. Each block that is read makes U' smaller
/// and R' larger, and with all read U' is 0, so it ends.
///
/// How far off the result may be: attention over only the read blocks is o_R, over all of them
/// o = (1 - m) o_R + m o_U, where m <= eps is the share missed. So |o - o_R| = m |o_U - o_R| <= 2 eps max |v|, in any
/// norm, as o_U and o_R are means of values.
///
/// Keys that are always read but are in no block (always_read::log_mass) add their mass to R. The logits are those of
/// the keys that were summarised: if a lossy codec changes the keys afterwards, the bound does not cover that change.
///
/// Sums are in double; the bound does not cover their rounding (of relative size 1e-13 * dim).
struct certified {
  double eps = 0.01;
  /// One query of `keys.dim()` elements. O(blocks * (dim + log blocks)).
  block_selection operator()(const key_summaries& keys, std::span<const float> query, float scale,
                             const always_read& always = {}) const;
};

}  // namespace terrace

#if !defined(TERRACE_PREBUILT)
#include "terrace/attention/select_body.hpp"  // IWYU pragma: export
#endif
