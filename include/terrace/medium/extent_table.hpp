#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <unordered_map>
#include <utility>
#include <vector>

#include "terrace/core/bytes.hpp"
#include "terrace/core/error.hpp"
#include "terrace/medium/disk_format.hpp"
#include "terrace/medium/file_io.hpp"

namespace terrace {

/// What makes a medium outlive the process: the superblock and the table of extent headers at the beginning of a file
/// (docs/on-disk-format.md). The medium says which extents have a header; `commit`, called by a sync of the medium,
/// writes what has changed. It takes memory only for the headers in use, wherever in the table they are. Owner thread
/// only, except for `commit`.
class extent_table {
 public:
  /// What is on its way to the disk: the pages of the table that have changed, and where they go.
  struct changes {
    std::vector<std::size_t> pages;
    std::vector<std::byte> bytes;
  };

  extent_table() = default;
  extent_table(const extent_table&) = delete;

  /// Takes over `file`, locks it, and reads its contents. A file whose first sector is zeros becomes a new store with
  /// `shape` as its superblock; `bytes` is the length that the file must have. Errors, after which the file is as
  /// it was: unavailable if a cache has it already, in this process or another, or for another version; corrupt if it
  /// is not a store or is too short; invalid_argument if it holds something other than `shape` says. After an
  /// io_error a new store may be half made. O(what was ever written of the
  /// table), where the file system can tell; else O(table).
  result<void> open(descriptor file, const superblock& shape, std::uint64_t bytes);

  /// The headers that were found at opening, the highest sequence number first, each once.
  std::vector<extent_header> take_found() { return std::exchange(found_, {}); }

  /// Gives the extent that the medium calls `node` a header, in memory. `h` has every field but store and sequence.
  /// False if the table has no room, or a forged header has used the sequence numbers up. Amortised O(1).
  bool put(std::uint32_t node, extent_header h);
  /// From now on a header found at opening belongs to the extent that the medium calls `node`.
  void adopt(std::uint32_t node, const extent_header& found);
  /// The extent has no header any more. O(1).
  void erase(std::uint32_t node) noexcept;
  /// Drops a header found at opening that is of no use.
  void discard(const extent_header& found) noexcept;

  /// What has changed since it was last called. O(pages changed).
  changes take_changes();
  /// Takes back changes that did not reach the disk.
  void put_back(const changes& c);
  /// Writes `c` and makes it durable. Any thread; blocks as the file system does.
  result<void> commit(const changes& c) const noexcept;

 private:
  static constexpr std::size_t page = 4096, sector = 512, piece = std::size_t{1} << 20;
  static constexpr std::size_t places_a_page = page / extent_header::bytes;
  static constexpr std::uint32_t none = 0xffffffffu;
  static constexpr std::uint64_t table_at(std::uint64_t offset) noexcept {
    return superblock::bytes + offset;
  }
  // Places from here on are not used: their numbers are too large.
  std::uint32_t places() const noexcept {
    return static_cast<std::uint32_t>(shape_.headers < none ? shape_.headers : none);
  }

  result<void> compare(const superblock& found) const noexcept;

  result<void> create(std::uint64_t bytes) noexcept;

  // Bytes [from, to) of the file.
  struct stretch {
    std::uint64_t from, to;
  };
  result<void> read_table();
  stretch next_written(std::uint64_t at, std::uint64_t end) const noexcept;
  void find_headers(const_bytes in, std::uint64_t place);
  void add_gap(std::uint32_t first, std::uint32_t last);

  std::optional<std::uint32_t> free_place();
  void clear(std::uint32_t place) noexcept;
  void mark(std::uint32_t place) { dirty_.insert(place / places_a_page); }

  result<void> read_at(mutable_bytes into, std::uint64_t at) const noexcept;
  result<void> write_at(const_bytes from, std::uint64_t at) const noexcept;

  descriptor file_;
  superblock shape_;
  std::uint64_t sequence_ = 0;
  std::unordered_map<std::uint32_t, extent_header_bytes> headers_;  // by place; other places are zeros
  std::set<std::size_t> dirty_;                                     // pages that differ from the disk's
  std::vector<std::uint32_t> free_;                                 // places that had a header
  std::vector<std::pair<std::uint32_t, std::uint32_t>>
      gaps_;                  // [first, last) never had a header; the lowest comes last
  std::uint32_t unseen_ = 0;  // while the table is read: behind the last place that has a header
  std::unordered_map<std::uint32_t, std::uint32_t> places_;  // by the medium's number of the extent
  std::vector<extent_header> found_;
  std::map<std::uint64_t, std::uint32_t>
      found_at_;  // place by sequence number, until it is adopted or discarded
};

}  // namespace terrace

#if !defined(TERRACE_PREBUILT)
#include "terrace/medium/extent_table_body.hpp"  // IWYU pragma: export
#endif
