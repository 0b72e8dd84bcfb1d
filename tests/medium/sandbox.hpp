#pragma once
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/fs.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <csignal>
#include <cstddef>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <memory>
#include <string>
#include <thread>

#include "catch.hpp"

/// Systems that are full, old or strict, made for one test and gone with it.
namespace sandbox {

/// A folder of its own, in `parent`.
struct folder {
  std::string path;
  explicit folder(const std::string& parent = std::filesystem::temp_directory_path().string())
      : path(parent + "/terrace-test-XXXXXX") {
    REQUIRE(::mkdtemp(path.data()) != nullptr);
  }
  folder(const folder&) = delete;
  ~folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path, ignored);
  }
  std::string operator/(const std::string& name) const { return path + "/" + name; }
  bool empty() const { return std::filesystem::is_empty(path); }
};

inline unsigned mode_of(const std::string& path) {
  struct stat what {};
  REQUIRE(::stat(path.c_str(), &what) == 0);
  return what.st_mode & 0777;
}

/// As long as it lives no file can grow beyond `bytes`: writing there fails with EFBIG.
class file_size_limit {
 public:
  explicit file_size_limit(std::size_t bytes) {
    ::getrlimit(RLIMIT_FSIZE, &before_);
    handler_ = std::signal(SIGXFSZ, SIG_IGN);
    rlimit now = before_;
    now.rlim_cur = bytes;
    REQUIRE(::setrlimit(RLIMIT_FSIZE, &now) == 0);
  }
  file_size_limit(const file_size_limit&) = delete;
  ~file_size_limit() {
    ::setrlimit(RLIMIT_FSIZE, &before_);
    std::signal(SIGXFSZ, handler_);
  }

 private:
  rlimit before_{};
  void (*handler_)(int) = nullptr;
};

/// From now on the file refuses writes, of those who have it open as well: a disk that has become read-only. Or it
/// takes them again. False where that is not to be had: a privilege and a file system that knows immutable files.
inline bool refuse_writes(const std::string& path, bool yes) {
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) return false;
  int flags = 0;
  bool done = ::ioctl(file, FS_IOC_GETFLAGS, &flags) == 0;
  flags = yes ? flags | FS_IMMUTABLE_FL : flags & ~FS_IMMUTABLE_FL;
  done = done && ::ioctl(file, FS_IOC_SETFLAGS, &flags) == 0;
  ::close(file);
  return done;
}

/// Whether this system has what refuse_writes needs, in `folder`.
inline bool can_refuse_writes(const std::string& folder) {
  const std::string path = folder + "/refuses-writes";
  const int file = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (file < 0) return false;
  const bool can = refuse_writes(path, true) && ::write(file, "x", 1) < 0;
  refuse_writes(path, false);
  ::close(file);
  ::unlink(path.c_str());
  return can;
}

/// Makes the mount of `path` read-only; false while a file on it is open for writing.
inline bool mount_read_only(const std::string& path) {
  return ::mount("none", path.c_str(), nullptr, MS_REMOUNT | MS_BIND | MS_RDONLY, nullptr) == 0;
}

/// Runs `f` on a thread of its own, so that what it does to itself ends with it. A failed REQUIRE comes out
/// as it was.
template <class F>
void on_a_thread(F f) {
  std::exception_ptr failure;
  std::thread([&] {
    try {
      f();
    } catch (...) {
      failure = std::current_exception();
    }
  }).join();
  if (failure) std::rethrow_exception(failure);
}

/// Runs f(path) with a disk of `bytes` bytes mounted at `path`, which nobody else sees. Where this system
/// mounts nothing it says so, and does not run it.
template <class F>
void with_small_disk(std::size_t bytes, F f) {
  const folder mount_point;
  on_a_thread([&] {
    const std::string size = "size=" + std::to_string(bytes) + ",mode=0700";
    if (::unshare(CLONE_NEWNS) != 0 || ::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
        ::mount("none", mount_point.path.c_str(), "tmpfs", 0, size.c_str()) != 0) {
      WARN("skipped: nothing can be mounted here, so no disk can be made full");
      return;
    }
    const std::unique_ptr<const char, void (*)(const char*)> mounted(mount_point.path.c_str(),
                                                                     [](const char* p) { ::umount(p); });
    f(mount_point.path);
  });
}

/// Runs `f` where the system refuses one of its calls. Where there is no seccomp it says so, and does not run
/// it.
template <class F>
void without_call(unsigned number, F f) {
  on_a_thread([&] {
    sock_filter program[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | 1),  // EPERM
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    const sock_fprog filter{sizeof program / sizeof *program, program};
    if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
        ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) != 0) {
      WARN("skipped: this system takes no seccomp filter, so no call can be refused");
      return;
    }
    f();
  });
}

/// Runs `f` where the system refuses io_uring, as Docker's default seccomp profile does.
template <class F>
void without_io_uring(F f) {
  without_call(SYS_io_uring_setup, f);
}

}  // namespace sandbox
