#pragma once
// Stands between a program and the system: include it in one file of a program. It defines the calls that change files,
// or make them durable, ahead of libc's, so that nothing a program does to its disk is missed. What goes through
// io_uring does not pass here: set TERRACE_NO_IO_URING.
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdarg>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

#include "crash/disk_log.hpp"

namespace power_loss {

/// Notes what is done below one folder. Any thread.
class recorder {
 public:
  /// The one of this process.
  static recorder& instance() {
    static recorder one;
    return one;
  }

  /// From now on. `root` is a folder, which holds `base`; paths below it are what programs name.
  void start(std::string root, image base) {
    const std::lock_guard lock(mutex_);
    root_ = std::move(root) + "/";
    handles_.clear();
    names_.clear();
    next_file_ = 0;
    log_ = {};
    for (const auto& [path, bytes] : base.files) names_[path] = next_file_++;
    log_.base = std::move(base);
    now_ = 0;
    recording_ = true;
    failing_ = false;
  }
  /// Goes on with `log` where a process was killed at `at`: what it had begun is with the system and so with the next
  /// process, but durable only as far as syncs have ended. `root` holds log.at(at, all_kept).
  void go_on(std::string root, disk_log log, tick at) {
    start(std::move(root), std::move(log.base));
    const std::lock_guard lock(mutex_);
    for (operation& o : log.operations) {
      if (o.begun >= at) break;
      const bool is_sync = o.what == operation::kind::sync_file || o.what == operation::kind::sync_folder;
      if (o.ended >= at && is_sync) o.what = operation::kind::nothing;
      o.ended = std::min(o.ended, at);
      if (o.what == operation::kind::remove) names_.erase(o.path);
      if (o.what == operation::kind::rename) names_.erase(o.old_path);
      if (o.what == operation::kind::make_file || o.what == operation::kind::rename) names_[o.path] = o.file;
      if (o.what == operation::kind::make_file) next_file_ = std::max(next_file_, o.file + 1);
      log_.operations.push_back(std::move(o));
    }
    now_ = at;
  }
  disk_log stop() {
    const std::lock_guard lock(mutex_);
    recording_ = false;
    return std::move(log_);
  }
  /// A moment between operations.
  tick now() {
    const std::lock_guard lock(mutex_);
    return ++now_;
  }

  /// Carries out `call` as operation `o`; where it fails it has been nothing.
  template <class Call>
  auto perform(std::optional<operation> o, Call call) {
    std::size_t index = 0;
    if (o) {
      const std::lock_guard lock(mutex_);
      o->begun = ++now_;
      index = log_.operations.size();
      log_.operations.push_back(std::move(*o));
    }
    const auto outcome = call();
    if (o) {
      const std::lock_guard lock(mutex_);
      if (index < log_.operations.size()) {  // else the recording is over
        log_.operations[index].ended = ++now_;
        if (outcome < 0) log_.operations[index].what = operation::kind::nothing;
      }
    }
    return outcome;
  }

  /// The next sync fails with EIO, once; and as with Linux the one after it succeeds, although what the first was to
  /// make durable never will be.
  void fail_next_sync() {
    const std::lock_guard lock(mutex_);
    failing_ = true;
  }
  /// A sync of `fd`: what is promised is noted, nobody waits for a real disk.
  int sync_recorded(int fd, bool data_only) {
    auto o = sync(fd, data_only);
    if (!o) return 0;
    {
      const std::lock_guard lock(mutex_);
      if (std::exchange(failing_, false)) {
        forget_what(*o);
        errno = EIO;
        return -1;
      }
    }
    return perform(std::move(o), [] { return 0; });
  }

  // What a call would be; nothing where it is not of a file below the root. Name changes take effect here as they
  // begin.

