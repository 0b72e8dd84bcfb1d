#pragma once
// Contract only: declared so that programs can be written against it, defined when it is built.
#include <cstddef>
#include <cstdint>
#include <span>

#include "terrace/cache/lease.hpp"
#include "terrace/cache/store.hpp"
#include "terrace/core/element.hpp"

namespace terrace {
inline namespace TERRACE_EX {

/// Which cache new paged tensors live in, for as long as the scope does. Scopes nest; owner thread only.
class memory_scope {
 public:
  explicit memory_scope(kv_store& cache) noexcept;
  memory_scope(const memory_scope&) = delete;
  ~memory_scope();
};

/// A large one-dimensional tensor, activations or weights, cut into pages that move between tiers like KV
/// blocks do: a page is a block of a layout with one plane, one head and `page_elements` elements.
template <element_type T>
class paged_tensor {
 public:
  /// errc::out_of_capacity where the tiers have no room for `elements` elements.
  static result<paged_tensor> make(kv_store& cache, std::size_t elements,
                                   std::size_t page_elements = 1u << 16);

  std::size_t size() const noexcept;
  std::size_t pages() const noexcept;
  /// Brings page `i` and pins it: a sender of a lease whose data is the page.
  acquire_sender page(std::size_t i) noexcept;
  /// Elements of page `i` for writing, until the span is handed back by `seal(i)`.
  result<std::span<T>> write(std::size_t i);
  void seal(std::size_t i);
};

}  // namespace TERRACE_EX
}  // namespace terrace
