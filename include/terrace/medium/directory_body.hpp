#pragma once
// The functions of medium/directory.hpp.
#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "terrace/core/config.hpp"
#include "terrace/medium/directory.hpp"

namespace terrace {
inline namespace TERRACE_EX {

TERRACE_BODY result<std::unique_ptr<directory>> directory::open(context& ctx, options o) {
  if (o.capacity < file_unit) return fail(errc::invalid_argument, "a directory tier needs at least 4 KiB");
  auto medium = std::unique_ptr<directory>(new directory(ctx, o.capacity));
  if (auto opened = o.keep ? medium->open_store(o) : medium->open_folder(std::move(o.path)); !opened)
    return propagate(opened.error());
  return medium;
}

TERRACE_BODY directory::~directory() {
  pool_.finish();
  remover_.finish();
  if (folder_ < 0) return;
  if (keeps()) {
    static_cast<void>(sync_->run());  // what was released must not come back
    sync_.reset();
  } else if (!folder_path_.empty()) {
    for (const file& f : files_)
      if (f.exists) ::unlinkat(folder_, file_name(f.number).data(), 0);
    ::rmdir(folder_path_.c_str());
    if (made_path_) ::rmdir(path_.c_str());  // fails, as it should, where somebody else has put something
  }
  ::close(folder_);
}

TERRACE_BODY std::optional<extent> directory::reserve(std::size_t bytes) {
  const std::size_t taken = rounded(bytes);
  if (bytes == 0 || bytes > 0xffffffffu || used_ > capacity_ || taken > capacity_ - used_)
    return std::nullopt;
  file& f = free_file();
  used_ += taken;
  return extent{.offset = 0, .bytes = static_cast<std::uint32_t>(bytes), .node = f.number};
}

TERRACE_BODY void directory::release(extent e) noexcept {
  used_ -= rounded(e.bytes);
  if (keeps()) table_.erase(e.node);
  file& f = file_of(e);
  if (f.exists)
    remover_.submit(f);
  else
    put_back(f);
}

TERRACE_BODY result<void> directory::resize(std::size_t capacity) noexcept {
  if (keeps()) return fail(errc::unavailable, "a store of KV blocks has one size for all its life");
  capacity_ = capacity / file_unit * file_unit;
  return {};
}

TERRACE_BODY bool directory::label(extent e, extent_header h) {
  h.place = e.node;
  return table_.put(e.node, h);
}

TERRACE_BODY result<void> directory::open_folder(std::string path) {
  if (path.empty()) {
    const char* temporary = std::getenv("TMPDIR");
    path = temporary != nullptr && *temporary != 0 ? temporary : "/tmp";
  }
  path_ = std::move(path);
  made_path_ = ::mkdir(path_.c_str(), 0700) == 0;
  if (!made_path_ && errno != EEXIST)
    return fail(errc::io_error, "the directory of a directory tier cannot be made", errno);
  folder_path_ = path_ + "/terrace-XXXXXX";
  if (::mkdtemp(folder_path_.data()) == nullptr)  // 0700
    return give_up("the directory of a directory tier cannot be written", errno);
  folder_ = ::open(folder_path_.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  if (folder_ >= 0) return {};
  const int why = errno;
  ::rmdir(folder_path_.c_str());
  return give_up("the folder of a directory tier cannot be opened", why);
}

TERRACE_BODY result<void> directory::open_store(const options& o) {
  if (o.path.empty()) return fail(errc::invalid_argument, "a directory tier that is to be kept needs a path");
  const std::string folder = o.path + "/kv-store";
  for (const std::string& p : {o.path, folder}) {
    const bool made = ::mkdir(p.c_str(), 0700) == 0;
    if (!made && errno != EEXIST)
      return fail(errc::io_error, "the directory of a directory tier cannot be made", errno);
    const auto named = sync_folder_of(p, "the directory of a directory tier cannot be made durable");
    if (!named && (made || p == folder))
      return named;  // the parent of somebody else's directory may be closed to us
  }
  folder_ = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  if (folder_ < 0) return fail(errc::io_error, "the folder of a directory tier cannot be opened", errno);
  if (auto owned = check_owner(folder_, "the folder kv-store of a directory tier belongs to another user");
      !owned)
    return owned;
  if (::fchmod(folder_, 0700) != 0)
    return fail(errc::io_error, "the folder of a directory tier cannot be made private", errno);
  descriptor index(::openat(folder_, "index", O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600));
  if (!index) return fail(errc::io_error, "the index of a directory tier cannot be opened", errno);
  if (auto owned = check_owner(index.get(), "the index of a directory tier belongs to another user"); !owned)
    return owned;
  if (::fchmod(index.get(), 0600) != 0)
    return fail(errc::io_error, "the index of a directory tier cannot be made private", errno);
  const superblock shape{.how = superblock::arrangement::file_each,
                         .contents = o.contents,
                         .capacity = capacity_,
                         .alignment = alignment,
                         .headers = capacity_ / file_unit};
  if (auto opened =
          table_.open(std::move(index), shape, superblock::bytes + shape.headers * extent_header::bytes);
      !opened)
    return opened;
  if (::fsync(folder_) != 0)  // as for the index: what is found counts as durable
    return fail(errc::io_error, "the folder of a directory tier cannot be made durable", errno);
  take_files();
  // Headers of no use are gone for good before the first extent is labelled.
  if (auto gone = table_.commit(table_.take_changes()); !gone) return gone;
  sync_.emplace(context_, table_, folder_);
  folder_path_ = folder;  // not before: a folder that is not kept is removed by the destructor
  return {};
}

TERRACE_BODY void directory::take_files() {
  std::vector<extent_header> found = table_.take_found();
  // A store whose files have almost all been removed may have a few high numbers left, and a forged one has any: no
  // records are made for those between.
  const std::uint64_t dense = 2 * found.size() + 1024;
  for (const extent_header& h : found) {
    const auto number = static_cast<std::uint32_t>(h.place);
    struct stat what {};
    const bool there = ::fstatat(folder_, file_name(number).data(), &what, AT_SYMLINK_NOFOLLOW) == 0 &&
                       S_ISREG(what.st_mode) && what.st_uid == ::geteuid() &&
                       static_cast<std::uint64_t>(what.st_size) >= h.encoded;
    const bool known = is_known(number);
    // A number exceeds the possible number of files by a few at most.
    if (!there || known || h.place > 2 * capacity_ / file_unit || used_ + rounded(h.encoded) > capacity_) {
      table_.discard(h);
      continue;
    }
    if ((what.st_mode & 07777) != 0600) ::fchmodat(folder_, file_name(number).data(), 0600, 0);
    while (number < dense && files_.size() <= number)
      files_.emplace_back(this, static_cast<std::uint32_t>(files_.size()));
    file& f = number < dense ? files_[number] : high_files_.try_emplace(number, this, number).first->second;
    f.exists = true;
    f.bytes = static_cast<std::size_t>(what.st_size);
    used_ += rounded(h.encoded);
    found_.push_back(h);
  }
  for (file& f : files_)
    if (!f.exists) put_back(f);
  remove_strays();
}

TERRACE_BODY directory::file& directory::file_of(extent e) noexcept {
  if (!high_files_.empty())
    if (const auto high = high_files_.find(e.node); high != high_files_.end()) return high->second;
  return files_[e.node];
}

TERRACE_BODY bool directory::is_known(std::uint32_t number) const noexcept {
  return high_files_.count(number) != 0 || (number < files_.size() && files_[number].exists);
}

TERRACE_BODY void directory::remove_strays() {
  const int again = ::openat(folder_, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  ::DIR* const entries = again < 0 ? nullptr : ::fdopendir(again);
  if (entries == nullptr) {
    if (again >= 0) ::close(again);
    return;
  }
  while (const ::dirent* const entry = ::readdir(entries)) {
    unsigned number = 0;
    int end = 0;
    if (std::sscanf(entry->d_name, "%8x%n", &number, &end) != 1 || end != 8) continue;
    const std::string_view suffix(entry->d_name + end);
    if (suffix == ".new" || (suffix.empty() && !is_known(number))) ::unlinkat(folder_, entry->d_name, 0);
  }
  ::closedir(entries);
}

TERRACE_BODY result<void> directory::give_up(const char* sentence, int why) {
  if (made_path_) ::rmdir(path_.c_str());
  return fail(errc::io_error, sentence, why);
}

TERRACE_BODY directory::name_type directory::file_name(std::uint32_t number, const char* suffix) noexcept {
  name_type text{};
  std::snprintf(text.data(), text.size(), "%08x%s", number, suffix);
  return text;
}

TERRACE_BODY result<void> directory::read_file(const file& f, mutable_bytes into) const noexcept {
  const descriptor source(::openat(folder_, file_name(f.number).data(), O_RDONLY | O_NOFOLLOW | O_CLOEXEC));
  // A file that is gone will not come back. Descriptors or memory may become available again, and a server may answer
  // again.
  if (!source && errno == ENOENT) return fail(errc::corrupt, "a file of a directory tier is gone", ENOENT);
  if (!source) return fail(errc::io_error, "a file of a directory tier cannot be opened", errno);
  return read_all(source.get(), into, 0, unreadable);
}

TERRACE_BODY result<void> directory::write_file(file& f, const_bytes from) const noexcept {
  const name_type final_name = file_name(f.number), temporary = file_name(f.number, ".new");
  descriptor target(
      ::openat(folder_, temporary.data(), O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600));
  if (!target) return fail(errc::io_error, "a file of a directory tier cannot be made", errno);
  auto written = write_all(target.get(), from, 0, unwritable);
  const std::size_t bytes = std::max(f.exists ? f.bytes : 0, from.size());
  if (written && bytes > from.size()) written = copy_rest(f, target.get(), from.size());
  if (written && ::fdatasync(target.get()) != 0)
    written = fail(errc::io_error, "a file of a directory tier cannot be made durable", errno);
  // A network file system may report an error only when a file is closed.
  if (target.close() != 0 && written)
    written = fail(errc::io_error, "a file of a directory tier cannot be closed", errno);
  if (written && ::renameat(folder_, temporary.data(), folder_, final_name.data()) != 0)
    written = fail(errc::io_error, "a file of a directory tier cannot be renamed", errno);
  if (!written) {
    ::unlinkat(folder_, temporary.data(), 0);
    return written;
  }
  f.exists = true;
  f.bytes = bytes;
  return {};
}

TERRACE_BODY result<void> directory::copy_rest(const file& f, int target, std::size_t from) const noexcept {
  const descriptor source(::openat(folder_, file_name(f.number).data(), O_RDONLY | O_NOFOLLOW | O_CLOEXEC));
  if (!source) return fail(errc::io_error, "a file of a directory tier cannot be opened", errno);
  std::array<std::byte, 16 << 10> buffer;
  for (std::size_t at = from; at < f.bytes;) {
    const auto piece = mutable_bytes(buffer).first(std::min(buffer.size(), f.bytes - at));
    if (auto read = read_all(source.get(), piece, at, unreadable); !read) return read;
    if (auto written = write_all(target, piece, at, unwritable); !written) return written;
    at += piece.size();
  }
  return {};
}

TERRACE_BODY void directory::put_back(file& f) noexcept {
  file* top = removed_.load(std::memory_order_relaxed);
  do f.next_free = top;
  while (!removed_.compare_exchange_weak(top, &f, std::memory_order_release, std::memory_order_relaxed));
}

TERRACE_BODY directory::file& directory::free_file() {
  if (free_ == nullptr) free_ = removed_.exchange(nullptr, std::memory_order_acquire);
  // A number that a high file has is passed over: the record stays unused.
  while (free_ == nullptr && high_files_.count(static_cast<std::uint32_t>(files_.size())) != 0)
    files_.emplace_back(this, static_cast<std::uint32_t>(files_.size()));
  if (free_ == nullptr) return files_.emplace_back(this, static_cast<std::uint32_t>(files_.size()));
  return *std::exchange(free_, free_->next_free);
}

}  // namespace TERRACE_EX
}  // namespace terrace
