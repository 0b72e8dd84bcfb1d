#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "terrace/cache/hints.hpp"
#include "terrace/cache/stats.hpp"
#include "terrace/cache/tier_health.hpp"
#include "terrace/codec/any_codec.hpp"
#include "terrace/core/bytes.hpp"
#include "terrace/core/index_list.hpp"
#include "terrace/core/layout.hpp"
#include "terrace/medium/medium.hpp"
#include "terrace/policy/policy.hpp"

namespace terrace {

class context;

/// All that the planner has to know of a tier: the seam between the composed types (medium, codec, policy) and the
/// one planner that serves every composition. Calls are per block, never per byte, so plain virtual calls will do:
/// one planner is compiled, not one for every list of tiers.
class tier_control {
 public:
  struct traits {
    std::string_view medium;
    any_codec codec;
    reach addressable = reach::nobody;  ///< who can address its encoded bytes
    bool readable = false;              ///< attention reads its blocks where they are
    bool raw = false;                   ///< and they are as the engine wrote them
    bool weighs = false;                ///< its policy wants to know blocks' shares of the softmax mass
  };
  const traits what;
  tier_stats stats;
  circuit_breaker breaker;

  explicit tier_control(traits t) noexcept : what(t) {}
  tier_control(const tier_control&) = delete;
  virtual ~tier_control() = default;

  /// Room, if there is any; behind `before`, the extent of the block that is read before it, if the medium heeds
  /// that.
  virtual std::optional<extent> reserve(std::size_t bytes, std::optional<extent> before) = 0;
  virtual void release(extent e) noexcept = 0;
  /// nullptr if the tier is not addressable.
  virtual std::byte* address(extent e) noexcept = 0;
  /// Copies between two addresses of the tier, ordered with the engine's own work.
  virtual result<void> copy_within(std::byte* to, const std::byte* from, std::size_t bytes) = 0;
  virtual std::size_t capacity() const noexcept = 0;
  virtual std::size_t used() const noexcept = 0;
  /// See buffer_registering_medium; does nothing for other media.
  virtual void register_buffer(mutable_bytes memory) = 0;

  /// Sets the tier's capacity to `bytes`, whatever it holds. errc::unavailable if its medium cannot be resized.
  virtual result<void> resize(std::size_t bytes) = 0;

  // --- What outlives the process (medium/medium.hpp, persistent_medium). If `keeps` is false, none of the others is
  // called.

  /// Asks a tier to make durable what was written to it; `done` is called with the outcome, on the owner.
  struct sync_request {
    void (*done)(sync_request*, result<void>) noexcept;
  };
  /// Receives what was found at opening. True: the extent stays reserved.
  class visitor {
   public:
    virtual bool visit(extent at, const extent_header& header) = 0;

   protected:
    ~visitor() = default;
  };
  virtual bool keeps() const noexcept = 0;
  virtual void scan(visitor& v) = 0;
  virtual bool label(extent at, const extent_header& header) = 0;
  virtual void unlabel(extent at) noexcept = 0;
  /// Reads the extent and compares its checksum. Waits; for opening only. Errors: corrupt if its bytes differ,
  /// otherwise why they could not be read.
  virtual result<void> verify(context& ctx, extent at, std::uint32_t checksum) = 0;
  /// One at a time. `r` must stay valid until its `done` is called.
  virtual void sync(sync_request& r) noexcept = 0;

  // --- Which blocks may leave: those between admit and remove, each of which is free to leave at once. Hints decide
  // first, then the tier's policy (policy/policy.hpp).

  /// Makes room in the books for `blocks` blocks.
  void grow(std::size_t blocks) {
    charges_.resize(blocks);
    links_.resize(blocks);
    grow_policy(blocks);
  }
  void admit(std::uint32_t block, const block_info& info, standing s) {
    charges_[block] = s;
    if (s == standing::ordinary)
      policy_admit(block, info);
    else
      (s == standing::kept ? kept_ : evictable_).push_back(links_, block);
  }
  void remove(std::uint32_t block) {
    const standing s = charges_[block];
    if (s == standing::ordinary)
      policy_remove(block);
    else
      (s == standing::kept ? kept_ : evictable_).erase(links_, block);
  }
  /// The same, if the block leaves the tier because its room is needed.
  void evict(std::uint32_t block) {
    if (charges_[block] != standing::ordinary) return remove(block);
    policy_evict(block);
  }
  /// The block that should leave first, or index_link::none. It stays in charge until removed.
  std::uint32_t victim() {
    if (!evictable_.empty()) return evictable_.front();
    const std::uint32_t chosen = policy_victim();
    return chosen != index_link::none ? chosen : kept_.front();
  }
  virtual void touch(std::uint32_t block, const block_use& use) = 0;
  virtual void weigh(std::uint32_t block, const block_use& use) = 0;
  virtual void advance_step(std::uint64_t step) = 0;

 protected:
  virtual void grow_policy(std::size_t blocks) = 0;
  virtual void policy_admit(std::uint32_t block, const block_info& info) = 0;
  virtual void policy_remove(std::uint32_t block) = 0;
  virtual void policy_evict(std::uint32_t block) = 0;
  virtual std::uint32_t policy_victim() = 0;

 private:
  std::vector<standing> charges_;  // of the blocks in charge: which list has them
  std::vector<index_link> links_;
  index_list evictable_, kept_;  // in order of arrival
};

}  // namespace terrace
