#pragma once
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "terrace/batch.hpp"
#include "terrace/cuda/page_tables.hpp"

namespace terrace::cuda {
inline namespace TERRACE_EX {

/// The unit of page indices on a device, in bytes: slots of tier 0 begin at multiples of it.
inline constexpr std::size_t page_stride = 4096;

/// Where an engine's kernel writes the K and V of reserved tokens: for each of them, in the order of the batch, the
/// number of its slot, in device memory at an address that does not change. Token t of page p is slot
/// p * tokens of a page + t, and page p lies at batch::pages() + p * page_stride. A token of a sequence that has been
/// dropped keeps its place in these arrays, and its slot is -1 from then on: it is not written.
class reserved_slots {
 public:
  /// [tokens] of `layer`.
  const std::int64_t* mapping(std::uint32_t layer) const noexcept {
    return mapping_ + std::size_t{layer} * stride_;
  }
  /// [sequences + 1], where each sequence's tokens begin, and [sequences], the position of its first one.
  const std::int32_t* indptr() const noexcept { return indptr_; }
  const std::int64_t* first_position() const noexcept { return first_position_; }
  /// Of all sequences, and of the one that has most.
  std::uint32_t tokens() const noexcept { return tokens_; }
  std::uint32_t most() const noexcept { return most_; }

 private:
  friend class slot_arrays;
  const std::int32_t* indptr_ = nullptr;
  const std::int64_t* first_position_ = nullptr;
  const std::int64_t* mapping_ = nullptr;
  std::size_t stride_ = 0;  // tokens for which each layer has room
  std::uint32_t tokens_ = 0, most_ = 0;
};

/// The arrays behind reserved_slots, on the host and on the device. For cuda::batch.
class slot_arrays {
 public:
  slot_arrays(std::size_t sequences, std::size_t tokens, std::size_t layers)
      : first_position_(align_up((sequences + 1) * sizeof(std::int32_t), 16)),
        mapping_(first_position_ + sequences * sizeof(std::int64_t)),
        bytes_(mapping_ + tokens * layers * sizeof(std::int64_t)),
        layers_(layers),
        stride_(tokens),
        host_(bytes_) {}
  result<void> open() {
    auto made = device_tables::make(bytes_);
    if (!made) return propagate(made.error());
    device_ = std::move(*made);
    return {};
  }

  /// Tells `stream` the slots of the tokens that `reserved` has just reserved. Precondition: there is room for them.
  result<reserved_slots> write(planner& owner, const terrace::batch& reserved,
                               std::span<const std::uint32_t> tokens, cudaStream_t stream) {
    auto tables = host_.take();
    if (!tables) return propagate(tables.error());
    reserved_slots slots;
    std::byte* const host = (*tables)->data();
    slots.tokens_ = fill(owner, reserved, tokens, host);
    for (const std::uint32_t n : tokens) slots.most_ = std::max(slots.most_, n);
    slots.stride_ = stride_;
    cudaError_t e = cudaMemcpyAsync(device_.data(), host, mapping_, cudaMemcpyHostToDevice, stream);
    // A row of the rectangle is a layer; on the host they follow each other without gaps.
    const std::size_t row = slots.tokens_ * sizeof(std::int64_t);
    if (e == cudaSuccess && row != 0)
      e = cudaMemcpy2DAsync(device_.data() + mapping_, stride_ * sizeof(std::int64_t), host + mapping_, row,
                            row, layers_, cudaMemcpyHostToDevice, stream);
    const cudaError_t noted = (*tables)->used_by(stream);
    if (e == cudaSuccess) e = noted;
    if (e != cudaSuccess) return cuda::fail(e, "the slots of reserved tokens cannot be told to the device");
    slots.indptr_ = device_.as<const std::int32_t>();
    slots.first_position_ = device_.as<const std::int64_t>(first_position_);
    slots.mapping_ = device_.as<const std::int64_t>(mapping_);
    const auto* const indptr = reinterpret_cast<const std::int32_t*>((*tables)->data());
    begins_.assign(indptr, indptr + tokens.size() + 1);
    return slots;
  }
  /// Tells `stream` that the tokens of sequence i, among those written last, have no slots any more.
  result<void> drop(std::size_t i, cudaStream_t stream) {
    const auto bytes = [](std::int32_t slots) {
      return static_cast<std::size_t>(slots) * sizeof(std::int64_t);
    };
    // All bits of -1 are set. A row of the rectangle is a layer.
    const cudaError_t e =
        cudaMemset2DAsync(device_.data() + mapping_ + bytes(begins_[i]), stride_ * sizeof(std::int64_t), 0xff,
                          bytes(begins_[i + 1] - begins_[i]), layers_, stream);
    if (e != cudaSuccess) return cuda::fail(e, "the slots of a dropped sequence cannot be taken back");
    return {};
  }

 private:
  std::uint32_t fill(planner& owner, const terrace::batch& reserved, std::span<const std::uint32_t> tokens,
                     std::byte* to) const {
    auto* const indptr = reinterpret_cast<std::int32_t*>(to);
    auto* const first_position = reinterpret_cast<std::int64_t*>(to + first_position_);
    auto* slot = reinterpret_cast<std::int64_t*>(to + mapping_);
    indptr[0] = 0;
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      indptr[i + 1] = indptr[i] + static_cast<std::int32_t>(tokens[i]);
      first_position[i] = reserved.has(i) ? static_cast<std::int64_t>(reserved.at(i).length()) : 0;
    }
    for (std::uint32_t layer = 0; layer < owner.layout().layers(); ++layer)
      for (std::size_t i = 0; i < tokens.size(); ++i) {
        if (tokens[i] == 0) continue;
        const page_table& table = reserved.at(i).pages();
        const std::uint32_t row = table.row_of(layer).first;
        const std::uint32_t size = table.group(row).tokens;
        for (std::uint64_t at = table.length; at < table.length + tokens[i]; ++at) {
          const std::ptrdiff_t from_base =
              owner.open_data(table.rows[row][at / size].index) - owner.hot_data();
          *slot++ = from_base / static_cast<std::ptrdiff_t>(page_stride) * size +
                    static_cast<std::int64_t>(at % size);
        }
      }
    return static_cast<std::uint32_t>(indptr[tokens.size()]);
  }

  std::size_t first_position_, mapping_, bytes_;  // where the arrays begin, and their end
  std::size_t layers_, stride_;
  std::vector<std::int32_t> begins_;  // of each sequence's tokens, and their end, as they were told last
  table_pool host_;
  device_tables device_;
};

}  // namespace TERRACE_EX
}  // namespace terrace::cuda
