#pragma once
#include <utility>

#include "terrace/cache/planner.hpp"
#include "terrace/core/bytes.hpp"

namespace terrace {

/// Room in tier 0 for a block that was lost, to be computed anew: `kv_store::restore`. The engine writes the whole
/// block, in its group's layout, and says `complete`; from there the block is as it was before it was lost, under its
/// id, for every sequence, name and index that refers to it, and is written behind again. Dropped before that, the
/// block stays lost. Acquires of the block wait until either. Move-only, owner thread only; it ends before its cache.
class restoration {
 public:
  restoration(planner& owner, block_id id, std::byte* data) noexcept : owner_(&owner), id_(id), data_(data) {}
  restoration(restoration&& other) noexcept
      : owner_(std::exchange(other.owner_, nullptr)), id_(other.id_), data_(other.data_) {}
  restoration& operator=(restoration&& other) noexcept {
    std::swap(owner_, other.owner_);
    std::swap(id_, other.id_);
    std::swap(data_, other.data_);
    return *this;
  }
  ~restoration() {
    if (owner_ != nullptr) owner_->end_restore(id_.index, false);
  }

  block_id id() const noexcept { return id_; }
  const layer_group& group() const noexcept {
    return owner_->layout().groups[owner_->record(id_.index).group];
  }
  /// Where the block goes: group().block_bytes(), in tier 0's memory. Precondition: not completed.
  mutable_bytes data() const noexcept { return {data_, group().block_bytes()}; }
  /// Everything is written.
  void complete() && noexcept { std::exchange(owner_, nullptr)->end_restore(id_.index, true); }

 private:
  planner* owner_;
  block_id id_;
  std::byte* data_;
};

}  // namespace terrace
