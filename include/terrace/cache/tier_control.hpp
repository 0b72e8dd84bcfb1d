#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

#include "terrace/cache/stats.hpp"
#include "terrace/core/layout.hpp"
#include "terrace/medium/extent.hpp"
#include "terrace/policy/policy.hpp"

namespace terrace {

/// What the planner has to know of a tier, and nothing else: the seam between the composed types (medium,
/// codec, policy) and the one planner that serves every composition. Calls are per block, never per byte, so
/// they are plain virtual ones: one planner is compiled, not one for every list of tiers.
class tier_control {
 public:
  struct traits {
    std::string_view medium;
    std::string_view codec;
    bool readable = false;        ///< host attention reads its blocks where they are
    bool raw = false;             ///< and they are as the engine wrote them
    bool addressable = false;     ///< its encoded bytes have host addresses
    std::uint8_t loss = 0;        ///< of its codec
    std::uint32_t format_id = 0;  ///< of its codec
  };
  const traits what;
  tier_stats stats;
  tier_health health;

  explicit tier_control(traits t) noexcept : what(t) {}
  tier_control(const tier_control&) = delete;
  virtual ~tier_control() = default;

  virtual std::optional<extent> reserve(std::size_t bytes) = 0;
  virtual void release(extent e) noexcept = 0;
  /// nullptr where the tier is not addressable.
  virtual std::byte* address(extent e) noexcept = 0;
  virtual std::size_t capacity() const noexcept = 0;
  virtual std::size_t used() const noexcept = 0;
  virtual std::size_t max_encoded_size(const layer_group& g) const noexcept = 0;

  /// The policy of the tier (policy/policy.hpp). `grow` gives it room for so many blocks.
  virtual void grow(std::size_t blocks) = 0;
  virtual void admit(std::uint32_t block, const block_info& info) = 0;
  virtual void touch(std::uint32_t block, const block_use& use) = 0;
  virtual void remove(std::uint32_t block) = 0;
  virtual std::uint32_t victim() = 0;
  virtual void advance_step(std::uint64_t step) = 0;
};

}  // namespace terrace
