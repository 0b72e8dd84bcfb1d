#pragma once
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "terrace/core/bytes.hpp"
#include "terrace/core/config.hpp"
#include "terrace/medium/extent.hpp"

namespace terrace {

/// Hands out variable-sized runs of [0, capacity): the space allocator of every medium. It keeps its books outside
/// the space, so it serves a file as well as an arena. Two-level segregated fit (Masmano et al., "TLSF: a new dynamic
/// memory allocator for real-time systems", 2004): reserve and release are O(1), except that a reserve for which no
/// larger class has a run looks at all runs of its own class. Adjacent free runs are merged unless the limit (below)
/// lies between them. Books grow with the largest number of runs ever in use and are then reused.
///
/// The capacity can change, and nothing moves. Runs are handed out only below a limit, so that what is in use and
/// what is handed out together never need more than the capacity: the highest limit for which it and what is in use
/// beyond it fit into the capacity. It rises as runs beyond it are released, up to the capacity itself; while more
/// than the capacity is in use it is 0.
class space {
 public:
  /// `granule` is a power of two: offsets and sizes are multiples of it.
  space(std::size_t capacity, std::size_t granule);

  /// A run of at least `bytes`, or nothing: there may be enough room in total and still no run that is long enough.
  std::optional<extent> reserve(std::size_t bytes);

  /// The same for what will be read in order: directly behind `before`, a run in use, if that space is free.
  /// Otherwise, or without `before`, at a place with some room around it, so that the next one can lie behind it too.
  /// Otherwise wherever there is room. O(1).
  std::optional<extent> reserve_behind(std::optional<extent> before, std::size_t bytes);

  /// The run of `bytes` at `offset`, a multiple of the granule, if all of it is free and within the limit. For
  /// extents that existed before: O(1) in ascending order, O(runs behind it) in any other.
  std::optional<extent> reserve_at(std::uint64_t offset, std::uint32_t bytes);

  void release(extent e) noexcept;

  /// Sets the capacity to `capacity`, rounded down to whole granules. O(runs beyond the lower of the old and the new
  /// limit).
  void resize(std::size_t capacity);

  std::size_t capacity() const noexcept { return capacity_ << granule_shift_; }
  std::size_t used() const noexcept { return used_; }
  /// Runs are handed out in [0, limit()). What is free beyond it, or is released there, is not needed for the time
  /// being.
  std::size_t limit() const noexcept { return limit_ << granule_shift_; }
  /// What is in use beyond the limit. It is 0 exactly while nothing in use reaches beyond the capacity; then the
  /// limit is the capacity.
  std::size_t overhang() const noexcept { return beyond_ << granule_shift_; }
  /// f(offset, bytes) for the part of each free run that lies beyond `from`. O(runs from there on).
  template <class F>
  void for_each_free(std::uint64_t from, F f) const {
    from >>= granule_shift_;
    for (std::uint32_t n = last_; n != none && end(n) > from; n = nodes_[n].previous) {
      const std::uint64_t begin = std::max(nodes_[n].offset, from);
      if (nodes_[n].free) f(begin << granule_shift_, (end(n) - begin) << granule_shift_);
    }
  }
  /// Bytes that a reservation of `bytes` takes.
  std::size_t rounded(std::size_t bytes) const noexcept;

 private:
  static constexpr std::uint32_t none = 0xffffffffu;
  static constexpr unsigned second_bits =
      4;  // 16 lists for every power of two: at most 1/16 is lost to rounding
  static constexpr unsigned second = 1u << second_bits;
  // Left free where a new order begins, so that this much can lie together; less in a small space, which must hold
  // the orders of many rows.
  static constexpr std::size_t most_order_bytes = 16_MiB, orders = 64;

  struct node {
    std::uint64_t offset = 0, size = 0;                // in granules
    std::uint32_t previous = none, next = none;        // neighbours in space
    std::uint32_t list_prev = none, list_next = none;  // neighbours in the list of their size
    bool free = false;  // and then in a list, unless it lies beyond the limit; no run straddles that
  };
  struct bin {
    unsigned first, second;
  };

  static bin bin_of(std::uint64_t size) noexcept;

  // The shortest list whose every run is long enough; failing that, a run of the very list that `want` falls
  // into.
  std::uint32_t find(std::uint64_t want) const noexcept;

  // Takes `want` granules from `begin` on out of the free run `n`, which has them, and returns their run.
  std::uint32_t take(std::uint32_t n, std::uint64_t begin, std::uint64_t want);

  void list(std::uint32_t n) noexcept;

  void unlist(std::uint32_t n) noexcept;

  std::uint64_t end(std::uint32_t n) const noexcept { return nodes_[n].offset + nodes_[n].size; }

  // Makes one run of `n` and its free neighbours on the same side of the limit.
  void set_free(std::uint32_t n) noexcept;

  // Over runs in use it rises without cost, over free ones as far as the capacity has room.
  void raise_limit();
  void lower_limit();

  std::uint32_t new_node();

  // Leaves `keep` granules to `n` and returns the run of the rest, which is in no list.
  std::uint32_t cut(std::uint32_t n, std::uint64_t keep);

  // Makes one run of two neighbours and recycles the second one's node.
  void absorb(std::uint32_t left, std::uint32_t right) noexcept;

  int granule_shift_;
  std::uint64_t capacity_ = 0, limit_ = 0;  // in granules
  std::uint64_t beyond_ = 0;                // in use beyond the limit, in granules
  std::size_t used_ = 0;                    // in bytes
  std::size_t taken_ = 0;                   // runs in use
  std::vector<node> nodes_;
  std::uint32_t last_ = none;      // the run at the end of the space
  std::uint32_t boundary_ = none;  // the first run beyond the limit
  std::uint32_t recycled_ = none;
  std::uint64_t first_map_ = 0;
  std::array<unsigned, 64> second_map_{};
  std::array<std::array<std::uint32_t, second>, 64> heads_{};
};

}  // namespace terrace

#if !defined(TERRACE_PREBUILT)
#include "terrace/medium/space_body.hpp"  // IWYU pragma: export
#endif
