#pragma once
// The functions of medium/nvme.hpp.
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>
#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <iterator>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "terrace/core/config.hpp"
#include "terrace/medium/nvme.hpp"

namespace terrace {
inline namespace TERRACE_EX {

TERRACE_BODY result<std::unique_ptr<nvme>> nvme::open(context& ctx, options o) {
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

TERRACE_BODY nvme::~nvme() {
  for (const mutable_bytes memory : registered_) ring_.unregister_buffer(memory);
  if (sync_ && opened_) static_cast<void>(sync_->run());  // what was released must not come back
  sync_.reset();
  // While the lock is held: the path cannot be another cache's file by then.
  if (!path_.empty() && still_names(path_, file_)) ::unlink(path_.c_str());
  if (file_ >= 0) ::close(file_);
}

TERRACE_BODY void nvme::release(extent e) noexcept {
  const std::uint64_t end = e.offset + space_.rounded(e.bytes);
  space_.release(e);
  if (keeps()) return table_.erase(e.node);
  if (end > space_.capacity()) give_back(std::max<std::uint64_t>(e.offset, space_.capacity()), end);
}

TERRACE_BODY result<void> nvme::resize(std::size_t capacity) {
  if (keeps()) return fail(errc::unavailable, "a store of KV blocks has one size for all its life");
  const std::size_t before = space_.capacity(), wanted = capacity / alignment * alignment;
  result<void> claimed;
  if (wanted > before) claimed = claim(before, wanted);
  if (claimed) space_.resize(wanted);
  if (wanted < before || !claimed) give_back_beyond();
  return claimed;
}

TERRACE_BODY void nvme::register_buffer(mutable_bytes memory) {
  if (ring_.register_buffer(memory)) registered_.push_back(memory);
}

TERRACE_BODY bool nvme::label(extent e, extent_header h) {
  h.place = e.offset;
  return table_.put(e.node, h);
}

TERRACE_BODY result<void> nvme::claim(std::uint64_t from, std::uint64_t to) noexcept {
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

TERRACE_BODY void nvme::give_back(std::uint64_t from, std::uint64_t to) noexcept {
  if (space_.overhang() == 0)
    cut_file(space_.capacity());
  else
    ::fallocate(file_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(from),
                static_cast<off_t>(to - from));
}

TERRACE_BODY void nvme::give_back_beyond() noexcept {
  cut_file(space_.overhang() == 0 ? space_.capacity() : file_bytes_);  // a failed claim may have begun
  if (space_.overhang() == 0) return;
  space_.for_each_free(space_.capacity(), [this](std::uint64_t offset, std::uint64_t bytes) {
    give_back(offset, offset + bytes);
  });
}

TERRACE_BODY void nvme::cut_file(std::uint64_t bytes) noexcept {
  if (::ftruncate(file_, static_cast<off_t>(bytes)) == 0) file_bytes_ = bytes;
}

TERRACE_BODY result<void> nvme::open_file(const options& o) {
  if (!o.path.empty()) {
    if (auto emptied = take_file(o.path); !emptied) return emptied;
  } else {
    const char* folder = std::getenv("TMPDIR");
    std::string path = std::string(folder != nullptr && *folder != 0 ? folder : "/tmp") + "/terrace-XXXXXX";
    file_ = ::mkostemp(path.data(), O_CLOEXEC);  // 0600
    if (file_ < 0) return fail(errc::io_error, unopenable, errno);
    if (::unlink(path.c_str()) != 0) path_ = std::move(path);
  }
  if (o.direct) direct_ = ::fcntl(file_, F_SETFL, O_DIRECT) == 0;
  return {};
}

// Changes nothing before the file is locked and known not to be a store.
TERRACE_BODY result<void> nvme::take_file(const std::string& path) {
  if (auto opened = open_named(path); !opened) return opened;
  std::array<std::byte, sizeof superblock::magic> head{};
  struct stat what {};
  if (::fstat(file_, &what) != 0)
    return fail(errc::io_error, "the file of an nvme tier cannot be examined", errno);
  if (what.st_size >= static_cast<::off_t>(head.size()))
    if (auto read = read_all(file_, head, 0, "the file of an nvme tier cannot be read"); !read) return read;
  if (begins_store(head))
    return fail(
        errc::invalid_argument,
        "the file of an nvme tier holds a store of KV blocks: go on with it by `keep`, or remove it first");
  if (::fchmod(file_, 0600) != 0 || ::ftruncate(file_, 0) != 0)
    return fail(errc::io_error, "the file of an nvme tier cannot be truncated", errno);
  path_ = path;  // from now on it is ours, to be removed
  return {};
}

TERRACE_BODY result<void> nvme::open_named(const std::string& path) {
  // The cache that had the lock may have removed the file between our opening and our locking it.
  for (int rounds = 0; rounds < 8; ++rounds) {
    if (file_ >= 0) ::close(file_);
    file_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    const bool made = file_ >= 0;
    if (!made && errno == EEXIST) file_ = ::open(path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (file_ < 0 && errno == ENOENT && rounds != 7)
      continue;  // removed in between, or there is no such folder
    if (file_ < 0) return fail(errc::io_error, unopenable, errno);
    struct stat what {};
    if (::fstat(file_, &what) != 0 || !S_ISREG(what.st_mode))
      return fail(errc::invalid_argument,
                  "the path of an nvme tier names something that is not a plain file");
    if (auto owned = check_owner(file_, "the file of an nvme tier belongs to another user"); !owned)
      return owned;
    if (auto locked = lock_alone(file_, "the file of an nvme tier is in use by another cache"); !locked)
      return locked;
    made_ = made;
    if (still_names(path, file_)) return {};
  }
  return fail(errc::io_error, replaced);
}

// A file that this has made goes if it cannot be used: half claimed, it would fill the disk and be of one capacity.
TERRACE_BODY result<void> nvme::open_store(context& ctx, const options& o) {
  auto opened = continue_store(ctx, o);
  if (!opened && made_ && still_names(o.path, file_)) ::unlink(o.path.c_str());
  return opened;
}

TERRACE_BODY result<void> nvme::continue_store(context& ctx, const options& o) {
  if (o.path.empty()) return fail(errc::invalid_argument, "an nvme tier that is to be kept needs a path");
  const std::uint64_t capacity = o.capacity / alignment * alignment, headers = capacity / alignment;
  const std::uint64_t begin = align_up(superblock::bytes + headers * extent_header::bytes, alignment);
  if (begin >= capacity)
    return fail(errc::invalid_argument, "an nvme tier that is kept needs at least 12 KiB");
  if (auto opened = open_named(o.path); !opened) return opened;
  descriptor locked(std::exchange(file_, ::open(o.path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW)));
  if (file_ < 0) return fail(errc::io_error, unopenable, errno);
  if (!still_names(o.path, locked.get()) || !still_names(o.path, file_))
    return fail(errc::io_error, replaced);
  const superblock shape{.how = superblock::arrangement::one_file,
                         .contents = o.contents,
                         .capacity = capacity,
                         .alignment = alignment,
                         .headers = headers,
                         .data_offset = begin};
  if (auto opened = table_.open(std::move(locked), shape, capacity); !opened) return opened;
  if (::fchmod(file_, 0600) != 0)
    return fail(errc::io_error, "the file of an nvme tier cannot be made private", errno);
  if (auto claimed = claim(0, capacity); !claimed) return claimed;
  if (auto named = sync_folder_of(o.path, "the folder of an nvme tier cannot be made durable"); !named)
    return named;
  if (o.direct) direct_ = ::fcntl(file_, F_SETFL, O_DIRECT) == 0;
  data_offset_ = begin;
  space_.resize(capacity - begin);
  claim_found();
  // Headers of no use are gone for good before the first extent is labelled.
  if (auto gone = table_.commit(table_.take_changes()); !gone) return gone;
  sync_.emplace(ctx, table_, file_);
  opened_ = true;
  return {};
}

TERRACE_BODY void nvme::claim_found() {
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

}  // namespace TERRACE_EX
}  // namespace terrace
