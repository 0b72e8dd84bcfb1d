#pragma once
#include <cstdint>

namespace terrace {

/// What the engine knows and the cache cannot: hints on a range of a sequence's tokens. Contract only: the
/// verbs `hint` and their effect on policies come with the policies that use them; `advance_step` and
/// `prefetch` exist.
enum class hint_kind : std::uint8_t { hot, evictable, prefetchable, ttl, priority };

struct hint {
  hint_kind kind = hint_kind::evictable;
  std::uint64_t at_step = 0;  ///< prefetchable: when it is wanted; ttl: until when it matters
  int priority = 0;
};

/// Every hint returns its outcome: it is never silently ignored.
struct hint_outcome {
  enum class verdict : std::uint8_t { accepted, clipped, rejected };
  verdict what = verdict::accepted;
  std::uint32_t blocks = 0;  ///< blocks that the hint now applies to
  const char* reason = "";   ///< why it was clipped or rejected, one sentence
};

}  // namespace terrace
