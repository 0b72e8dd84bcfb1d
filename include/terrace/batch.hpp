#pragma once
// Contract only: declared so that engines can be written against it, defined when it is built.
#include <cstdint>
#include <span>

#include "terrace/cache/lease.hpp"
#include "terrace/cache/store.hpp"
#include "terrace/sequence.hpp"

namespace terrace {
inline namespace TERRACE_EX {

/// A window of a batch: pages of a ragged set of sequences that are in place and pinned, as the CSR arrays
/// that paged kernels take. Sequence i has the pages indices[indptr[i]] .. indices[indptr[i + 1] - 1]; the
/// last of them holds last_page_len[i] tokens.
struct page_arrays {
  std::span<const std::int32_t> indptr;
  std::span<const std::int32_t> indices;
  std::span<const std::int32_t> last_page_len;
};

/// A ragged set of sequences that decode together. The arrays have room for `sequences` and `pages` from the
/// start and never move, so that captured graphs keep their addresses. A block that several sequences share
/// is loaded once.
class batch {
 public:
  struct options {
    std::uint32_t sequences = 256;
    std::uint32_t pages = 1u << 16;
  };
  batch(kv_store& cache, options o);

  /// Which sequences decode now. errc::invalid_argument for more than there is room for.
  result<void> assign(std::span<sequence* const> sequences);
  /// Room for tokens[i] more tokens of sequence i. out_of_capacity at once, and then no sequence has changed.
  result<void> reserve(std::span<const std::uint32_t> tokens);
  /// Keeps kept[i] of them; the others vanish.
  void commit(std::span<const std::uint32_t> kept);
  /// The next window of `layer`, or one without pages when all have been given. A sender of page_arrays is
  /// what the host version will return; the CUDA version enqueues and returns at once (cuda/batch.hpp).
  result<page_arrays> next(std::uint32_t layer);
};

}  // namespace TERRACE_EX
}  // namespace terrace
