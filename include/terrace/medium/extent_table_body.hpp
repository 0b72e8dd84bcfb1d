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
  // The system would report a hole that it has read ahead as data (SEEK_DATA).
  ::posix_fadvise(file_.get(), 0, 0, POSIX_FADV_RANDOM);
  superblock_bytes head{};
  const auto have = std::min<std::uint64_t>(head.size(), static_cast<std::uint64_t>(what.st_size));
  if (auto read = read_at(mutable_bytes(head).first(have), 0); !read) return read;
  if (std::all_of(head.begin(), head.begin() + sector, [](std::byte b) { return b == std::byte{}; })) {
    if (shape_.capacity > superblock::most_capacity)
      return fail(errc::invalid_argument, "a store of KV blocks cannot be as large as that");
    add_gap(0, places());
    return create(bytes);
  }
  const auto found = decode_superblock(const_bytes(head).first(have));
  if (!found) return propagate(found.error());
  if (auto same = compare(*found); !same) return same;
  if (static_cast<std::uint64_t>(what.st_size) < bytes)
    return fail(errc::corrupt, "a store of KV blocks is shorter than its superblock says");
  shape_.store = found->store;
  return read_table();
}

// A killed process may have left data with the system that it had not yet made durable, and what is found here counts
// as durable. After a failed sync the system still shows data that it will never write, so it is written again: all
// of it except what nobody ever wrote, because the disk may have a header where the system shows that it was removed.
TERRACE_BODY result<void> extent_table::read_table() {
  const std::uint64_t end = table_at(shape_.headers * extent_header::bytes);
  std::vector<std::byte> buffer(std::min<std::uint64_t>(piece, end - table_at(0)));
  for (stretch written = next_written(table_at(0), end); written.from < written.to;
       written = next_written(written.to, end)) {
    for (std::uint64_t at = written.from; at < written.to;) {
      const auto now = mutable_bytes(buffer).first(std::min<std::uint64_t>(buffer.size(), written.to - at));
      if (auto read = read_at(now, at); !read) return read;
      if (auto again = write_at(now, at); !again) return again;
      find_headers(now, (at - table_at(0)) / extent_header::bytes);
      at += now.size();
    }
  }
  if (::fsync(file_.get()) != 0)
    return fail(errc::io_error, "a store of KV blocks cannot be made durable", errno);
  add_gap(unseen_, places());
  std::reverse(gaps_.begin(), gaps_.end());
  std::sort(found_.begin(), found_.end(),
            [](const extent_header& a, const extent_header& b) { return a.sequence > b.sequence; });
  return {};
}

// The next whole pages that somebody has written, at or after `at`, itself the beginning of one; empty if there are
// none before `end`.
TERRACE_BODY extent_table::stretch extent_table::next_written(std::uint64_t at,
                                                              std::uint64_t end) const noexcept {
  if (at >= end) return {end, end};
  const ::off_t data = ::lseek(file_.get(), static_cast<::off_t>(at), SEEK_DATA);
  if (data < 0 && errno == ENXIO) return {end, end};  // nothing but holes
  if (data < 0) return {at, end};                     // a file system that cannot tell
  const std::uint64_t from = static_cast<std::uint64_t>(data) / page * page;
  const ::off_t hole = ::lseek(file_.get(), data, SEEK_HOLE);
  const std::uint64_t to = hole <= data ? end : align_up(static_cast<std::uint64_t>(hole), page);
  return {std::min(from, end), std::min(to, end)};
}

TERRACE_BODY bool extent_table::put(std::uint32_t node, extent_header h) {
  if (sequence_ == extent_header::last_number) return false;
  auto at = places_.find(node);
  if (at == places_.end()) {
    const std::optional<std::uint32_t> place = free_place();
    if (!place) return false;
    at = places_.emplace(node, *place).first;
  }
  h.store = shape_.store;
  h.sequence = ++sequence_;
  headers_[at->second] = encode(h);
  mark(at->second);
  return true;
}

