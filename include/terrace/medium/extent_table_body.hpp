#pragma once
// The functions of medium/extent_table.hpp.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <random>
#include <utility>
#include <vector>

#include "terrace/core/config.hpp"
#include "terrace/medium/extent_table.hpp"

namespace terrace {

TERRACE_BODY result<void> extent_table::open(descriptor file, const superblock& shape, std::uint64_t bytes) {
  file_ = std::move(file);
  shape_ = shape;
  if (auto locked = lock_alone(file_.get(), "a store of KV blocks is in use by another cache"); !locked)
    return locked;
  struct stat what {};
  if (::fstat(file_.get(), &what) != 0)
    return fail(errc::io_error, "a store of KV blocks cannot be examined", errno);
  superblock_bytes head{};
  const auto have = std::min<std::uint64_t>(head.size(), static_cast<std::uint64_t>(what.st_size));
  if (auto read = read_at(mutable_bytes(head).first(have), 0); !read) return read;
  if (std::all_of(head.begin(), head.begin() + sector, [](std::byte b) { return b == std::byte{}; }))
    return create(bytes);
  const auto found = decode_superblock(const_bytes(head).first(have));
  if (!found) return propagate(found.error());
  if (auto same = compare(*found); !same) return same;
  if (static_cast<std::uint64_t>(what.st_size) < bytes)
    return fail(errc::corrupt, "a store of KV blocks is shorter than its superblock says");
  shape_.store = found->store;
  image_.resize(shape_.headers * extent_header::bytes);
  if (auto read = read_at(image_, table_at(0)); !read) return read;
  if (auto written = write_again(); !written) return written;
  find_headers();
  return {};
}

// A process that was killed may have left to the system what it had not yet made durable, and what is found counts as
// that. Where a sync had failed, the system still shows what it will never write: so it is written again. All of it, for
// the disk may have a header where the system shows that it was taken back; but for what no one ever wrote.
TERRACE_BODY result<void> extent_table::write_again() const noexcept {
  const auto end = static_cast<::off_t>(table_at(image_.size()));
  for (auto at = static_cast<::off_t>(table_at(0)); at < end;) {
    ::off_t data = ::lseek(file_.get(), at, SEEK_DATA);
    if (data < 0 && errno == ENXIO) break;  // nothing but holes
    ::off_t hole = data < 0 ? end : ::lseek(file_.get(), data, SEEK_HOLE);
    if (data < 0) data = at;  // a file system that cannot tell
    if (hole < 0) hole = end;
    hole = std::min(hole, end);
    if (data >= hole) break;
    const auto from = static_cast<std::size_t>(data) - table_at(0);
    const auto bytes = static_cast<std::size_t>(hole - data);
    if (auto written = write_at(const_bytes(image_).subspan(from, bytes), static_cast<std::uint64_t>(data));
        !written)
      return written;
    at = hole;
  }
  if (::fsync(file_.get()) != 0)
    return fail(errc::io_error, "a store of KV blocks cannot be made durable", errno);
  return {};
}

TERRACE_BODY bool extent_table::put(std::uint32_t node, extent_header h) {
  h.store = shape_.store;
  h.sequence = ++sequence_;
  if (node >= places_.size()) places_.resize(node + 1, none);
  if (places_[node] == none) {
    const std::optional<std::uint32_t> place = free_place();
    if (!place) return false;
    places_[node] = *place;
  }
  write(places_[node], encode(h));
  return true;
}

TERRACE_BODY void extent_table::adopt(std::uint32_t node, const extent_header& found) {
  if (node >= places_.size()) places_.resize(node + 1, none);
  places_[node] = found_at_[found.sequence];
}

TERRACE_BODY void extent_table::erase(std::uint32_t node) noexcept {
  if (node >= places_.size() || places_[node] == none) return;
  const std::uint32_t place = std::exchange(places_[node], none);
  write(place, {});
  free_.push_back(place);
}

TERRACE_BODY void extent_table::discard(const extent_header& found) noexcept {
  const std::uint32_t place = found_at_[found.sequence];
  write(place, {});
  free_.push_back(place);
}

TERRACE_BODY extent_table::changes extent_table::take_changes() {
  changes c;
  c.pages = std::exchange(dirty_, {});
  c.bytes.resize(c.pages.size() * page);
  for (std::size_t i = 0; i < c.pages.size(); ++i) {
    is_dirty_[c.pages[i]] = false;
    const std::size_t begin = c.pages[i] * page, end = std::min(begin + page, image_.size());
    std::memcpy(c.bytes.data() + i * page, image_.data() + begin, end - begin);
  }
  return c;
}

TERRACE_BODY void extent_table::put_back(const changes& c) {
  for (const std::size_t p : c.pages) mark(p);
}

TERRACE_BODY result<void> extent_table::commit(const changes& c) const noexcept {
  if (c.pages.empty()) return {};
  for (std::size_t i = 0; i < c.pages.size(); ++i)
    if (auto written = write_at(const_bytes(c.bytes).subspan(i * page, page), table_at(c.pages[i] * page));
        !written)
      return written;
  if (::fdatasync(file_.get()) != 0)
    return fail(errc::io_error, "extent headers cannot be made durable", errno);
  return {};
}

TERRACE_BODY result<void> extent_table::compare(const superblock& found) const noexcept {
  if (found.contents.layout != shape_.contents.layout)
    return fail(errc::invalid_argument, "a store of KV blocks has blocks of another layout");
  if (found.contents.model != shape_.contents.model)
    return fail(errc::invalid_argument,
                "a store of KV blocks has blocks of another model, or of another shard of it");
  if (found.contents.format_id != shape_.contents.format_id)
    return fail(errc::invalid_argument, "a store of KV blocks has blocks in another codec");
  superblock same = found;
  same.store = shape_.store;
  if (same != shape_)
    return fail(errc::invalid_argument, "a store of KV blocks was made with another capacity");
  return {};
}

TERRACE_BODY result<void> extent_table::create(std::uint64_t bytes) noexcept {
  std::random_device random;
  shape_.store = (std::uint64_t{random()} << 32) ^ random();
  if (::ftruncate(file_.get(), static_cast<::off_t>(bytes)) != 0)
    return fail(errc::io_error, "a store of KV blocks cannot be made as large as its capacity", errno);
  // Its length, and the rest of its superblock, are durable before the first sector is: a store that has one is
  // complete, and a file that begins with a sector of zeros never was one.
  const superblock_bytes head = encode(shape_);
  if (auto written = write_at(const_bytes(head).subspan(sector), sector); !written) return written;
  if (::fsync(file_.get()) != 0)
    return fail(errc::io_error, "a store of KV blocks cannot be made durable", errno);
  if (auto written = write_at(const_bytes(head).first(sector), 0); !written) return written;
  if (::fsync(file_.get()) != 0)
    return fail(errc::io_error, "a store of KV blocks cannot be made durable", errno);
  return {};
}

// In `image_`, which is all of the table before, and afterwards as much of it as is in use.
TERRACE_BODY void extent_table::find_headers() {
  std::uint32_t used = 0;
  std::vector<std::pair<extent_header, std::uint32_t>> headers;
  for (std::uint32_t place = 0; place < shape_.headers; ++place) {
    const const_bytes at = const_bytes(image_).subspan(place * extent_header::bytes, extent_header::bytes);
    const auto header = decode_extent_header(at, shape_);
    if (!header) continue;
    headers.emplace_back(*header, place);
    used = place + 1;
  }
  std::sort(headers.begin(), headers.end(),
            [](const auto& a, const auto& b) { return a.first.sequence > b.first.sequence; });
  image_.resize(used * extent_header::bytes);
  is_dirty_.resize(used * extent_header::bytes / page + 1);
  std::vector<bool> taken(used);
  for (const auto& [header, place] : headers) {
    taken[place] = true;
    if (!found_at_.emplace(header.sequence, place).second) {  // nobody writes one number twice
      write(place, {});
      free_.push_back(place);
      continue;
    }
    sequence_ = std::max(sequence_, header.sequence);
    found_.push_back(header);
  }
  for (std::uint32_t place = 0; place < used; ++place)
    if (!taken[place]) free_.push_back(place);
}

TERRACE_BODY std::optional<std::uint32_t> extent_table::free_place() {
  if (!free_.empty()) {
    const std::uint32_t place = free_.back();
    free_.pop_back();
    return place;
  }
  const auto place = static_cast<std::uint32_t>(image_.size() / extent_header::bytes);
  if (place == shape_.headers) return std::nullopt;
  image_.resize(image_.size() + extent_header::bytes);
  is_dirty_.resize(image_.size() / page + 1);
  return place;
}

TERRACE_BODY void extent_table::write(std::uint32_t place, const extent_header_bytes& bytes) noexcept {
  std::memcpy(image_.data() + place * extent_header::bytes, bytes.data(), bytes.size());
  mark(place * extent_header::bytes / page);
}

TERRACE_BODY void extent_table::mark(std::size_t p) {
  if (is_dirty_[p]) return;
  is_dirty_[p] = true;
  dirty_.push_back(p);
}

TERRACE_BODY result<void> extent_table::read_at(mutable_bytes into, std::uint64_t at) const noexcept {
  return read_all(file_.get(), into, at, "a store of KV blocks cannot be read");
}

TERRACE_BODY result<void> extent_table::write_at(const_bytes from, std::uint64_t at) const noexcept {
  return write_all(file_.get(), from, at, "a store of KV blocks cannot be written");
}

}  // namespace terrace
