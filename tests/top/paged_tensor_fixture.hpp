#pragma once
// What the tests of paged tensors share.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "catch.hpp"
#include "pattern.hpp"
#include "terrace/core/layout.hpp"

namespace tensor_test {

using namespace terrace;

inline constexpr std::size_t page = 4096;  // bytes, as many as a block of `pattern` has
inline constexpr std::uint32_t page_values = page / sizeof(fp16);

inline kv_layout tensors_only() { return {{tensor_pages(element::fp16, page_values)}}; }

// Values that say where they belong.
inline std::vector<fp16> values(std::size_t count, std::uint32_t tag) {
  std::vector<fp16> v(count);
  for (std::size_t i = 0; i < count; ++i) v[i] = pattern::element_at(tag, 0, false, 0, i, 0);
  return v;
}

inline bool equal(std::span<const fp16> a, std::span<const fp16> b) { return std::ranges::equal(a, b); }

}  // namespace tensor_test
