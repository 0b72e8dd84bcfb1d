#pragma once
#include <cstdint>

namespace terrace {

/// When tiers let go of a block, overriding what their policies say.
enum class standing : std::uint8_t {
  ordinary,   ///< when the policy says so
  evictable,  ///< before all others
  kept,       ///< after all others
};

/// What the engine knows, and the cache cannot, about a range of a sequence's tokens (`sequence::hint`). A later hint
/// on a block replaces the standing that an earlier one gave it. A block that several sequences share has one
/// standing for all of them.
struct hint {
  enum class kind : std::uint8_t { hot, evictable, prefetchable, ttl, priority };
  kind what = kind::evictable;
  std::uint64_t at_step = 0;
  int level = 0;

  /// Leaves its tier after all other blocks.
  static constexpr hint hot() noexcept { return {kind::hot}; }
  /// Leaves its tier before all other blocks.
  static constexpr hint evictable() noexcept { return {kind::evictable}; }
  /// Wanted at that step: it is brought to tier 0 when the step before begins.
  static constexpr hint prefetchable(std::uint64_t at_step) noexcept { return {kind::prefetchable, at_step}; }
  /// Matters until that step begins, and is evictable from then on.
  static constexpr hint ttl(std::uint64_t until_step) noexcept { return {kind::ttl, until_step}; }
  /// Below 0: like evictable; 0: as the policy says; above 0: like hot.
  static constexpr hint priority(int level) noexcept { return {kind::priority, 0, level}; }
};

/// What became of a hint. No hint is silently ignored.
struct hint_outcome {
  enum class verdict : std::uint8_t {
    accepted,  ///< it applies to every block of the range
    clipped,   ///< it applies to `blocks` of them; `reason` says why not to the rest
    rejected,  ///< it applies to none; `reason` says why
  };
  verdict what = verdict::accepted;
  std::uint32_t blocks = 0;  ///< blocks that the hint now applies to
  const char* reason = "";   ///< one sentence
};

}  // namespace terrace
