#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "terrace/core/block.hpp"
#include "terrace/core/error.hpp"

namespace terrace {

class planner;
class acquire_request;

/// The form in which an acquire wants blocks: as the engine wrote them, or also as stored, wherever attention can
/// read them without decoding (`attendable` codecs), which saves a copy.
enum class lease_form : std::uint8_t { raw, attendable };

/// A block that a lease holds in place: its address, valid while the lease lives, and how good this copy is.
struct leased_block {
  block_id id;
  const std::byte* data = nullptr;
  std::uint32_t format_id = 0;  ///< of the codec that encoded `data`; 0: raw, as its layer group lays it out
  fidelity quality;
  std::uint8_t tier = 0;  ///< where this copy is
};

/// A block of an acquire, from the request to the release. For the planner.
struct lease_entry : leased_block {
  enum class state : std::uint8_t { asked, pinned, waiting, lost };
  state now = state::asked;
  error cause{};  ///< why it is lost
  acquire_request* request = nullptr;
  lease_entry* next = nullptr;  ///< the next entry that waits for the same block
};

/// Storage behind a lease. The planner recycles it, so that acquiring allocates nothing in steady state.
struct lease_record {
  planner* owner = nullptr;
  std::vector<lease_entry> entries;
  lease_record* next = nullptr;
};

/// Pinned blocks, readable at their addresses until the lease is released or dropped. Move-only, owner thread only;
/// it must not outlive its cache. Blocks are in the order in which they were asked for.
class lease {
 public:
  lease() = default;
  explicit lease(lease_record* record) noexcept : record_(record) {}
  lease(lease&& other) noexcept : record_(std::exchange(other.record_, nullptr)) {}
  lease& operator=(lease&& other) noexcept {
    std::swap(record_, other.record_);
    return *this;
  }
  ~lease() { release(); }

  std::size_t size() const noexcept { return record_ == nullptr ? 0 : record_->entries.size(); }
  bool empty() const noexcept { return size() == 0; }
  /// Precondition: i < size(). In the lease of a block_error, lost blocks have no data.
  const leased_block& operator[](std::size_t i) const noexcept { return record_->entries[i]; }
  /// Unpins everything now. O(size).
  void release() noexcept;
  /// Unpins the blocks that are read in `tier`, which then have no data; the others stay. O(size).
  void release_tier(std::uint8_t tier) noexcept;

 private:
  lease_record* record_ = nullptr;
};

/// A block that no tier could give, and why.
struct lost_block {
  block_id id;
  error cause;
};

/// Some blocks could not be had. The lease holds those that could, so that recomputing the lost ones and asking again
/// makes progress.
struct block_error : error {
  std::vector<lost_block> lost;
  lease rest;

  block_error(error e) noexcept : error(e) {}
};

/// Passes the error on, for `return propagate(done.error())`: with the lost blocks and the lease in a function that
/// returns a basic_result<T, block_error>; in one that returns a `result`, only what went wrong.
inline failure<block_error> propagate(block_error&& e) noexcept { return {std::move(e)}; }
inline failure<block_error> propagate(block_error& e) noexcept { return {std::move(e)}; }

}  // namespace terrace