  std::optional<operation> change(int fd, operation o) {
    const std::lock_guard lock(mutex_);
    const handle* const h = find(fd);
    if (h == nullptr || h->folder) return std::nullopt;
    o.file = h->file;
    return o;
  }
  std::optional<operation> sync(int fd, bool data_only) {
    const std::lock_guard lock(mutex_);
    const handle* const h = find(fd);
    if (h == nullptr) return std::nullopt;
    if (h->folder) return operation{.what = operation::kind::sync_folder, .path = h->path};
    return operation{.what = operation::kind::sync_file, .file = h->file, .data_only = data_only};
  }
  std::optional<operation> creation(int at, const char* name, int flags) {
    const std::lock_guard lock(mutex_);
    const auto path = resolve(at, name);
    if (!path || (flags & O_CREAT) == 0 || names_.contains(*path)) return std::nullopt;
    names_[*path] = next_file_++;
    return operation{.what = operation::kind::make_file, .file = names_[*path], .path = *path};
  }
  /// After it was opened. A file that was there and is truncated has a new size.
  std::optional<operation> opened(int fd, int at, const char* name, int flags, bool made) {
    const std::lock_guard lock(mutex_);
    handles_.erase(fd);
    const auto path = resolve(at, name);
    if (!path || fd < 0) return std::nullopt;
    const auto file = names_.find(*path);
    handles_[fd] = file == names_.end() ? handle{true, 0, *path} : handle{false, file->second, {}};
    if (file == names_.end() || made || (flags & O_TRUNC) == 0) return std::nullopt;
    return operation{.what = operation::kind::resize, .file = file->second};
  }
  std::optional<operation> new_folder(const char* name) {
    const std::lock_guard lock(mutex_);
    const auto path = resolve(AT_FDCWD, name);
    if (!path) return std::nullopt;
    return operation{.what = operation::kind::make_folder, .path = *path};
  }
  std::optional<operation> renaming(int from_at, const char* from, int to_at, const char* to) {
    const std::lock_guard lock(mutex_);
    const auto old_path = resolve(from_at, from), path = resolve(to_at, to);
    if (!old_path || !path || !names_.contains(*old_path)) return std::nullopt;
    const std::size_t file = names_[*old_path];
    names_.erase(*old_path);
    names_[*path] = file;
    return operation{.what = operation::kind::rename, .file = file, .path = *path, .old_path = *old_path};
  }
  std::optional<operation> removal(int at, const char* name) {
    const std::lock_guard lock(mutex_);
    const auto path = resolve(at, name);
    if (!path || names_.erase(*path) == 0) return std::nullopt;
    return operation{.what = operation::kind::remove, .path = *path};
  }

 private:
  struct handle {
    bool folder = false;
    std::size_t file = 0;
    std::string path = {};  // of a folder
  };

  // What no sync has covered, of what `sync` was to cover.
  void forget_what(const operation& sync) {
    const bool folder = sync.what == operation::kind::sync_folder;
    tick covered = 0;
    for (const operation& o : log_.operations)
      if (o.what == sync.what && o.ended != never && (folder ? o.path == sync.path : o.file == sync.file))
        covered = o.begun;
    for (operation& o : log_.operations)
      if (o.ended >= covered && (folder ? o.changes_names() && disk_log::parent(o.path) == sync.path
                                        : !o.changes_names() && o.file == sync.file))
        o.forgotten = true;
  }
  const handle* find(int fd) const {
    const auto found = recording_ ? handles_.find(fd) : handles_.end();
    return found == handles_.end() ? nullptr : &found->second;
  }
  // The path below the root; empty for the root itself.
  std::optional<std::string> resolve(int at, std::string name) const {
    if (!recording_) return std::nullopt;
    while (name.ends_with('/')) name.pop_back();
    if (at != AT_FDCWD) {
      const handle* const h = find(at);
      if (h == nullptr || !h->folder) return std::nullopt;
      if (name == ".") return h->path;
      return h->path.empty() ? name : h->path + "/" + name;
    }
    if (name + "/" == root_) return std::string();
    if (!name.starts_with(root_)) return std::nullopt;
    return name.substr(root_.size());
  }

