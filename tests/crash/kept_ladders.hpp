#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

#include "terrace/medium/directory.hpp"
#include "terrace/medium/nvme.hpp"
#include "terrace/policy/lru.hpp"
#include "terrace/terrace.hpp"

namespace power_loss {

using namespace terrace;

/// Blocks of 6 KiB: not a whole number of pages.
inline const kv_layout layout{{{.layers = 1, .tokens = 16, .k = {3, 32}, .v = {3, 32}}}};
inline constexpr std::uint32_t tokens = 16;
inline constexpr std::size_t block = 6144;

/// Zeros at the end of a block are not stored, so that encoded blocks have many lengths.
struct trimmed {
  static constexpr std::uint32_t format_id = 0xfffffffdu;
  static constexpr std::string_view name = "trimmed";
  static constexpr bool lossless = true;
  static constexpr std::uint8_t loss = 0;
  static constexpr bool fixed_rate = false;
  static constexpr bool attendable = false;
  trimmed() = delete;

  static result<void> supports(const layer_group&) noexcept { return {}; }
  static std::size_t max_encoded_size(const layer_group& group) noexcept { return group.block_bytes(); }
  static result<std::size_t> encode(const layer_group&, const_bytes raw, mutable_bytes out) noexcept {
    std::size_t length = raw.size();
    while (length > 1 && raw[length - 1] == std::byte{}) --length;
    std::memcpy(out.data(), raw.data(), length);
    return length;
  }
  static result<void> decode(const layer_group&, const_bytes in, mutable_bytes raw) noexcept {
    if (in.size() > raw.size()) return fail(errc::corrupt, "a stored block is longer than a block");
    std::memcpy(raw.data(), in.data(), in.size());
    std::memset(raw.data() + in.size(), 0, raw.size() - in.size());
    return {};
  }
};
static_assert(codec<trimmed>);

/// What the cache calls a name.
inline block_key key_of(std::uint64_t name) { return {.low = name, .high = 0x706f776572}; }

/// What a block holds: which version of what it is, and so many further elements as follow from that.
inline std::uint16_t bits_of(std::uint32_t version, std::size_t i) {
  if (i < 2) return static_cast<std::uint16_t>(version >> (16 * i));
  std::uint64_t x = (version + 1) * 0x9e3779b97f4a7c15u;
  const std::size_t length = 200 + (x >> 33) % (block / 2 - 200);
  if (i >= length) return 0;
  x = (x ^ i) * 0xbf58476d1ce4e5b9u;
  return static_cast<std::uint16_t>((x >> 40) | 1);
}
/// Writes a version into a whole block.
inline void fill(const reservation& r, std::uint32_t version) {
  std::size_t i = 0;
  for (const bool values : {false, true}) {
    const plane_rows rows = values ? r.v(0) : r.k(0);
    for (std::uint32_t h = 0; h < rows.heads(); ++h)
      for (std::uint32_t t = 0; t < rows.tokens(); ++t)
        for (fp16& x : rows.row<fp16>(t, h)) x.bits = bits_of(version, i++);
  }
}

/// Ladders over media that keep, each small enough that its room is used again and again.
struct over_nvme {
  using cache = tiered_cache<tier<ram>, tier<nvme, trimmed>, lru>;
  static constexpr std::size_t names = 12;
  static result<cache> open(context& ctx, const std::string& root) {
    return cache::open(ctx, layout, {.capacity = 32 * block},
                       {.capacity = 256_KiB, .path = root + "/kv", .keep = true});
  }
};
struct over_directory {
  using cache = tiered_cache<tier<ram>, tier<directory, trimmed>, lru>;
  static constexpr std::size_t names = 12;
  static result<cache> open(context& ctx, const std::string& root) {
    return cache::open(ctx, layout, {.capacity = 32 * block},
                       {.capacity = 256_KiB, .path = root + "/cold", .keep = true});
  }
};
struct over_both {
  using cache = tiered_cache<tier<ram>, tier<nvme, trimmed>, tier<directory>, lru>;
  static constexpr std::size_t names = 24;
  static result<cache> open(context& ctx, const std::string& root) {
    return cache::open(ctx, layout, {.capacity = 32 * block},
                       {.capacity = 128_KiB, .path = root + "/kv", .keep = true},
                       {.capacity = 256_KiB, .path = root + "/cold", .keep = true});
  }
};

}  // namespace power_loss
