#pragma once
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <iterator>
#include <map>
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

/// One file on a local disk, read and written through io_uring (or, where that is refused, through a few
/// threads), past the page cache where the file system allows it. Its space is claimed when it is opened, so
/// that a full disk is said then and not in the middle of a decode; resize() claims more, or gives the disk
/// back what lies beyond the new capacity, at once where it is free and when it is released where it is not.
/// The file is the owner's alone (0600), and is removed at the end, unless `keep` says otherwise: then it is a store
/// in the format of docs/on-disk-format.md, whose labelled extents a later cache finds again. A store's capacity
/// includes its superblock and its table (1/32), and is fixed.
class nvme {
 public:
  static constexpr std::string_view name = "nvme";
  static constexpr reach addressable = reach::nobody;
  static constexpr bool persistent = true;
  static constexpr std::size_t alignment = 4096;
  static constexpr std::size_t granularity = std::size_t{128} << 10;

  struct options {
    std::size_t capacity = 0;  ///< bytes; 0: no such tier
    std::string path = {};     ///< created or truncated; empty: a file without a name in $TMPDIR or /tmp
    bool direct = true;  ///< ask for O_DIRECT; a file system that has none is used through the page cache
    bool keep = false;   ///< make a store of the file at `path`, or go on with the one that is there
    store_contents contents = {};  ///< of the store; tiered_cache::open fills it in
  };

  static result<std::unique_ptr<nvme>> open(context& ctx, options o) {
    if (o.capacity < alignment) return fail(errc::invalid_argument, "an nvme tier needs at least 4 KiB");
    auto medium = std::unique_ptr<nvme>(new nvme(io_ring::of(ctx)));
    if (o.keep) {
      if (auto opened = medium->open_store(ctx, o); !opened) return propagate(opened.error());
      return medium;
    }
    if (auto opened = medium->open_file(o); !opened) return propagate(opened.error());
    if (auto claimed = medium->resize(o.capacity); !claimed) return propagate(claimed.error());
    return medium;
  }

  nvme(nvme&&) = delete;
  ~nvme() {
    for (const mutable_bytes memory : registered_) ring_.unregister_buffer(memory);
    if (sync_ && opened_) static_cast<void>(sync_->run());  // what was released must not come back
    sync_.reset();
    if (file_ >= 0) ::close(file_);
    if (!path_.empty()) ::unlink(path_.c_str());
  }

  std::optional<extent> reserve(std::size_t bytes) { return space_.reserve(bytes); }
  void release(extent e) noexcept {
    const std::uint64_t end = e.offset + space_.rounded(e.bytes);
    space_.release(e);
    if (keeps()) return table_.erase(e.node);
    if (end > space_.capacity()) give_back(std::max<std::uint64_t>(e.offset, space_.capacity()), end);
  }
  /// Raising it claims the room, and fails with io_error where the disk has none. Lowering it always succeeds.
  /// Where the file system cannot free the middle of a file, it gets everything back only once nothing in use
  /// lies beyond the capacity. Blocks as the file system does.
  result<void> resize(std::size_t capacity) {
    if (keeps()) return fail(errc::unavailable, "a store of KV blocks has one size for all its life");
    const std::size_t before = space_.capacity(), wanted = capacity / alignment * alignment;
    result<void> claimed;
    if (wanted > before) claimed = claim(before, wanted);
    if (claimed) space_.resize(wanted);
    if (wanted < before || !claimed) give_back_beyond();
    return claimed;
  }
  /// As io_ring::register_buffer says, until the medium is closed.
  void register_buffer(mutable_bytes memory) {
    if (ring_.register_buffer(memory)) registered_.push_back(memory);
  }
  auto read(extent e, mutable_bytes into) noexcept {
    return ring_.read(file_, into, data_offset_ + e.offset);
  }
  auto write(extent e, const_bytes from) noexcept {
    return ring_.write(file_, from, data_offset_ + e.offset);
  }

  // --- As a store; see persistent_medium.

  bool keeps() const noexcept { return sync_.has_value(); }
  auto sync() noexcept { return sync_->start(); }
  bool label(extent e, extent_header h) {
    h.place = e.offset;
    return table_.put(e.node, h);
  }
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
  result<void> claim(std::uint64_t from, std::uint64_t to) noexcept {
    // Unwritten extents cost nothing now; a file system that cannot claim space gets a hole.
    const bool claimed = ::fallocate(file_, 0, static_cast<off_t>(from), static_cast<off_t>(to - from)) == 0;
    const int why = claimed ? 0 : errno;
    if (why == ENOSPC || why == EFBIG || why == EDQUOT)
      return fail(errc::io_error, "the disk of an nvme tier has no room for its capacity", why);
    if (!claimed && to > file_bytes_ && ::ftruncate(file_, static_cast<off_t>(to)) != 0)
      return fail(errc::io_error, "the file of an nvme tier cannot be made as large as its capacity", errno);
    file_bytes_ = std::max(file_bytes_, to);
    return {};
  }

  // Beyond the capacity [from, to) is free: it goes back to the disk.
  void give_back(std::uint64_t from, std::uint64_t to) noexcept {
    if (space_.overhang() == 0)
      cut_file(space_.capacity());
    else
      ::fallocate(file_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(from),
                  static_cast<off_t>(to - from));
  }
  void give_back_beyond() noexcept {
    cut_file(space_.overhang() == 0 ? space_.capacity() : file_bytes_);  // a claim that failed may have begun
    if (space_.overhang() == 0) return;
    space_.for_each_free(space_.capacity(), [this](std::uint64_t offset, std::uint64_t bytes) {
      give_back(offset, offset + bytes);
    });
  }
  void cut_file(std::uint64_t bytes) noexcept {
    if (::ftruncate(file_, static_cast<off_t>(bytes)) == 0) file_bytes_ = bytes;
  }

