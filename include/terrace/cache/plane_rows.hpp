#pragma once
#include <cstddef>
#include <cstdint>
#include <span>

#include "terrace/cache/page_table.hpp"
#include "terrace/core/layout.hpp"

namespace terrace {

/// Where one plane of one layer of new tokens is written: a run of `dim` elements for each token and KV head. The
/// runs of one token need not be contiguous.
class plane_rows {
 public:
  /// For tokens that a sequence has reserved.
  plane_rows(const page_table& pages, std::uint64_t first, std::uint32_t tokens, std::uint32_t layer,
             bool values) noexcept
      : plane_rows(pages.group(pages.row_of(layer).first), tokens, pages.row_of(layer).second, values) {
    pages_ = &pages;
    row_ = pages.row_of(layer).first;
    first_ = first;
  }
  /// For a block that is recomputed.
  plane_rows(const layer_group& g, std::byte* block, std::uint32_t layer_in_block, bool values) noexcept
      : plane_rows(g, g.tokens, layer_in_block, values) {
    block_ = block;
  }

  std::uint32_t tokens() const noexcept { return tokens_; }
  std::uint32_t heads() const noexcept { return plane_->heads; }
  std::uint32_t dim() const noexcept { return plane_->dim; }

  /// The elements of one token's head; `token` counts from the first. Precondition: T is the plane's element type.
  template <element_type T>
  std::span<T> row(std::uint32_t token, std::uint32_t head) const noexcept {
    TERRACE_ASSERT(token < tokens_ && head < plane_->heads, "a row outside of the reservation was asked for");
    TERRACE_ASSERT(element_of<T> == plane_->type,
                   "a plane was asked for in another element type than it has");
    const std::uint64_t position = first_ + token;
    std::byte* const block =
        pages_ == nullptr ? block_
                          : pages_->owner->open_data(pages_->rows[row_][position / group_->tokens].index);
    std::byte* const at = block + offset_ + head * group_->head_stride(*plane_) +
                          (position % group_->tokens) * group_->token_stride(*plane_);
    return {reinterpret_cast<T*>(at), plane_->dim};
  }

 private:
  plane_rows(const layer_group& g, std::uint32_t tokens, std::uint32_t layer_in_block, bool values) noexcept
      : group_(&g),
        plane_(values ? &g.v : &g.k),
        offset_(values ? g.v_offset(layer_in_block) : g.k_offset(layer_in_block)),
        tokens_(tokens) {}

  const layer_group* group_;
  const plane* plane_;
  std::size_t offset_;
  std::uint32_t tokens_;
  const page_table* pages_ = nullptr;  // where the blocks are, or
  std::byte* block_ = nullptr;         // the only one
  std::uint32_t row_ = 0;
  std::uint64_t first_ = 0;
};

}  // namespace terrace
