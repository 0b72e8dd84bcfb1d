#pragma once
#include <array>
#include <cstddef>
#include <cstring>

#include "terrace/codec/any_codec.hpp"
#include "terrace/codec/identity.hpp"
#include "terrace/core/bytes.hpp"
#include "terrace/core/layout.hpp"
#include "terrace/medium/medium.hpp"

namespace terrace {

/// How a block gets from one tier to another: one constant per pair of tiers.
///
///     read     from a medium that has no addresses, into staging or straight into the target's slot
///     work     on the pool: copy, encode, decode, or decode and encode again; and checksums
///     write    to a medium that has no addresses, from staging or straight from the source
struct route {
  enum class work : unsigned char { none, copy, encode, decode, recode };
  bool read = false;
  bool write = false;
  work what = work::none;
  bool stage_source = false;  ///< encoded source bytes need a staging buffer
  bool stage_target = false;  ///< encoded target bytes need a staging buffer
  bool scratch = false;       ///< the raw block between two codecs needs a staging buffer
  bool verify = false;        ///< the encoded source is checked against its checksum, before the work
  bool sum = false;           ///< the encoded target gets a checksum, after the work

  constexpr std::size_t staging_buffers() const noexcept {
    return std::size_t{stage_source} + std::size_t{stage_target} + std::size_t{scratch};
  }
};

/// A tier as routes see it.
struct route_end {
  bool addressable;  ///< by the host
  bool checked;      ///< its copies carry a checksum: not in memory, which fails in ways of its own
  std::size_t alignment;
  any_codec codec;

  template <class Tier>
  static constexpr route_end of() noexcept {
    return {.addressable = Tier::medium_type::addressable == reach::host,
            .checked = Tier::medium_type::addressable == reach::nobody,
            .alignment = Tier::medium_type::alignment,
            .codec = any_codec::of<typename Tier::codec_type>()};
  }
};

constexpr route route_between(const route_end& from, const route_end& to) noexcept {
  route r;
  r.read = !from.addressable;
  r.write = !to.addressable;
  r.verify = from.checked;
  r.sum = to.checked;
  if (from.codec.format_id == to.codec.format_id) {  // the encoded bytes travel as they are
    // Directly between a medium and the other side's extent, if that begins and ends as the medium requires.
    const bool lands = to.addressable && to.alignment % from.alignment == 0;
    const bool leaves = from.addressable && from.alignment % to.alignment == 0;
    r.stage_source = r.read && !lands;
    r.stage_target = r.write && !leaves && !r.read;
    if ((to.addressable && !r.read) || (r.read && to.addressable && !lands) || r.stage_target)
      r.what = route::work::copy;
    return r;
  }
  r.what = from.codec.format_id == identity::format_id ? route::work::encode
           : to.codec.format_id == identity::format_id ? route::work::decode
                                                       : route::work::recode;
  r.stage_source = !from.addressable;
  // Data to be written needs a buffer until the write; and if the codec's output size varies, the block is encoded
  // before its extent is cut to size.
  r.stage_target = !to.addressable || !to.codec.fixed_rate;
  r.scratch = r.what == route::work::recode;
  return r;
}

template <class From, class To>
consteval route route_between() noexcept {
  return route_between(route_end::of<From>(), route_end::of<To>());
}

/// The routes of a ladder, [from][to]: down to any farther tier, up to tier 0 only. The other entries are empty.
template <std::size_t N>
constexpr std::array<std::array<route, N>, N> routes_between(const std::array<route_end, N>& tiers) noexcept {
  std::array<std::array<route, N>, N> all{};
  for (std::size_t from = 0; from < N; ++from)
    for (std::size_t to = 0; to < N; ++to)
      if (from < to || (to == 0 && from != 0)) all[from][to] = route_between(tiers[from], tiers[to]);
  return all;
}

/// The work of a route, on a thread of the pool: from the encoded bytes of one tier to those of another.
/// Returns how many bytes of `target` it filled.
inline result<std::size_t> transcode(route::work what, const any_codec& from, const any_codec& to,
                                     const layer_group& group, const_bytes source, mutable_bytes target,
                                     mutable_bytes scratch) noexcept {
  const std::size_t raw_bytes = group.block_bytes();
  switch (what) {
    case route::work::decode:
      if (auto decoded = from.decode(group, source, target.first(raw_bytes)); !decoded)
        return propagate(decoded.error());
      return raw_bytes;
    case route::work::encode:
      return to.encode(group, source.first(raw_bytes), target);
    case route::work::recode:
      if (auto decoded = from.decode(group, source, scratch.first(raw_bytes)); !decoded)
        return propagate(decoded.error());
      return to.encode(group, scratch.first(raw_bytes), target);
    case route::work::copy:
      std::memcpy(target.data(), source.data(), source.size());
      break;
    case route::work::none:
      break;
  }
  return source.size();
}

}  // namespace terrace