  std::mutex mutex_;
  bool recording_ = false;
  bool failing_ = false;
  std::string root_;
  std::map<int, handle> handles_;
  std::map<std::string, std::size_t> names_;
  std::size_t next_file_ = 0;
  tick now_ = 0;
  disk_log log_;
};

/// open and openat.
inline int open_recorded(int at, const char* name, int flags, ::mode_t mode) {
  recorder& r = recorder::instance();
  auto created = r.creation(at, name, flags);
  const bool made = created.has_value();
  const auto call = [&] { return static_cast<int>(::syscall(SYS_openat, at, name, flags, mode)); };
  const int fd = r.perform(std::move(created), call);
  r.perform(r.opened(fd, at, name, flags, made), [] { return 0; });
  return fd;
}

}  // namespace power_loss

extern "C" {

int open(const char* name, int flags, ...) {
  std::va_list more;
  va_start(more, flags);
  const auto mode = (flags & O_CREAT) != 0 ? static_cast<::mode_t>(va_arg(more, int)) : ::mode_t{};
  va_end(more);
  return power_loss::open_recorded(AT_FDCWD, name, flags, mode);
}
int openat(int at, const char* name, int flags, ...) {
  std::va_list more;
  va_start(more, flags);
  const auto mode = (flags & O_CREAT) != 0 ? static_cast<::mode_t>(va_arg(more, int)) : ::mode_t{};
  va_end(more);
  return power_loss::open_recorded(at, name, flags, mode);
}
::ssize_t pwrite(int fd, const void* from, std::size_t size, ::off_t at) {
  using namespace power_loss;
  operation o{.what = operation::kind::write, .at = static_cast<std::uint64_t>(at)};
  if (auto changed = recorder::instance().change(fd, std::move(o))) {
    const auto* const bytes = static_cast<const std::byte*>(from);
    changed->bytes.assign(bytes, bytes + size);
    return recorder::instance().perform(std::move(changed), [&] {
      return static_cast<::ssize_t>(::syscall(SYS_pwrite64, fd, from, size, at));
    });
  }
  return static_cast<::ssize_t>(::syscall(SYS_pwrite64, fd, from, size, at));
}
int ftruncate(int fd, ::off_t size) noexcept {
  using namespace power_loss;
  recorder& r = recorder::instance();
  return r.perform(r.change(fd, {.what = operation::kind::resize, .at = static_cast<std::uint64_t>(size)}),
                   [&] { return static_cast<int>(::syscall(SYS_ftruncate, fd, size)); });
}
// It claims room that has a size already, so it changes nothing that could be seen.
int fallocate(int fd, int mode, ::off_t at, ::off_t size) {
  return static_cast<int>(::syscall(SYS_fallocate, fd, mode, at, size));
}
int fsync(int fd) { return power_loss::recorder::instance().sync_recorded(fd, false); }
int fdatasync(int fd) { return power_loss::recorder::instance().sync_recorded(fd, true); }
int mkdir(const char* name, ::mode_t mode) noexcept {
  return power_loss::recorder::instance().perform(power_loss::recorder::instance().new_folder(name), [&] {
    return static_cast<int>(::syscall(SYS_mkdirat, AT_FDCWD, name, mode));
  });
}
int renameat(int from_at, const char* from, int to_at, const char* to) noexcept {
  return power_loss::recorder::instance().perform(
      power_loss::recorder::instance().renaming(from_at, from, to_at, to),
      [&] { return static_cast<int>(::syscall(SYS_renameat2, from_at, from, to_at, to, 0)); });
}
int unlinkat(int at, const char* name, int flags) noexcept {
  return power_loss::recorder::instance().perform(power_loss::recorder::instance().removal(at, name), [&] {
    return static_cast<int>(::syscall(SYS_unlinkat, at, name, flags));
  });
}
int unlink(const char* name) noexcept { return unlinkat(AT_FDCWD, name, 0); }
}
