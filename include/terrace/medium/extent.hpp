#pragma once
#include <cstdint>

namespace terrace {

/// A run of bytes that a medium has reserved. `bytes` is what was asked for; the medium may have set aside
/// more, up to its granularity. `node` belongs to the medium's space allocator.
struct extent {
  std::uint64_t offset = 0;
  std::uint32_t bytes = 0;
  std::uint32_t node = 0;
  friend constexpr bool operator==(const extent&, const extent&) noexcept = default;
};

}  // namespace terrace
