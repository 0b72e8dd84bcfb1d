#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "terrace/execution/io_ring.hpp"
#include "terrace/medium/disk_format.hpp"
#include "terrace/medium/extent_table.hpp"
#include "terrace/medium/file_io.hpp"
#include "terrace/medium/medium.hpp"
#include "terrace/medium/space.hpp"
#include "terrace/medium/store_sync.hpp"

namespace terrace {
inline namespace TERRACE_EX {

/// One file on a local disk, read and written through io_uring (or, where that is refused, through a few threads),
/// past the page cache where the file system allows it. Its space is claimed when it is opened, so that a full disk
/// is reported then and not in the middle of a decode. resize() claims more, or gives the disk back what lies beyond
/// the new capacity: free space at once, the rest when it is released. The file is private to the user (0600) and
/// locked, so that another cache is refused. It is removed at the end unless `keep` is set: then it is a store in the
/// format of docs/on-disk-format.md, whose labelled extents a later cache finds again. A store's capacity includes
/// its superblock and its table (1/32), and is fixed. A store is never truncated: without `keep` its file is refused.
/// A killed process cleans nothing up: its file stays, with the KV in it, until a cache is opened at that path again
/// or somebody removes it.
class nvme {
 public:
  static constexpr std::string_view name = "nvme";
  static constexpr reach addressable = reach::nobody;
  static constexpr bool persistent = true;
  static constexpr std::size_t alignment = 4096;
  static constexpr std::size_t granularity = std::size_t{128} << 10;

  struct options {
    std::size_t capacity = 0;  ///< bytes; 0: no such tier
    std::string path = {};     ///< created or truncated; empty: an unnamed file in $TMPDIR or /tmp
    bool direct = true;  ///< ask for O_DIRECT; a file system that has none is used through the page cache
    bool keep = false;   ///< make a store of the file at `path`, or continue the one that is there
    store_contents contents = {};  ///< of the store; tiered_cache::open fills it in
  };

  static result<std::unique_ptr<nvme>> open(context& ctx, options o);

  nvme(nvme&&) = delete;
  ~nvme();

  std::optional<extent> reserve(std::size_t bytes) { return space_.reserve(bytes); }
  std::optional<extent> reserve_behind(std::optional<extent> before, std::size_t bytes) {
    return space_.reserve_behind(before, bytes);
  }
  void release(extent e) noexcept;
  /// Raising the capacity claims the room, and fails with io_error if the disk has none. Lowering it always succeeds.
  /// Where the file system cannot free the middle of a file, it gets everything back only once nothing in use lies
  /// beyond the capacity. Blocks as the file system does.
  result<void> resize(std::size_t capacity);
  /// See io_ring::register_buffer; lasts until the medium is closed.
  void register_buffer(mutable_bytes memory);
  auto read(extent e, mutable_bytes into) noexcept {
    return ring_.read(file_, into, data_offset_ + e.offset);
  }
  auto write(extent e, const_bytes from) noexcept {
    return ring_.write(file_, from, data_offset_ + e.offset);
  }

  // --- As a store; see persistent_medium.

  bool keeps() const noexcept { return sync_.has_value(); }
  auto sync() noexcept { return sync_->start(); }
  bool label(extent e, extent_header h);
  void unlabel(extent e) noexcept { table_.erase(e.node); }
  template <class Visitor>
  void scan(Visitor visitor) {
    for (auto& [at, header] : std::exchange(found_, {})) {
      table_.adopt(at.node, header);
      if (!visitor(at, std::as_const(header))) release(at);
    }
  }
  std::size_t capacity() const noexcept { return space_.capacity(); }
  std::size_t used() const noexcept { return space_.used(); }

  /// Whether transfers go past the page cache, and whether the kernel's io_uring carries them.
  bool direct() const noexcept { return direct_; }
  bool uses_io_uring() const noexcept { return ring_.uses_io_uring(); }

 private:
  explicit nvme(io_ring& ring) : ring_(ring), space_(0, alignment) {}

  // Makes sure that [from, to) of the file has room on the disk, whatever lies there already.
  result<void> claim(std::uint64_t from, std::uint64_t to) noexcept;

  // Gives [from, to), which is free and beyond the capacity, back to the disk.
  void give_back(std::uint64_t from, std::uint64_t to) noexcept;
  void give_back_beyond() noexcept;
  void cut_file(std::uint64_t bytes) noexcept;

  static constexpr const char* unopenable = "the file of an nvme tier cannot be opened for writing";
  static constexpr const char* replaced = "the file of an nvme tier was replaced while it was opened";

  result<void> open_file(const options& o);
  result<void> take_file(const std::string& path);
  // Opens the plain file at `path`, or makes it, and locks it: the file is nobody else's until it is closed.
  result<void> open_named(const std::string& path);

  // Opens the file twice: the table goes through the page cache and shares no page with the extents. The table's
  // descriptor holds the lock.
  result<void> open_store(context& ctx, const options& o);
  result<void> continue_store(context& ctx, const options& o);

  // Of overlapping extents only the latest is valid: the others' room has been reused. Extents come latest first and
  // are scanned in that order, because of two with one name the latest is valid too.
  void claim_found();

  io_ring& ring_;
  space space_;
  std::vector<mutable_bytes> registered_;
  std::string path_;  // empty where there is nothing to remove
  int file_ = -1;
  std::uint64_t file_bytes_ = 0;  // as it is meant to be
  bool direct_ = false;

  // Only for a store.
  std::uint64_t data_offset_ = 0;
  extent_table table_;
  std::vector<std::pair<extent, extent_header>> found_;  // and not yet scanned
  bool opened_ = false;
  bool made_ = false;  // the file was not there before
  std::optional<store_sync> sync_;
};
static_assert(resizable_medium<nvme> && persistent_medium<nvme> && buffer_registering_medium<nvme>);

}  // namespace TERRACE_EX
}  // namespace terrace

#if !defined(TERRACE_PREBUILT)
#include "terrace/medium/nvme_body.hpp"  // IWYU pragma: export
#endif
