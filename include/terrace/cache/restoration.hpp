#pragma once
#include <cstddef>
#include <utility>

#include "terrace/cache/block_range.hpp"
#include "terrace/cache/plane_rows.hpp"
#include "terrace/cache/planner.hpp"
#include "terrace/core/bytes.hpp"

namespace terrace {

/// Room in tier 0 to recompute a lost block: `kv_store::restore`. The engine writes the whole block, row by row or in
/// its group's layout, and calls `complete`. From then on the block is as it was before it was lost, under its id,
/// for every sequence, name and index that refers to it, and is written behind again. If the restoration is dropped
/// before that, the block stays lost. Acquires of the block wait for either. Move-only, owner thread only; it must
/// end before its cache.
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
  /// Which tokens of which layers it holds.
  block_range range() const noexcept { return range_of(owner_->layout(), owner_->record(id_.index)); }
  /// Where the keys (for MLA, the latent vectors) of one of its layers go, and its values: row 0 is token
  /// range().first_token. Precondition: the layer is in its range.
  plane_rows k(std::uint32_t layer) const noexcept { return rows(layer, false); }
  plane_rows v(std::uint32_t layer) const noexcept { return rows(layer, true); }
  /// The whole block: group().block_bytes() bytes in tier 0's memory. Precondition: not completed.
  mutable_bytes data() const noexcept { return {data_, group().block_bytes()}; }
  /// Everything has been written: the block is whole.
  void complete() && noexcept { std::exchange(owner_, nullptr)->end_restore(id_.index, true); }
  planner& control() const noexcept { return *owner_; }

 private:
  plane_rows rows(std::uint32_t layer, bool values) const noexcept {
    const block_range own = range();
    TERRACE_ASSERT(layer >= own.first_layer && layer < own.first_layer + own.layers,
                   "a layer was to be written into a block that does not hold it");
    return {group(), data_, layer - own.first_layer, values};
  }

  planner* owner_;
  block_id id_;
  std::byte* data_;
};

/// What `kv_store::restore` takes room for (cache/room.hpp).
class restoration_room {
 public:
  using value_type = restoration;
  restoration_room(planner& owner, block_id id) noexcept : owner_(&owner), id_(id) {}

  planner& control() noexcept { return *owner_; }
  result<void> begin() const {
    if (owner_->restorable(id_)) return {};
    return fail(errc::invalid_argument, "only a sealed block that is not in tier 0 can be computed anew");
  }
  result<bool> take() {
    const auto data = owner_->try_restore(id_);
    if (!data) return propagate(data.error());
    data_ = data->value_or(nullptr);
    return data_ != nullptr;
  }
  restoration finish() noexcept { return {*owner_, id_, data_}; }
  void give_up() noexcept {
    if (data_ != nullptr) owner_->end_restore(id_.index, false);
  }

 private:
  planner* owner_;
  block_id id_;
  std::byte* data_ = nullptr;
};

}  // namespace terrace
