#pragma once
// The functions of medium/disk_format.hpp.
#include <bit>
#include <cstdint>
#include <limits>

#include "terrace/core/config.hpp"
#include "terrace/medium/disk_format.hpp"

namespace terrace {

TERRACE_BODY std::uint64_t fingerprint(const kv_layout& layout) noexcept {
  using detail::mixed;
  std::uint64_t hash = mixed(detail::fnv_basis, static_cast<std::uint32_t>(layout.groups.size()));
  for (const layer_group& g : layout.groups) {
    for (const std::uint32_t x : {g.first_layer, g.layers, g.tokens}) hash = mixed(hash, x);
    for (const plane& p : {g.k, g.v})
      hash = mixed(mixed(mixed(hash, p.heads), p.dim), static_cast<std::uint8_t>(p.type));
    hash = mixed(mixed(mixed(hash, static_cast<std::uint8_t>(g.order)), g.layers_per_block), g.latent_v_dim);
  }
  return hash;
}

TERRACE_BODY superblock_bytes encode(const superblock& s) noexcept {
  superblock_bytes out{};
  detail::put_le(out, 0, superblock::magic);
  detail::put_le(out, 8, superblock::version);
  detail::put_le(out, 12, static_cast<std::uint32_t>(s.how));
  detail::put_le(out, 16, s.contents.layout);
  detail::put_le(out, 24, s.contents.model.model);
  detail::put_le(out, 32, s.contents.model.rank);
  detail::put_le(out, 36, s.contents.model.size);
  detail::put_le(out, 40, s.contents.format_id);
  detail::put_le(out, 44, s.alignment);
  detail::put_le(out, 48, s.store);
  detail::put_le(out, 56, s.capacity);
  detail::put_le(out, 64, s.headers);
  detail::put_le(out, 72, s.data_offset);
  detail::put_le(out, superblock::bytes - 4, crc32c(const_bytes(out).first(superblock::bytes - 4)));
  return out;
}

TERRACE_BODY result<superblock> decode_superblock(const_bytes in) noexcept {
  using detail::get_le;
  if (in.size() < superblock::bytes)
    return fail(errc::corrupt, "a store of KV blocks is shorter than its superblock");
  if (!begins_store(in))
    return fail(errc::corrupt, "this is no store of KV blocks: its first bytes are others");
  if (get_le<std::uint32_t>(in, 8) != superblock::version)
    return fail(errc::unavailable,
                "a store of KV blocks has another version of the format than this library");
  if (get_le<std::uint32_t>(in, superblock::bytes - 4) != crc32c(in.first(superblock::bytes - 4)))
    return fail(errc::corrupt, "the superblock of a store of KV blocks is damaged");
  superblock s;
  const auto how = get_le<std::uint32_t>(in, 12);
  s.how = static_cast<superblock::arrangement>(how);
  s.contents.layout = get_le<std::uint64_t>(in, 16);
  s.contents.model = {get_le<std::uint64_t>(in, 24), get_le<std::uint32_t>(in, 32),
                      get_le<std::uint32_t>(in, 36)};
  s.contents.format_id = get_le<std::uint32_t>(in, 40);
  s.alignment = get_le<std::uint32_t>(in, 44);
  s.store = get_le<std::uint64_t>(in, 48);
  s.capacity = get_le<std::uint64_t>(in, 56);
  s.headers = get_le<std::uint64_t>(in, 64);
  s.data_offset = get_le<std::uint64_t>(in, 72);
  const bool one_file = s.how == superblock::arrangement::one_file;
  const bool sound = (how == 1 || how == 2) && std::has_single_bit(s.alignment) &&
                     s.capacity <= superblock::most_capacity &&
                     s.headers <= s.capacity / extent_header::bytes &&
                     (one_file ? s.data_offset % s.alignment == 0 && s.data_offset <= s.capacity &&
                                     s.data_offset >= superblock::bytes + s.headers * extent_header::bytes
                               : s.data_offset == 0);
  if (!sound) return fail(errc::corrupt, "the superblock of a store of KV blocks contradicts itself");
  return s;
}

TERRACE_BODY extent_header_bytes encode(const extent_header& h) noexcept {
  extent_header_bytes out{};
  detail::put_le(out, 0, extent_header::magic);
  detail::put_le(out, 4, h.format_id);
  detail::put_le(out, 8, h.store);
  detail::put_le(out, 16, h.key.low);
  detail::put_le(out, 24, h.key.high);
  detail::put_le(out, 32, h.sequence);
  detail::put_le(out, 40, h.place);
  detail::put_le(out, 48, h.encoded);
  detail::put_le(out, 52, h.checksum);
  detail::put_le(out, 56, h.raw);
  detail::put_le(out, 60, h.depth);
  detail::put_le(out, 64, h.group);
  detail::put_le(out, 66, h.row);
  detail::put_le(out, 68, h.loss);
  detail::put_le(out, 72, h.naming);
  detail::put_le(out, extent_header::bytes - 4, crc32c(const_bytes(out).first(extent_header::bytes - 4)));
  return out;
}

TERRACE_BODY result<extent_header> decode_extent_header(const_bytes in, const superblock& of) noexcept {
  using detail::get_le;
  if (in.size() < extent_header::bytes || get_le<std::uint32_t>(in, 0) != extent_header::magic)
    return fail(errc::corrupt, "an extent has no header");
  if (get_le<std::uint32_t>(in, extent_header::bytes - 4) != crc32c(in.first(extent_header::bytes - 4)))
    return fail(errc::corrupt, "the header of an extent is damaged");
  extent_header h;
  h.format_id = get_le<std::uint32_t>(in, 4);
  h.store = get_le<std::uint64_t>(in, 8);
  h.key = {get_le<std::uint64_t>(in, 16), get_le<std::uint64_t>(in, 24)};
  h.sequence = get_le<std::uint64_t>(in, 32);
  h.place = get_le<std::uint64_t>(in, 40);
  h.encoded = get_le<std::uint32_t>(in, 48);
  h.checksum = get_le<std::uint32_t>(in, 52);
  h.raw = get_le<std::uint32_t>(in, 56);
  h.depth = get_le<std::uint32_t>(in, 60);
  h.group = get_le<std::uint16_t>(in, 64);
  h.row = get_le<std::uint16_t>(in, 66);
  h.loss = get_le<std::uint8_t>(in, 68);
  h.naming = get_le<std::uint64_t>(in, 72);
  if (h.store != of.store || h.format_id != of.contents.format_id)
    return fail(errc::corrupt, "the header of an extent is of another store");
  // The next number is one more, and must not wrap around.
  constexpr auto last = extent_header::last_number;
  if (h.sequence > last || h.naming > last || h.depth == std::numeric_limits<std::uint32_t>::max())
    return fail(errc::corrupt, "the header of an extent has numbers that no store gives");
  const std::uint64_t room = of.capacity - of.data_offset;
  const bool lies_within = of.how == superblock::arrangement::one_file
                               ? h.place % of.alignment == 0 && h.place <= room && h.encoded <= room - h.place
                               : h.place <= 0xffffffffu && h.encoded <= room;
  if (h.encoded == 0 || !lies_within)
    return fail(errc::corrupt, "the header of an extent names bytes outside of its store");
  return h;
}

}  // namespace terrace