  result<void> open_file(const options& o) {
    const bool named = !o.path.empty();
    if (!named) {
      const char* folder = std::getenv("TMPDIR");
      path_ = std::string(folder != nullptr && *folder != 0 ? folder : "/tmp") + "/terrace-XXXXXX";
      file_ = ::mkostemp(path_.data(), O_CLOEXEC);  // 0600
    } else {
      file_ = ::open(o.path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    }
    if (file_ < 0) {
      path_.clear();
      return fail(errc::io_error, "the file of an nvme tier cannot be opened for writing", errno);
    }
    struct stat what {};
    if (named && (::fstat(file_, &what) != 0 || !S_ISREG(what.st_mode)))
      return fail(errc::invalid_argument,
                  "the path of an nvme tier names something that is not a plain file");
    if (named) path_ = o.path;
    if (named && (::fchmod(file_, 0600) != 0 || ::ftruncate(file_, 0) != 0))
      return fail(errc::io_error, "the file of an nvme tier cannot be truncated", errno);
    if (o.direct) direct_ = ::fcntl(file_, F_SETFL, O_DIRECT) == 0;
    if (!named && ::unlink(path_.c_str()) == 0) path_.clear();
    return {};
  }

  // The file twice: the table goes through the page cache, and its pages are none of the extents'.
  result<void> open_store(context& ctx, const options& o) {
    if (o.path.empty()) return fail(errc::invalid_argument, "an nvme tier that is to be kept needs a path");
    const std::uint64_t capacity = o.capacity / alignment * alignment, headers = capacity / alignment;
    const std::uint64_t begin = align_up(superblock::bytes + headers * extent_header::bytes, alignment);
    if (begin >= capacity)
      return fail(errc::invalid_argument, "an nvme tier that is kept needs at least 12 KiB");
    file_ = ::open(o.path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (file_ < 0)
      return fail(errc::io_error, "the file of an nvme tier cannot be opened for writing", errno);
    struct stat what {
    }, same{};
    if (::fstat(file_, &what) != 0 || !S_ISREG(what.st_mode))
      return fail(errc::invalid_argument,
                  "the path of an nvme tier names something that is not a plain file");
    const int table_file = ::open(o.path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (table_file < 0)
      return fail(errc::io_error, "the file of an nvme tier cannot be opened for writing", errno);
    const superblock shape{.how = superblock::arrangement::one_file,
                           .contents = o.contents,
                           .capacity = capacity,
                           .alignment = alignment,
                           .headers = headers,
                           .data_offset = begin};
    if (auto opened = table_.open(table_file, shape, capacity); !opened) return opened;
    if (::fstat(table_file, &same) != 0 || same.st_ino != what.st_ino || same.st_dev != what.st_dev)
      return fail(errc::io_error, "the file of an nvme tier was replaced while it was opened");
    if (::fchmod(file_, 0600) != 0)
      return fail(errc::io_error, "the file of an nvme tier cannot be made private", errno);
    if (auto claimed = claim(0, capacity); !claimed) return claimed;
    if (auto named = sync_folder_of(o.path, "the folder of an nvme tier cannot be made durable"); !named)
      return named;
    if (o.direct) direct_ = ::fcntl(file_, F_SETFL, O_DIRECT) == 0;
    data_offset_ = begin;
    space_.resize(capacity - begin);
    claim_found();
    sync_.emplace(ctx, table_, file_);
    opened_ = true;
    return {};
  }

  // Of extents that overlap the latest is right: the others' room has been used again. They come latest first, and are
  // shown so: of two with one name the latest is right as well.
  void claim_found() {
    std::map<std::uint64_t, extent_header> by_place;
    for (const extent_header& h : table_.take_found()) {
      const auto next = by_place.lower_bound(h.place);
      const bool free_behind = next == by_place.end() || next->first >= h.place + space_.rounded(h.encoded);
      const bool free_before =
          next == by_place.begin() ||
          std::prev(next)->first + space_.rounded(std::prev(next)->second.encoded) <= h.place;
      if (free_behind && free_before)
        by_place.emplace(h.place, h);
      else
        table_.discard(h);
    }
    for (const auto& [place, h] : by_place) {
      if (const auto at = space_.reserve_at(place, h.encoded))
        found_.emplace_back(*at, h);
      else
        table_.discard(h);
    }
    std::sort(found_.begin(), found_.end(),
              [](const auto& a, const auto& b) { return a.second.sequence > b.second.sequence; });
  }

  io_ring& ring_;
  space space_;
  std::vector<mutable_bytes> registered_;
  std::string path_;  // empty where there is nothing to remove
  int file_ = -1;
  std::uint64_t file_bytes_ = 0;  // as it is meant to be
  bool direct_ = false;

  // Of a store alone.
  std::uint64_t data_offset_ = 0;
  extent_table table_;
  std::vector<std::pair<extent, extent_header>> found_;  // and not yet scanned
  bool opened_ = false;
  std::optional<store_sync> sync_;
};
static_assert(resizable_medium<nvme> && persistent_medium<nvme> && buffer_registering_medium<nvme>);

}  // namespace TERRACE_EX
}  // namespace terrace
