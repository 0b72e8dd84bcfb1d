#pragma once
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "terrace/codec/q4_0.hpp"
#include "terrace/codec/q8_0.hpp"
#include "terrace/medium/ram.hpp"
#include "terrace/policy/lru.hpp"
#include "terrace/policy/s3_fifo.hpp"
#include "terrace/policy/step_aware.hpp"
#include "terrace/policy/two_queue.hpp"
#include "terrace/testing/simulation.hpp"

/// The compositions that are simulated, each by its name.
namespace simulated {

using namespace terrace;

inline constexpr std::size_t slot = 4096;    // what a block takes of RAM
inline constexpr std::size_t on_disk = 512;  // and of a faulty device

using lossless = tiered_cache<tier<ram>, tier<ram>, tier<faulty>, tier<faulty>, lru>;
using quantized = tiered_cache<tier<ram>, tier<ram, q8_0>, tier<faulty, q8_0>, tier<faulty, q8_0>, s3_fifo>;
using coarser = tiered_cache<tier<ram>, tier<faulty, q8_0>, tier<faulty, q4_0>, two_queue>;
using two_tiers = tiered_cache<tier<ram>, tier<faulty>, step_aware>;

/// Sizes and options from a seed: tight and ample tiers, inclusive and exclusive ones, kept or not.
inline simulated_setup setup_of(std::uint64_t seed, std::vector<std::size_t> units) {
  seeded_random random(seed);
  simulated_setup s;
  s.seed = seed;
  for (const std::size_t unit : units)
    s.capacities.push_back(unit * (8 + random.below(unit == slot ? 24 : 40)));
  s.capacities[0] += 6 * slot;  // staging
  s.keep = random.below(4) != 0;
  for (std::size_t t = 1; t < units.size(); ++t)
    s.tuning.transfers.inclusions[t] = static_cast<inclusion>(random.below(3));
  s.tuning.transfers.deadline = std::chrono::seconds(10);
  s.tuning.transfers.loads_in_flight = 1 + static_cast<unsigned>(random.below(8));
  s.tuning.transfers.stores_in_flight = 1 + static_cast<unsigned>(random.below(8));
  s.tuning.transfers.prefetches_in_flight = 1 + static_cast<unsigned>(random.below(4));
  s.tuning.staging_buffers = 2 + random.below(3);
  return s;
}

template <class Cache>
std::unique_ptr<simulated_ladder> over(std::uint64_t seed, std::vector<std::size_t> units) {
  return std::make_unique<ladder_over<Cache>>(setup_of(seed, std::move(units)));
}

struct named_ladder {
  std::string_view name;
  make_ladder make;
};
inline const std::array<named_ladder, 4> ladders{{
    {"lossless",
     [](std::uint64_t s) {
       return over<lossless>(s, {slot, slot, on_disk, on_disk});
     }},
    {"quantized",
     [](std::uint64_t s) {
       return over<quantized>(s, {slot, slot, on_disk, on_disk});
     }},
    {"coarser",
     [](std::uint64_t s) {
       return over<coarser>(s, {slot, on_disk, on_disk});
     }},
    {"two_tiers",
     [](std::uint64_t s) {
       return over<two_tiers>(s, {slot, on_disk});
     }},
}};

}  // namespace simulated
