#pragma once
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "terrace/execution/io_ring.hpp"
#include "terrace/medium/medium.hpp"
#include "terrace/medium/space.hpp"

namespace terrace {
inline namespace TERRACE_EX {

/// One file on a local disk, read and written through io_uring (or, where that is refused, through a few
/// threads), past the page cache where the file system allows it. Its space is claimed when it is opened, so
/// that a full disk is said then and not in the middle of a decode. The file is the owner's alone (0600), and
/// is removed at the end: the persistent form is a later format.
class nvme {
 public:
  static constexpr std::string_view name = "nvme";
  static constexpr reach addressable = reach::nobody;
  static constexpr bool persistent = false;
  static constexpr std::size_t alignment = 4096;
  static constexpr std::size_t granularity = std::size_t{128} << 10;

  struct options {
    std::size_t capacity = 0;  ///< bytes; 0: no such tier
    std::string path = {};     ///< created or truncated; empty: a file without a name in $TMPDIR or /tmp
    bool direct = true;  ///< ask for O_DIRECT; a file system that has none is used through the page cache
  };

  static result<std::unique_ptr<nvme>> open(context& ctx, options o) {
    if (o.capacity < alignment) return fail(errc::invalid_argument, "an nvme tier needs at least 4 KiB");
    auto medium = std::unique_ptr<nvme>(new nvme(io_ring::of(ctx), o.capacity));
    if (auto opened = medium->open_file(o); !opened) return propagate(opened.error());
    // Unwritten extents cost nothing now; a file system that cannot claim space gets a hole.
    if (::fallocate(medium->file_, 0, 0, static_cast<off_t>(o.capacity)) != 0) {
      const int why = errno;
      if (why == ENOSPC || why == EFBIG || why == EDQUOT)
        return fail(errc::io_error, "the disk of an nvme tier has no room for its capacity", why);
      if (::ftruncate(medium->file_, static_cast<off_t>(o.capacity)) != 0)
        return fail(errc::io_error, "the file of an nvme tier cannot be made as large as its capacity",
                    errno);
    }
    return medium;
  }

  nvme(nvme&&) = delete;
  ~nvme() {
    if (file_ >= 0) ::close(file_);
    if (!path_.empty()) ::unlink(path_.c_str());
  }

  std::optional<extent> reserve(std::size_t bytes) { return space_.reserve(bytes); }
  void release(extent e) noexcept { space_.release(e); }
  auto read(extent e, mutable_bytes into) noexcept { return ring_.read(file_, into, e.offset); }
  auto write(extent e, const_bytes from) noexcept { return ring_.write(file_, from, e.offset); }
  std::size_t capacity() const noexcept { return space_.capacity(); }
  std::size_t used() const noexcept { return space_.used(); }

  /// Whether transfers go past the page cache, and whether the kernel's io_uring carries them.
  bool direct() const noexcept { return direct_; }
  bool uses_io_uring() const noexcept { return ring_.uses_io_uring(); }

 private:
  nvme(io_ring& ring, std::size_t capacity) : ring_(ring), space_(capacity, alignment) {}

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

  io_ring& ring_;
  space space_;
  std::string path_;  // empty where there is nothing to remove
  int file_ = -1;
  bool direct_ = false;
};
static_assert(medium<nvme>);

}  // namespace TERRACE_EX
}  // namespace terrace
