#pragma once
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string_view>
#include <vector>

#include "terrace/codec/q4_0.hpp"
#include "terrace/codec/q8_0.hpp"
#include "terrace/medium/ram.hpp"
#include "terrace/policy/attention_weighted.hpp"
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

/// A codec whose encoded blocks are of four sizes, as their bytes will have it: what a compressor does to rooms.
struct padding {
  static constexpr std::uint32_t format_id = 0xfffffffcu;
  static constexpr std::string_view name = "padding";
  static constexpr bool lossless = true;
  static constexpr std::uint8_t loss = 0;
  static constexpr bool fixed_rate = false;
  static constexpr bool attendable = false;

  static result<void> supports(const layer_group&) noexcept { return {}; }
  static std::size_t max_encoded_size(const layer_group& g) noexcept { return g.block_bytes() + 3 * step; }
  static result<std::size_t> encode(const layer_group& g, const_bytes raw, mutable_bytes out) noexcept {
    if (raw.size() != g.block_bytes() || out.size() < max_encoded_size(g))
      return fail(errc::invalid_argument, "a block or its encoding has another size than its group says");
    const std::size_t more = std::to_integer<std::size_t>(raw[0] & std::byte{3}) * step;
    std::memcpy(out.data(), raw.data(), raw.size());
    std::memset(out.data() + raw.size(), 0, more);
    return raw.size() + more;
  }
  static result<void> decode(const layer_group& g, const_bytes in, mutable_bytes raw) noexcept {
    if (raw.size() != g.block_bytes())
      return fail(errc::invalid_argument, "a block has another size than its group says");
    if (in.size() < raw.size()) return fail(errc::corrupt, "an encoded block is too short");
    std::memcpy(raw.data(), in.data(), raw.size());
    return {};
  }

 private:
  static constexpr std::size_t step = 100;
};

using lossless = tiered_cache<tier<ram>, tier<ram>, tier<faulty>, tier<faulty>, lru>;
using quantized = tiered_cache<tier<ram>, tier<ram, q8_0>, tier<faulty, q8_0>, tier<faulty, q8_0>, s3_fifo>;
using coarser = tiered_cache<tier<ram>, tier<faulty, q8_0>, tier<faulty, q4_0>, two_queue>;
using padded =
    tiered_cache<tier<ram>, tier<ram, padding>, tier<faulty, padding>, tier<faulty>, attention_weighted>;
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
inline const std::array<named_ladder, 5> ladders{{
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
    {"padded",
     [](std::uint64_t s) {
       return over<padded>(s, {slot, slot, on_disk, on_disk});
     }},
    {"two_tiers",
     [](std::uint64_t s) {
       return over<two_tiers>(s, {slot, on_disk});
     }},
}};

}  // namespace simulated
