#pragma once
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <span>
#include <string>
#include <utility>

#include "runner_error.hpp"

namespace runner {

/// A regular file, read at offsets. It is not mapped: if the file shrinks meanwhile, a read gives an error, where a
/// mapping would end the process with SIGBUS.
class input_file {
 public:
  /// Opens `path`. Refuses what is not a regular file (a directory, a pipe, a device), without waiting on it.
  static outcome<input_file> open(const std::filesystem::path& path) {
    const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (descriptor < 0)
      return refuse(in_quotes(path.native()) + " cannot be opened: " + std::strerror(errno));
    input_file file(descriptor, path);
    struct stat status = {};
    if (::fstat(descriptor, &status) != 0 || !S_ISREG(status.st_mode))
      return refuse(file.name() + " is not a regular file");
    file.size_ = static_cast<std::uint64_t>(status.st_size);
    return file;
  }

  input_file(input_file&& other) noexcept
      : descriptor_(std::exchange(other.descriptor_, -1)),
        size_(other.size_),
        path_(std::move(other.path_)) {}
  input_file& operator=(input_file&& other) noexcept {
    std::swap(descriptor_, other.descriptor_);
    std::swap(size_, other.size_);
    std::swap(path_, other.path_);
    return *this;
  }
  ~input_file() {
    if (descriptor_ >= 0) ::close(descriptor_);
  }

  /// Bytes in the file when it was opened.
  std::uint64_t size() const noexcept { return size_; }
  /// The path in quotes, fit to begin a sentence with.
  std::string name() const { return in_quotes(path_.native()); }

  /// Fills `out` with the bytes from `offset` on. An error where the file ends sooner or cannot be read.
  outcome<void> read(std::uint64_t offset, std::span<std::byte> out) const {
    while (!out.empty()) {
      const ssize_t got = ::pread(descriptor_, out.data(), out.size(), static_cast<off_t>(offset));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return refuse(name() + " cannot be read: " + std::strerror(errno));
      if (got == 0) return refuse(name() + " ends before the data that it should hold");
      out = out.subspan(static_cast<std::size_t>(got));
      offset += static_cast<std::uint64_t>(got);
    }
    return {};
  }

  /// The whole file as text, if it has at most `most` bytes.
  outcome<std::string> read_text(std::uint64_t most) const {
    if (size_ > most)
      return refuse(name() + " is larger than the " + std::to_string(most) + " bytes expected");
    std::string text(static_cast<std::size_t>(size_), '\0');
    if (auto done = read(0, std::as_writable_bytes(std::span(text))); !done)
      return terrace::failure{std::move(done.error())};
    return text;
  }

 private:
  input_file(int descriptor, std::filesystem::path path) : descriptor_(descriptor), path_(std::move(path)) {}

  int descriptor_ = -1;
  std::uint64_t size_ = 0;
  std::filesystem::path path_;
};

}  // namespace runner
