// Superblocks and extent headers of hostile bytes: refused, or within their store. The checksums are made right first,
// else nothing would get by them.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>

#include "terrace/medium/disk_format.hpp"

using namespace terrace;

namespace {
template <class Bytes>
void seal(Bytes& bytes) {
  const std::uint32_t crc = crc32c(const_bytes(bytes).first(bytes.size() - 4));
  detail::put_le(bytes, bytes.size() - 4, crc);
}
}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const const_bytes in = std::as_bytes(std::span(data, size));
  static_cast<void>(decode_superblock(in));
  if (size < 80 + 80) return 0;
  superblock_bytes head{};
  std::memcpy(head.data(), data, 80);
  detail::put_le(head, 0, superblock::magic);
  detail::put_le(head, 8, superblock::version);
  seal(head);
  const auto super = decode_superblock(head);
  if (!super) return 0;
  extent_header_bytes bytes{};
  std::memcpy(bytes.data(), data + 80, 80);
  detail::put_le(bytes, 0, extent_header::magic);
  detail::put_le(bytes, 4, super->contents.format_id);
  detail::put_le(bytes, 8, super->store);
  seal(bytes);
  const auto header = decode_extent_header(bytes, *super);
  if (!header) return 0;
  const bool one_file = super->how == superblock::arrangement::one_file;
  if (header->encoded == 0 || header->encoded > super->capacity) std::abort();
  if (one_file && super->data_offset + header->place + header->encoded > super->capacity) std::abort();
  if (header->sequence > INT64_MAX || header->naming > INT64_MAX || header->depth == UINT32_MAX) std::abort();
  return 0;
}
