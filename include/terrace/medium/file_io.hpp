#pragma once
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

#include "terrace/core/bytes.hpp"
#include "terrace/core/error.hpp"

namespace terrace {

/// A descriptor that is closed on every way out.
class descriptor {
 public:
  explicit descriptor(int opened = -1) noexcept : fd_(opened) {}
  descriptor(descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  descriptor& operator=(descriptor&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }

  /// -1 if nothing is open, as `open` reports it.
  int get() const noexcept { return fd_; }
  explicit operator bool() const noexcept { return fd_ >= 0; }
  /// Closes it now, and returns what `close` returns: some file systems report a failed write only there.
  int close() noexcept { return ::close(std::exchange(fd_, -1)); }

 private:
  int fd_;
};

/// Reads into.size() bytes of `fd` from `at` on. Blocks. Errors, with `sentence`: io_error; corrupt if the file ends
/// before that, because then it is not what was written.
inline result<void> read_all(int fd, mutable_bytes into, std::uint64_t at, const char* sentence) noexcept {
  while (!into.empty()) {
    const ::ssize_t n = ::pread(fd, into.data(), into.size(), static_cast<::off_t>(at));
    if (n < 0 && errno == EINTR) continue;
    if (n == 0) return fail(errc::corrupt, sentence);
    if (n < 0) return fail(errc::io_error, sentence, errno);
    into = into.subspan(static_cast<std::size_t>(n));
    at += static_cast<std::uint64_t>(n);
  }
  return {};
}

/// Writes all of `from` to `fd`, from `at` on. Blocks. Errors: io_error, with `sentence`.
inline result<void> write_all(int fd, const_bytes from, std::uint64_t at, const char* sentence) noexcept {
  while (!from.empty()) {
    const ::ssize_t n = ::pwrite(fd, from.data(), from.size(), static_cast<::off_t>(at));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return fail(errc::io_error, sentence, n < 0 ? errno : ENOSPC);
    from = from.subspan(static_cast<std::size_t>(n));
    at += static_cast<std::uint64_t>(n);
  }
  return {};
}

/// Makes the names in the folder that contains `path` durable: a file or folder that was made is there after a crash
/// only if its parent folder lists it. Blocks. Errors: io_error, with `sentence`.
inline result<void> sync_folder_of(std::string path, const char* sentence) noexcept {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  const auto slash = path.rfind('/');
  const std::string folder = slash == std::string::npos ? "." : path.substr(0, slash + 1);
  const descriptor above(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!above || ::fsync(above.get()) != 0) return fail(errc::io_error, sentence, errno);
  return {};
}

/// Locks an open file or folder for one cache, for as long as the descriptor lives. Errors: unavailable, with
/// `in_use`, if another cache has it, in this process or in another; io_error where the file system has no locks.
inline result<void> lock_alone(int fd, const char* in_use) noexcept {
  if (::flock(fd, LOCK_EX | LOCK_NB) == 0) return {};
  if (errno == EWOULDBLOCK) return fail(errc::unavailable, in_use, errno);
  return fail(errc::io_error, "a file of a tier cannot be locked", errno);
}

/// Refuses what belongs to another user, who could open it whatever its mode is. Errors: invalid_argument, with
/// `sentence`; io_error.
inline result<void> check_owner(int fd, const char* sentence) noexcept {
  struct stat what {};
  if (::fstat(fd, &what) != 0) return fail(errc::io_error, "a file of a tier cannot be examined", errno);
  if (what.st_uid != ::geteuid()) return fail(errc::invalid_argument, sentence);
  return {};
}

/// Whether `path` names what is open as `fd`: somebody may have removed it meanwhile, or put another file there.
inline bool still_names(const std::string& path, int fd) noexcept {
  struct stat named {
  }, opened{};
  return ::lstat(path.c_str(), &named) == 0 && ::fstat(fd, &opened) == 0 && named.st_ino == opened.st_ino &&
         named.st_dev == opened.st_dev;
}

}  // namespace terrace
