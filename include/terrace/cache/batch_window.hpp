#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "terrace/cache/block_view.hpp"
#include "terrace/cache/lease.hpp"
#include "terrace/cache/page_walk.hpp"
#include "terrace/cache/planner.hpp"

namespace terrace {
inline namespace TERRACE_EX {

/// The pages of a window as the CSR arrays that paged kernels take. Sequence i has the pages indptr[i] ..
/// indptr[i + 1] - 1; page p is at index indices[p], and begins at token positions[p] of its sequence. The last
/// page of sequence i holds last_page_len[i] tokens, 0 if it has no page in this window; the others are full.
struct page_arrays {
  std::span<const std::int32_t> indptr;
  std::span<const std::int32_t> indices;
  std::span<const std::int32_t> last_page_len;
  std::span<const std::int32_t> positions;
};

/// Where the pages of a batch's window are: the storage of its arrays, allocated once. For `batch`; engines see it as
/// a batch_window.
class placed_pages {
 public:
  /// The unit of page indices, in bytes: slots of tier 0 begin at multiples of it.
  static constexpr std::size_t page_stride = 4096;

  placed_pages(planner& owner, std::size_t most_sequences, std::size_t most_pages)
      : indptr_(std::make_unique<std::int32_t[]>(most_sequences + 1)),
        indices_(std::make_unique<std::int32_t[]>(most_pages)),
        last_page_len_(std::make_unique<std::int32_t[]>(most_sequences)),
        positions_(std::make_unique<std::int32_t[]>(most_pages)),
        owner_(&owner) {}

  /// Takes the pages of a window, whose blocks `held` has, and orders them by sequence. Precondition: they fit into
  /// the arrays, and each is a page of `layer`. Errors: unavailable if no 32-bit index or position can name a page:
  /// it is too far from tier 0, at an unaligned address, or too far into its sequence.
  result<void> place(std::uint32_t layer, std::size_t sequences, std::span<const walked_page> pages,
                     const lease& held, bool last);

  page_arrays arrays() const noexcept {
    return {.indptr = {indptr_.get(), sequences_ + 1},
            .indices = {indices_.get(), blocks_.size()},
            .last_page_len = {last_page_len_.get(), sequences_},
            .positions = {positions_.get(), blocks_.size()}};
  }

 private:
  friend class batch_window;
  struct block {
    const std::byte* data = nullptr;
    std::uint32_t format_id = 0;
    std::uint32_t tokens = 0;
  };

  std::unique_ptr<std::int32_t[]> indptr_, indices_, last_page_len_, positions_;
  planner* owner_;
  std::vector<block> blocks_;  // in the order of the arrays
  std::size_t sequences_ = 0;
  const layer_group* group_ = nullptr;
  std::uint32_t layer_in_block_ = 0;
  bool last_ = false;
  bool out_ = false;  // a batch_window has the pages
};

/// Pages of a batch, in place and pinned. Move-only; they are unpinned when it is released or dropped. Its arrays are
/// the batch's own, at addresses that never change, so a batch has one window at a time.
class batch_window {
 public:
  /// The unit of page indices, in bytes.
  static constexpr std::size_t page_stride = placed_pages::page_stride;

  batch_window() = default;
  batch_window(placed_pages& pages, lease held) noexcept : pages_(&pages), held_(std::move(held)) {
    pages.out_ = true;
  }
  batch_window(batch_window&& other) noexcept
      : pages_(std::exchange(other.pages_, nullptr)), held_(std::move(other.held_)) {}
  batch_window& operator=(batch_window&& other) noexcept {
    std::swap(pages_, other.pages_);
    std::swap(held_, other.held_);
    return *this;
  }
  ~batch_window() { release(); }

  /// It has no pages: the layer is finished.
  bool empty() const noexcept { return pages_ == nullptr; }
  /// Unpins the pages; the window is then empty.
  void release() noexcept {
    if (pages_ == nullptr) return;
    held_.release();
    std::exchange(pages_, nullptr)->out_ = false;
  }
  /// Whether a window has these pages now.
  static bool is_out(const placed_pages& pages) noexcept { return pages.out_; }

  // The following members require a window that is not empty.

  /// Whether this is the layer's last window. All pages that are being written are in it: kernels need their causal
  /// mask here, and in no other window.
  bool last() const noexcept { return pages_->last_; }
  /// Sequences of the batch, including those without pages in this window.
  std::size_t sequences() const noexcept { return pages_->sequences_; }

  /// The arrays, and the base of their indices: a page of index i is at base() + i * page_stride, laid out as the
  /// layer group lays out a block. base() never changes. Indices of pages that are read in a raw tier below tier 0
  /// may be negative.
  page_arrays arrays() const noexcept { return pages_->arrays(); }
  const std::byte* base() const noexcept { return pages_->owner_->hot_data(); }
  /// The bases of this layer's K planes and V planes: for kernels that take two pools. If values are part of the
  /// latent vectors, both are the latent plane's.
  const std::byte* k_base() const noexcept { return base() + group().k_offset(layer_in_block()); }
  const std::byte* v_base() const noexcept {
    return group().v.present() ? base() + group().v_offset(layer_in_block()) : k_base();
  }

  const layer_group& group() const noexcept { return *pages_->group_; }
  std::uint32_t layer_in_block() const noexcept { return pages_->layer_in_block_; }
  /// The p-th page of the arrays, as host attention reads it.
  block_view page(std::size_t p) const noexcept {
    const placed_pages::block& b = pages_->blocks_[p];
    return {.group = pages_->group_,
            .data = b.data,
            .layer_in_block = pages_->layer_in_block_,
            .first_position = static_cast<std::uint64_t>(pages_->positions_[p]),
            .tokens = b.tokens,
            .encoding = static_cast<block_encoding>(b.format_id)};
  }
  context& owner() const noexcept { return pages_->owner_->owner(); }

 private:
  placed_pages* pages_ = nullptr;
  lease held_;
};

inline result<void> placed_pages::place(std::uint32_t layer, std::size_t sequences,
                                        std::span<const walked_page> pages, const lease& held, bool last) {
  group_ = &owner_->layout().groups[owner_->layout().group_of(layer)];
  layer_in_block_ = (layer - group_->first_layer) % group_->layers_per_block;
  sequences_ = sequences;
  last_ = last;
  blocks_.resize(pages.size());
  std::fill_n(indptr_.get(), sequences + 1, 0);
  std::fill_n(last_page_len_.get(), sequences, 0);
  for (const walked_page& p : pages) ++indptr_[p.sequence + 1];
  for (std::size_t i = 0; i < sequences; ++i) indptr_[i + 1] += indptr_[i];

  constexpr auto stride = static_cast<std::ptrdiff_t>(page_stride);
  for (const walked_page& p : pages) {
    // Until all are placed, indptr[i] is where the next page of sequence i goes.
    const auto at = static_cast<std::size_t>(indptr_[p.sequence]++);
    if (p.open)
      blocks_[at] = {owner_->open_data(p.block), 0, p.tokens};
    else
      blocks_[at] = {held[p.block].data, held[p.block].format_id, p.tokens};
    const std::uint64_t position = std::uint64_t{p.position} * group_->tokens;
    const std::ptrdiff_t from_base = blocks_[at].data - owner_->hot_data();
    if (from_base % stride != 0 || from_base / stride != static_cast<std::int32_t>(from_base / stride) ||
        position > std::numeric_limits<std::int32_t>::max())
      return fail(errc::unavailable, "a page lies where the arrays of paged kernels cannot name it");
    indices_[at] = static_cast<std::int32_t>(from_base / stride);
    positions_[at] = static_cast<std::int32_t>(position);
    last_page_len_[p.sequence] = static_cast<std::int32_t>(p.tokens);
  }
  for (std::size_t i = sequences; i > 0; --i) indptr_[i] = indptr_[i - 1];
  indptr_[0] = 0;
  return {};
}

}  // namespace TERRACE_EX
}  // namespace terrace
