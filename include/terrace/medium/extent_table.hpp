#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "terrace/core/bytes.hpp"
#include "terrace/core/error.hpp"
#include "terrace/medium/disk_format.hpp"
#include "terrace/medium/file_io.hpp"

namespace terrace {

/// What makes a medium outlive the process: the superblock and the table of extent headers at the beginning of a file
/// (docs/on-disk-format.md). The medium says which extents have a header; `commit`, called by a sync of the medium,
/// writes what has changed. In memory it is as large as the headers in use. Owner thread only, but for `commit`.
class extent_table {
 public:
  /// What is on its way to the disk: the pages of the table that have changed, and where they go.
  struct changes {
    std::vector<std::size_t> pages;
    std::vector<std::byte> bytes;
  };

  extent_table() = default;
  extent_table(const extent_table&) = delete;

  /// Takes over `file`, locks it, and reads what is in it. A file whose first sector is zeros becomes a new
  /// store, for which `shape` is the superblock; `bytes` is how long the file has to be. Errors, and then the file is
  /// as it was: unavailable where another process has it, or for another version; corrupt for what is no store or is
  /// shorter than it should be; invalid_argument where it holds something else than `shape` says; io_error. O(table).
  result<void> open(descriptor file, const superblock& shape, std::uint64_t bytes);

  /// The headers that were found at opening, those of a later sequence number first, each once.
  std::vector<extent_header> take_found() { return std::exchange(found_, {}); }

  /// Gives the extent that the medium calls `node` a header, in memory. `h` has everything but store and sequence.
  /// False where the table has no room. Amortised O(1).
  bool put(std::uint32_t node, extent_header h);
  /// A header found at opening belongs to the extent that the medium calls `node` now.
  void adopt(std::uint32_t node, const extent_header& found);
  /// The extent has no header any more. O(1).
  void erase(std::uint32_t node) noexcept;
  /// A header found at opening is of no use.
  void discard(const extent_header& found) noexcept;

  /// What has changed since it was last called. O(pages changed).
  changes take_changes();
  /// They did not get to the disk.
  void put_back(const changes& c);
  /// Writes `c` and makes it durable. Any thread; blocks as the file system does.
  result<void> commit(const changes& c) const noexcept;

 private:
  static constexpr std::size_t page = 4096, sector = 512;
  static constexpr std::uint32_t none = 0xffffffffu;
  static constexpr std::uint64_t table_at(std::uint64_t offset) noexcept {
    return superblock::bytes + offset;
  }

  result<void> compare(const superblock& found) const noexcept;

  result<void> create(std::uint64_t bytes) noexcept;

  result<void> write_again() const noexcept;
  void find_headers();

  std::optional<std::uint32_t> free_place();
  void write(std::uint32_t place, const extent_header_bytes& bytes) noexcept;
  void mark(std::size_t p);

  result<void> read_at(mutable_bytes into, std::uint64_t at) const noexcept;
  result<void> write_at(const_bytes from, std::uint64_t at) const noexcept;

  descriptor file_;
  superblock shape_;
  std::uint64_t sequence_ = 0;
  std::vector<std::byte> image_;       // the table as it should be, as far as it was ever in use
  std::vector<std::size_t> dirty_;     // pages of it that the disk does not have
  std::vector<bool> is_dirty_;         // the same, by page
  std::vector<std::uint32_t> free_;    // places
  std::vector<std::uint32_t> places_;  // by the medium's number of the extent
  std::vector<extent_header> found_;
  std::map<std::uint64_t, std::uint32_t> found_at_;  // place by sequence number
};

}  // namespace terrace

#if !defined(TERRACE_PREBUILT)
#include "terrace/medium/extent_table_body.hpp"  // IWYU pragma: export
#endif
