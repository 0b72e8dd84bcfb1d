#pragma once
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace terrace {

/// Learns at which ages blocks of a class come back, and derives how much a block of a given class and age is worth
/// keeping. Ages are counted in uses of the tier, and fall into buckets of a quarter of an octave.
///
/// The evidence about a class in a bucket is `waited`, the time that its blocks have spent at such ages, and
/// `returned`, how many came back there. Their quotient is the hazard, the rate of return of a block of that age: the
/// estimator of survival analysis that is also right for blocks whose wait has not ended. Classes have little
/// evidence at first. So each is drawn towards its group (`Group` adjacent classes), groups towards all blocks, and
/// those towards the bucket before, at a rate proportional to 1 / age: without any evidence a wait is expected to go
/// on for as long as it has lasted, which gives the order of last use.
///
/// A block's worth is that of the best plan of the form "keep it for at most this long, then let it go": the largest
/// quotient of the probability that it returns in that time and the mean time for which it takes up room. That is the
/// index of J. C. Gittins (Bandit processes and dynamic allocation indices, J. R. Statist. Soc. B 41, 1979) for a job
/// of unknown length. It falls with age where a longer wait makes a return less likely, and rises towards an age at
/// which returns are due: on a cyclic scan the block that was just used is worth the least.
///
/// Its size is fixed, about 12 bytes for each class and bucket. `returned` and `waited` are O(1), `fit` is linear.
template <std::size_t Classes, std::size_t Group>
class return_model {
  static_assert(Classes % Group == 0, "groups of classes are of one size");

 public:
  static constexpr std::size_t classes = Classes;
  static constexpr std::size_t buckets = 96;  ///< the last one has no end; it begins at 1.5 * 2^29 uses

  /// The bucket of an age.
  static constexpr std::size_t bucket_of(std::uint64_t age) noexcept {
    if (age < shortest) return 0;
    const auto octave = static_cast<unsigned>(std::bit_width(age)) - 1;
    const std::size_t bucket = 1 + (octave - shortest_octave) * 4 + ((age >> (octave - 2)) & 3);
    return std::min(bucket, buckets - 1);
  }
  /// The lowest age of a bucket.
  static constexpr std::uint64_t least_age(std::size_t bucket) noexcept {
    if (bucket == 0) return 0;
    const std::size_t octave = (bucket - 1) / 4 + shortest_octave;
    return (4 + (bucket - 1) % 4) << (octave - 2);
  }
  /// How many ages a bucket holds.
  static constexpr std::uint64_t width(std::size_t bucket) noexcept {
    return least_age(bucket + 1) - least_age(bucket);
  }

  void returned(std::size_t kind, std::size_t bucket) noexcept { returned_[bucket][kind] += 1; }
  /// Records that `blocks` of each class have spent another `time` at such ages.
  void waited(std::size_t bucket, float time, const std::array<std::uint32_t, Classes>& blocks) noexcept {
    for (std::size_t kind = 0; kind < Classes; ++kind)
      waited_[bucket][kind] += time * static_cast<float>(static_cast<std::int32_t>(blocks[kind]));
  }

  /// As of the last fit: expected returns per use of the tier for which the block stays.
  float worth(std::size_t kind, std::size_t bucket) const noexcept { return worth_[bucket][kind]; }

  /// Recomputes the worths, and scales the weight of all evidence so far by `remembered`. O(Classes * buckets).
  void fit(float remembered) noexcept {
    std::array<float, buckets> all{};
    float before = first_guess;
    for (std::size_t b = 0; b < buckets; ++b) {
      before = all[b] = hazard(b, 0, Classes, before * share_of_age(b));
      before /= share_of_age(b);
    }
    for (std::size_t first = 0; first < Classes; first += Group) {
      std::array<float, buckets> group{};
      for (std::size_t b = 0; b < buckets; ++b) group[b] = hazard(b, first, Group, all[b]);
      for (std::size_t kind = first; kind < first + Group; ++kind) {
        std::array<float, buckets> own{};
        for (std::size_t b = 0; b < buckets; ++b) own[b] = hazard(b, kind, 1, group[b]);
        value(kind, own);
      }
    }
    for (std::size_t b = 0; b < buckets; ++b)
      for (std::size_t kind = 0; kind < Classes; ++kind) {
        returned_[b][kind] *= remembered;
        waited_[b][kind] *= remembered;
      }
  }

 private:
  static constexpr unsigned shortest_octave = 6;
  static constexpr std::uint64_t shortest = 1u << shortest_octave;
  // Blocks of one request share their fate, so a hundred of them are only a few observations.
  static constexpr float strength = 100;
  static constexpr float first_guess = 0.5f;  // about the probability of returning before the age has doubled

  // A bucket's width as a share of the ages in it. Rates proportional to it are those of a wait that may go on for as
  // long as it has lasted.
  static constexpr float share_of_age(std::size_t b) noexcept {
    const std::uint64_t middle = least_age(b) + width(b) / 2;
    return static_cast<float>(width(b)) / static_cast<float>(std::max(middle, least_age(1)));
  }

  // Returns of `count` classes from `first` on, per bucket's width that a block waits.
  float hazard(std::size_t b, std::size_t first, std::size_t count, float guess) const noexcept {
    float came = 0, time = 0;
    for (std::size_t kind = first; kind < first + count; ++kind) {
      came += returned_[b][kind];
      time += waited_[b][kind];
    }
    return (came + strength * guess) / (time / static_cast<float>(width(b)) + strength);
  }

  // Over the points (time that a block has taken up, probability that it has returned), one for each age from the
  // oldest down, the worth is the steepest slope from a point to a later one: to the next corner of their upper hull.
  void value(std::size_t kind, const std::array<float, buckets>& rates) noexcept {
    struct point {
      double time, probability;
    };
    std::array<point, buckets + 1> points{};
    double alive = 1;
    for (std::size_t b = 0; b < buckets; ++b) {
      const double outlasts = std::exp(-double{rates[b]});
      const double mean = rates[b] > 1e-6f ? (1 - outlasts) / double{rates[b]} : 1;  // of the bucket's width
      points[b + 1] = {points[b].time + alive * mean * static_cast<double>(width(b)),
                       points[b].probability + alive * (1 - outlasts)};
      alive *= outlasts;
    }
    const auto slope = [&](std::size_t from, std::size_t to) {
      const double time = points[to].time - points[from].time;
      return time > 0 ? (points[to].probability - points[from].probability) / time : 0.0;
    };
    std::array<std::uint8_t, buckets + 1> hull{};
    std::size_t corners = 0;
    hull[corners++] = buckets;
    for (std::size_t b = buckets; b-- > 0;) {
      while (corners > 1 && slope(b, hull[corners - 1]) <= slope(hull[corners - 1], hull[corners - 2]))
        --corners;
      worth_[b][kind] = static_cast<float>(slope(b, hull[corners - 1]));
      hull[corners++] = static_cast<std::uint8_t>(b);
    }
  }

  using table = std::array<std::array<float, Classes>, buckets>;
  table returned_{}, waited_{}, worth_{};
};

}  // namespace terrace
