#pragma once
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "terrace/cuda/kernels.hpp"
#include "terrace/cuda/page_tables.hpp"
#include "terrace/cuda/reserved_slots.hpp"
#include "terrace/cuda/window_buffer.hpp"

namespace terrace::cuda {
inline namespace TERRACE_EX {

/// The CSR arrays of a batch's window, at device addresses that do not change, and how the host sends them to a
/// stream. For cuda::batch; engines see them as a cuda::window.
class window_arrays {
 public:
  window_arrays(std::size_t sequences, std::size_t pages) : host_(lay_out(sequences, pages)) {}
  result<void> open() {
    auto made = device_tables::make(bytes_);
    if (!made) return propagate(made.error());
    device_ = std::move(*made);
    return {};
  }

  const std::int32_t* indptr() const noexcept { return device_.as<const std::int32_t>(indptr_); }
  const std::int32_t* indices() const noexcept { return device_.as<const std::int32_t>(indices_); }
  const std::int32_t* last_page_len() const noexcept {
    return device_.as<const std::int32_t>(last_page_len_);
  }
  const std::int64_t* first_position() const noexcept {
    return device_.as<const std::int64_t>(first_position_);
  }
  /// The most pages of a sequence in the window that was sent last.
  std::uint32_t most_pages() const noexcept { return most_pages_; }
  /// Whether its sequences' pages are not all at consecutive positions.
  bool has_gaps() const noexcept { return has_gaps_; }

  /// The block of each entry of indices(), where it is sealed.
  void blocks(const window_buffer& w, std::size_t sequences, std::vector<block_id>& out) {
    next_.assign(sequences + 1, 0);
    for (const walked_page& p : w.pages) ++next_[p.sequence + 1];
    for (std::size_t i = 0; i < sequences; ++i) next_[i + 1] += next_[i];
    out.assign(w.pages.size(), block_id{});
    for (const walked_page& p : w.pages) {
      block_id& entry = out[static_cast<std::size_t>(next_[p.sequence]++)];
      if (!p.open) entry = w.blocks[p.block];
    }
  }

  /// Enqueues on `stream` the arrays of `w`, the wait for its copies, and the kernel that decodes what came encoded.
  /// Preconditions: it is ready, and there is room for its pages.
  cudaError_t tell(planner& owner, window_buffer& w, std::size_t sequences, const kernel_set& kernels,
                   cudaStream_t stream) {
    auto taken = host_.take();
    if (!taken) return cudaErrorMemoryAllocation;
    std::byte* const host = (*taken)->data();
    const layer_group& g = owner.layout().groups[owner.layout().group_of(w.layer)];
    fill(owner, w, sequences, g, host);
    cudaError_t e = w.wait_on(stream);
    const std::size_t bytes = indices_ + w.pages.size() * sizeof(std::int32_t);
    if (e == cudaSuccess) e = cudaMemcpyAsync(device_.data(), host, bytes, cudaMemcpyHostToDevice, stream);
    if (e == cudaSuccess) e = decode(w, g, kernels, host, stream);
    const cudaError_t noted = (*taken)->used_by(stream);
    return e == cudaSuccess ? noted : e;
  }

 private:
  std::size_t lay_out(std::size_t sequences, std::size_t pages) noexcept {
    const auto put = [this](std::size_t bytes) {
      return std::exchange(bytes_, align_up(bytes_ + bytes, 16));
    };
    indptr_ = put((sequences + 1) * sizeof(std::int32_t));
    last_page_len_ = put(sequences * sizeof(std::int32_t));
    first_position_ = put(sequences * sizeof(std::int64_t));
    indices_ = put(pages * sizeof(std::int32_t));
    decode_from_ = put(pages * sizeof(void*));
    decode_to_ = put(pages * sizeof(void*));
    return bytes_;
  }

  void fill(planner& owner, const window_buffer& w, std::size_t sequences, const layer_group& g,
            std::byte* host) {
    auto* const indptr = reinterpret_cast<std::int32_t*>(host + indptr_);
    auto* const last_page_len = reinterpret_cast<std::int32_t*>(host + last_page_len_);
    auto* const first_position = reinterpret_cast<std::int64_t*>(host + first_position_);
    auto* const indices = reinterpret_cast<std::int32_t*>(host + indices_);
    std::fill_n(indptr, sequences + 1, 0);
    std::fill_n(last_page_len, sequences, 0);
    std::fill_n(first_position, sequences, 0);
    for (const walked_page& p : w.pages) ++indptr[p.sequence + 1];
    most_pages_ = 0;
    for (std::size_t i = 0; i < sequences; ++i) {
      most_pages_ = std::max(most_pages_, static_cast<std::uint32_t>(indptr[i + 1]));
      indptr[i + 1] += indptr[i];
    }
    next_.assign(indptr, indptr + sequences);
    has_gaps_ = false;
    for (const walked_page& p : w.pages) {
      const std::byte* const page = p.open ? owner.open_data(p.block) : w.place(p.block);
      std::int32_t& at = next_[p.sequence];
      if (at == indptr[p.sequence]) first_position[p.sequence] = std::int64_t{p.position} * g.tokens;
      has_gaps_ |= first_position[p.sequence] / g.tokens + (at - indptr[p.sequence]) != p.position;
      indices[at++] =
          static_cast<std::int32_t>((page - owner.hot_data()) / static_cast<std::ptrdiff_t>(page_stride));
      last_page_len[p.sequence] = static_cast<std::int32_t>(p.tokens);
    }
  }

  // One launch for each run of blocks of one format: they are adjacent as long as one tier has them.
  cudaError_t decode(const window_buffer& w, const layer_group& g, const kernel_set& kernels, std::byte* host,
                     cudaStream_t stream) const {
    auto** const from = reinterpret_cast<const std::byte**>(host + decode_from_);
    auto** const to = reinterpret_cast<std::byte**>(host + decode_to_);
    const auto encoded = w.encoded();
    for (std::size_t i = 0; i < encoded.size(); ++i) {
      from[i] = encoded[i].from;
      to[i] = w.place(encoded[i].block);
    }
    for (std::size_t first = 0, end = 0; first < encoded.size(); first = end) {
      while (end < encoded.size() && encoded[end].format_id == encoded[first].format_id) ++end;
      const cudaError_t e = kernels.decode(g, encoded[first].format_id, from + first, to + first,
                                           static_cast<std::uint32_t>(end - first), stream);
      if (e != cudaSuccess) return e;
    }
    return cudaSuccess;
  }

  // Where the arrays begin; kernels read those from decode_from_ on in the host's memory.
  std::size_t indptr_ = 0, indices_ = 0, last_page_len_ = 0, first_position_ = 0, decode_from_ = 0,
              decode_to_ = 0;
  std::size_t bytes_ = 0;
  table_pool host_;
  device_tables device_;
  std::vector<std::int32_t> next_;  // scratch: where each sequence's next page goes
  std::uint32_t most_pages_ = 0;
  bool has_gaps_ = false;
};

}  // namespace TERRACE_EX
}  // namespace terrace::cuda
