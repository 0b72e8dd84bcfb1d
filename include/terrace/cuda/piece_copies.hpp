#pragma once
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "terrace/cuda/page_tables.hpp"
#include "terrace/cuda/pinning.hpp"
#include "terrace/cuda/transfer_choice.hpp"

namespace terrace::cuda {

/// Bytes that go from one place to another; one of them is host memory.
struct copy_piece {
  std::byte* to = nullptr;
  const std::byte* from = nullptr;
  std::size_t bytes = 0;
};

enum class copy_direction : std::uint8_t { up, down };  ///< host to device, device to host

/// Copies from[i] to to[i], `bytes` each, by a kernel on `stream`. The arrays and all pieces are in pinned memory or
/// on the device, and stay until it has run.
using copy_kernel = cudaError_t (*)(const std::byte* const* from, std::byte* const* to, std::uint32_t count,
                                    std::size_t bytes, cudaStream_t stream);

/// Enqueues pieces on a stream by the method that suits their size and number: one by one, as a batch, or by a kernel.
/// Part of host_link.
class piece_copies {
 public:
  void use(const transfer_choice& choice) noexcept { choice_ = choice; }
  void use(copy_kernel kernel) noexcept { kernel_ = kernel; }
  const transfer_choice& choice() const noexcept { return choice_; }

  /// Memory whose pinned chunks are known, until it is forgotten. O(pinnings).
  void know(const pinning& pins) { pinned_.push_back(&pins); }
  void forget(const pinning& pins) noexcept { std::erase(pinned_, &pins); }

  /// See host_link::enqueue.
  cudaError_t enqueue(std::span<const copy_piece> pieces, copy_direction way, cudaStream_t stream) noexcept;

 private:
  const pinning* pinning_of(const void* host) const noexcept;
  std::size_t add_split(const copy_piece& piece, copy_direction way);
  cudaError_t enqueue_one_by_one(cudaStream_t stream) noexcept;
  cudaError_t enqueue_batched(cudaStream_t stream) noexcept;
  cudaError_t enqueue_kernels(cudaStream_t stream) noexcept;

  static constexpr std::size_t most_gathered = 4096;  // pieces of one launch

  std::vector<const pinning*> pinned_;
  transfer_choice choice_;
  copy_kernel kernel_ = nullptr;
  table_pool addresses_{2 * most_gathered * sizeof(void*)};
  bool has_batched_ = true;  // until the driver says otherwise
  // Scratch of enqueue.
  std::vector<copy_piece> pieces_;
  std::vector<void*> to_;
  std::vector<const void*> from_;
  std::vector<std::size_t> bytes_;
};

inline const pinning* piece_copies::pinning_of(const void* host) const noexcept {
  for (const pinning* p : pinned_)
    if (p->contains(host)) return p;
  return nullptr;
}

// Cuts a piece where its host side comes to the end of a pinned chunk. Returns 1 where all of it is pinned.
inline std::size_t piece_copies::add_split(const copy_piece& piece, copy_direction way) {
  const void* const host = way == copy_direction::up ? static_cast<const void*>(piece.from) : piece.to;
  const pinning* const pins = pinning_of(host);
  const bool pinned = pins != nullptr && pins->covers(host, piece.bytes);
  copy_piece rest = piece;
  while (pins != nullptr && rest.bytes != 0) {
    const void* const at = way == copy_direction::up ? static_cast<const void*>(rest.from) : rest.to;
    const std::size_t now = std::min(rest.bytes, pins->left_in_chunk(at));
    pieces_.push_back({rest.to, rest.from, now});
    rest = {rest.to + now, rest.from + now, rest.bytes - now};
  }
  if (rest.bytes != 0) pieces_.push_back(rest);
  return pinned ? 1 : 0;
}

inline cudaError_t piece_copies::enqueue(std::span<const copy_piece> pieces, copy_direction way,
                                         cudaStream_t stream) noexcept {
  if (pieces.empty()) return cudaSuccess;
  pieces_.clear();
  std::size_t pinned = 0, bytes = 0;
  for (const copy_piece& p : pieces) {
    pinned += add_split(p, way);
    bytes += p.bytes;
  }
  if (pieces_.empty()) return cudaSuccess;
  const transfer_method method = choice_.pick(bytes / pieces_.size(), pieces_.size());
  if (method == transfer_method::kernel && kernel_ != nullptr && pinned == pieces.size())
    return enqueue_kernels(stream);
  const bool on_a_stream = stream != nullptr && stream != cudaStreamLegacy;  // batches refuse the legacy one
  if (method != transfer_method::copies && pieces_.size() > 1 && has_batched_ && on_a_stream) {
    const cudaError_t e = enqueue_batched(stream);
    const bool unknown = e == cudaErrorNotSupported || e == cudaErrorCallRequiresNewerDriver;
    // The documentation of batches does not mention memory that is neither pinned nor the device's: a batch may be
    // refused for it.
    const bool unfit = e == cudaErrorInvalidValue && pinned != pieces.size();
    if (!unknown && !unfit) return e;
    static_cast<void>(cudaGetLastError());
    if (unknown) has_batched_ = false;
  }
  return enqueue_one_by_one(stream);
}

inline cudaError_t piece_copies::enqueue_one_by_one(cudaStream_t stream) noexcept {
  for (const copy_piece& p : pieces_)
    if (const cudaError_t e = cudaMemcpyAsync(p.to, p.from, p.bytes, cudaMemcpyDefault, stream);
        e != cudaSuccess)
      return e;
  return cudaSuccess;
}

// A launch for each run of pieces of one size.
inline cudaError_t piece_copies::enqueue_kernels(cudaStream_t stream) noexcept {
  for (std::size_t first = 0, end = 0; first < pieces_.size(); first = end) {
    while (end < pieces_.size() && end - first < most_gathered && pieces_[end].bytes == pieces_[first].bytes)
      ++end;
    auto tables = addresses_.take();
    if (!tables) return cudaErrorMemoryAllocation;
    auto** const from = reinterpret_cast<const std::byte**>((*tables)->data());
    auto** const to = reinterpret_cast<std::byte**>((*tables)->data() + most_gathered * sizeof(void*));
    for (std::size_t i = first; i < end; ++i) {
      from[i - first] = pieces_[i].from;
      to[i - first] = pieces_[i].to;
    }
    const cudaError_t e =
        kernel_(from, to, static_cast<std::uint32_t>(end - first), pieces_[first].bytes, stream);
    const cudaError_t noted = (*tables)->used_by(stream);
    if (e != cudaSuccess) return e;
    if (noted != cudaSuccess) return noted;
  }
  return cudaSuccess;
}

inline cudaError_t piece_copies::enqueue_batched([[maybe_unused]] cudaStream_t stream) noexcept {
#if CUDART_VERSION >= 13000
  to_.clear();
  from_.clear();
  bytes_.clear();
  for (const copy_piece& p : pieces_) {
    to_.push_back(p.to);
    from_.push_back(p.from);
    bytes_.push_back(p.bytes);
  }
  cudaMemcpyAttributes how{};
  how.srcAccessOrder = cudaMemcpySrcAccessOrderStream;
  std::size_t first = 0;
  return cudaMemcpyBatchAsync(to_.data(), from_.data(), bytes_.data(), bytes_.size(), &how, &first, 1,
                              stream);
#else
  return cudaErrorNotSupported;
#endif
}

}  // namespace terrace::cuda
