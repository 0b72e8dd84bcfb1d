#pragma once
// Contract only: declared so that an engine's decode loop compiles against it; nothing of it has been built
// or run yet.
#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "terrace/cache/lease.hpp"
#include "terrace/cache/store.hpp"
#include "terrace/sequence.hpp"

namespace terrace::cuda {
inline namespace TERRACE_EX {

/// Where an engine's kernel writes the K and V of reserved tokens: for each of them, in the order of the
/// batch, the index of its slot, in device memory at an address that does not change.
class reserved_slots {
 public:
  const std::int64_t* mapping(std::uint32_t layer) const noexcept;
};

/// Pages that are in device memory for work on one stream: the arrays that paged kernels take, in device
/// memory at addresses that do not change. Move-only. Dropped without a release it records its event on its
/// stream itself.
class window {
 public:
  window(window&& other) noexcept;
  ~window();
  const std::int32_t* indptr() const noexcept;
  const std::int32_t* indices() const noexcept;
  const std::int32_t* last_page_len() const noexcept;
  /// The base that indices count pages from.
  const void* pages() const noexcept;
  /// The slots may be reused after what is enqueued on `stream` up to here, and no sooner. No host wait.
  void release(cudaStream_t stream) && noexcept;

 private:
  struct state;
  std::unique_ptr<state> state_;
};

/// A ragged set of sequences that decode together on a device. No member waits on the host.
class batch {
 public:
  struct options {
    std::uint32_t sequences = 256;
    std::uint32_t pages = 1u << 16;
  };
  batch(kv_store& cache, options o);
  ~batch();

  void assign(std::span<sequence* const> sequences);
  /// Room for tokens[i] more tokens of sequence i, or out_of_capacity at once.
  result<reserved_slots> reserve(std::span<const std::uint32_t> tokens);
  /// Enqueues the copies of the next window of `layer` and makes `stream` wait for them; nothing when all are
  /// given.
  std::optional<window> next(std::uint32_t layer, cudaStream_t stream);
  /// Blocks that could not be had, to be computed anew.
  std::span<const lost_block> lost() const noexcept;
  void commit(std::span<const std::uint32_t> kept);

 private:
  struct state;
  std::unique_ptr<state> state_;
};

/// Merges `partial` into `into` on `stream`: rows of (m, l, o[dim]) as attention/partial_state.hpp defines
/// them.
cudaError_t merge(float* into, const float* partial, std::uint32_t rows, std::uint32_t dim,
                  cudaStream_t stream) noexcept;

}  // namespace TERRACE_EX
}  // namespace terrace::cuda
