#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "terrace/core/block.hpp"
#include "terrace/core/bytes.hpp"
#include "terrace/core/crc32c.hpp"
#include "terrace/core/error.hpp"
#include "terrace/core/layout.hpp"

namespace terrace {

// The bytes of docs/on-disk-format.md: superblocks and extent headers, to and from memory. Everything is little
// endian, at fixed places; bytes that are not named are zero. Bytes that are read may be hostile: nothing is used
// before its checksum has been checked, and no length before its bound has.

/// Whose KV it is, so that blocks of another model, or of another shard of the same one, are never mistaken for one's
/// own.
struct model_key {
  std::uint64_t model =
      0;  ///< a name as a number: `fingerprint(text)` of a path, a revision, a hash of the weights
  std::uint32_t rank = 0;  ///< of the tensor-parallel shard
  std::uint32_t size = 1;  ///< shards
  friend constexpr bool operator==(const model_key&, const model_key&) noexcept = default;
};

/// What a store holds. Two stores whose contents agree may read each other's blocks.
struct store_contents {
  std::uint64_t layout = 0;  ///< `fingerprint(kv_layout)`
  model_key model{};
  std::uint32_t format_id = 0;  ///< of the tier's codec
  friend constexpr bool operator==(const store_contents&, const store_contents&) noexcept = default;
};

/// The head of a store: 4096 bytes.
struct superblock {
  static constexpr std::size_t bytes = 4096;
  static constexpr std::uint64_t magic = 0x0a31766b72726574u;  // "terrkv1\n"
  static constexpr std::uint32_t version = 1;
  static constexpr std::uint64_t most_capacity = ~std::uint64_t{0} >> 1;
  /// Where the extents lie: in the store's own file, or each in a file of its own.
  enum class arrangement : std::uint32_t { one_file = 1, file_each = 2 };

  arrangement how = arrangement::one_file;
  store_contents contents{};
  std::uint64_t store = 0;        ///< a random number, repeated in every header: tells stores apart
  std::uint64_t capacity = 0;     ///< bytes of the whole store
  std::uint32_t alignment = 0;    ///< of extents
  std::uint64_t headers = 0;      ///< how many extent headers there is room for, behind the superblock
  std::uint64_t data_offset = 0;  ///< where extents begin; 0 for file_each
  friend constexpr bool operator==(const superblock&, const superblock&) noexcept = default;
};

/// What is known of one extent: 128 bytes in the table behind the superblock.
struct extent_header {
  static constexpr std::size_t bytes = 128;
  static constexpr std::uint32_t magic = 0x31747865u;                   // "ext1"
  static constexpr std::uint64_t last_number = ~std::uint64_t{0} >> 1;  // of sequence and naming

  std::uint64_t store = 0;     ///< the superblock's
  block_key key{};             ///< the block's name
  std::uint64_t sequence = 0;  ///< rises with every header that the store writes
  std::uint64_t place = 0;     ///< offset from the superblock's data_offset, or number of the file
  std::uint32_t encoded = 0;   ///< bytes of the payload
  std::uint32_t checksum = 0;  ///< CRC32C of the payload
  std::uint32_t format_id = 0;
  std::uint32_t raw = 0;    ///< bytes of the block when decoded
  std::uint32_t depth = 0;  ///< blocks before it in its sequence
  std::uint16_t group = 0;  ///< of the layout
  std::uint16_t row = 0;    ///< of layers, over all groups
  std::uint8_t loss = 0;    ///< fidelity::loss
  std::uint64_t naming =
      0;  ///< rises with every name given: the same for all copies of one block, in any store
  friend constexpr bool operator==(const extent_header&, const extent_header&) noexcept = default;
};

using superblock_bytes = std::array<std::byte, superblock::bytes>;
using extent_header_bytes = std::array<std::byte, extent_header::bytes>;

namespace detail {

template <class T>
constexpr void put_le(std::span<std::byte> out, std::size_t at, T value) noexcept {
  for (std::size_t i = 0; i < sizeof(T); ++i)
    out[at + i] = static_cast<std::byte>((static_cast<std::uint64_t>(value) >> (8 * i)) & 0xff);
}
template <class T>
constexpr T get_le(const_bytes in, std::size_t at) noexcept {
  std::uint64_t value = 0;
  for (std::size_t i = 0; i < sizeof(T); ++i) value |= std::to_integer<std::uint64_t>(in[at + i]) << (8 * i);
  return static_cast<T>(value);
}
// FNV-1a over the little-endian bytes of a number.
template <class T>
constexpr std::uint64_t mixed(std::uint64_t hash, T value) noexcept {
  for (std::size_t i = 0; i < sizeof(T); ++i)
    hash = (hash ^ ((static_cast<std::uint64_t>(value) >> (8 * i)) & 0xff)) * 0x100000001b3u;
  return hash;
}
inline constexpr std::uint64_t fnv_basis = 0xcbf29ce484222325u;

}  // namespace detail

/// FNV-1a, 64 bits: a name as a number, for model_key.
constexpr std::uint64_t fingerprint(std::string_view text) noexcept {
  std::uint64_t hash = detail::fnv_basis;
  for (const char c : text) hash = detail::mixed(hash, static_cast<unsigned char>(c));
  return hash;
}

/// What must agree for blocks of two layouts to be the same bytes: FNV-1a over the number of groups and each
/// group's first_layer, layers, tokens, planes (heads, dim, element), page order, layers_per_block and
/// latent_v_dim. Retention is left out: it says what attention looks at, not how blocks lie.
std::uint64_t fingerprint(const kv_layout& layout) noexcept;

superblock_bytes encode(const superblock& s) noexcept;

/// Whether `in`, the first bytes of a file, are those of a store, of whatever version, damaged or not.
constexpr bool begins_store(const_bytes in) noexcept {
  return in.size() >= sizeof superblock::magic && detail::get_le<std::uint64_t>(in, 0) == superblock::magic;
}

/// Errors, one sentence each: corrupt for bytes that are not a superblock, are damaged or contradict themselves;
/// unavailable for another version.
result<superblock> decode_superblock(const_bytes in) noexcept;

extent_header_bytes encode(const extent_header& h) noexcept;

/// The header that `in` holds, if it belongs to the store `of` and its extent lies within it. Errors: corrupt; also
/// for zeros, which the table holds before the first header and after one was removed.
result<extent_header> decode_extent_header(const_bytes in, const superblock& of) noexcept;

}  // namespace terrace

#if !defined(TERRACE_PREBUILT)
#include "terrace/medium/disk_format_body.hpp"  // IWYU pragma: export
#endif