TERRACE_BODY void extent_table::adopt(std::uint32_t node, const extent_header& found) {
  places_[node] = found_at_.extract(found.sequence).mapped();
}

TERRACE_BODY void extent_table::erase(std::uint32_t node) noexcept {
  if (const auto at = places_.find(node); at != places_.end()) {
    clear(at->second);
    places_.erase(at);
  }
}

TERRACE_BODY void extent_table::discard(const extent_header& found) noexcept {
  clear(found_at_.extract(found.sequence).mapped());
}

TERRACE_BODY extent_table::changes extent_table::take_changes() {
  changes c;
  c.pages.assign(dirty_.begin(), dirty_.end());
  dirty_.clear();
  c.bytes.resize(c.pages.size() * page);
  for (std::size_t i = 0; i < c.pages.size(); ++i)
    for (std::size_t k = 0; k < places_a_page; ++k) {
      const auto h = headers_.find(static_cast<std::uint32_t>(c.pages[i] * places_a_page + k));
      if (h != headers_.end())
        std::memcpy(c.bytes.data() + i * page + k * extent_header::bytes, h->second.data(), h->second.size());
    }
  return c;
}

TERRACE_BODY void extent_table::put_back(const changes& c) { dirty_.insert(c.pages.begin(), c.pages.end()); }

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
  // The length and the rest of the superblock become durable before the first sector: a store that has a first sector
  // is complete, and a file that begins with a sector of zeros never was a store.
  const superblock_bytes head = encode(shape_);
  if (auto written = write_at(const_bytes(head).subspan(sector), sector); !written) return written;
  if (::fsync(file_.get()) != 0)
    return fail(errc::io_error, "a store of KV blocks cannot be made durable", errno);
  if (auto written = write_at(const_bytes(head).first(sector), 0); !written) return written;
  if (::fsync(file_.get()) != 0)
    return fail(errc::io_error, "a store of KV blocks cannot be made durable", errno);
  return {};
}

// `in` begins with the place `place`, which lies beyond all that were seen.
TERRACE_BODY void extent_table::find_headers(const_bytes in, std::uint64_t place) {
  for (std::size_t at = 0; at < in.size() && place < places(); at += extent_header::bytes, ++place) {
    const const_bytes bytes = in.subspan(at, extent_header::bytes);
    const auto header = decode_extent_header(bytes, shape_);
    if (!header) continue;
    const auto here = static_cast<std::uint32_t>(place);
    add_gap(unseen_, here);
    unseen_ = here + 1;
    if (!found_at_.emplace(header->sequence, here).second) {  // nobody writes one number twice
      clear(here);
      continue;
    }
    std::memcpy(headers_[here].data(), bytes.data(), bytes.size());
    sequence_ = std::max(sequence_, header->sequence);
    found_.push_back(*header);
  }
}

TERRACE_BODY void extent_table::add_gap(std::uint32_t first, std::uint32_t last) {
  if (first < last) gaps_.emplace_back(first, last);
}

TERRACE_BODY std::optional<std::uint32_t> extent_table::free_place() {
  if (!free_.empty()) {
    const std::uint32_t place = free_.back();
    free_.pop_back();
    return place;
  }
  if (gaps_.empty()) return std::nullopt;
  const std::uint32_t place = gaps_.back().first++;
  if (gaps_.back().first == gaps_.back().second) gaps_.pop_back();
  return place;
}

TERRACE_BODY void extent_table::clear(std::uint32_t place) noexcept {
  headers_.erase(place);
  mark(place);
  free_.push_back(place);
}

TERRACE_BODY result<void> extent_table::read_at(mutable_bytes into, std::uint64_t at) const noexcept {
  return read_all(file_.get(), into, at, "a store of KV blocks cannot be read");
}

TERRACE_BODY result<void> extent_table::write_at(const_bytes from, std::uint64_t at) const noexcept {
  return write_all(file_.get(), from, at, "a store of KV blocks cannot be written");
}

}  // namespace terrace
