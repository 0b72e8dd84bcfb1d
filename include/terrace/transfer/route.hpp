#pragma once
#include <algorithm>
#include <cstddef>
#include <cstring>

#include "terrace/codec/identity.hpp"
#include "terrace/core/bytes.hpp"
#include "terrace/core/layout.hpp"
#include "terrace/medium/medium.hpp"

namespace terrace {

/// How a block gets from one tier to another: a constant for each pair of tiers.
///
///     read     from a medium that has no addresses, into staging or straight into the target's slot
///     work     on the pool: copy, encode, decode, or decode and encode again
///     write    to a medium that has no addresses, from staging or straight from the source
struct route {
  enum class work : unsigned char { none, copy, encode, decode, recode };
  bool read = false;
  bool write = false;
  work what = work::none;
  bool stage_source = false;  ///< encoded source bytes need a staging buffer
  bool stage_target = false;  ///< encoded target bytes need a staging buffer
  bool scratch = false;       ///< the raw block between two codecs needs a staging buffer

  constexpr std::size_t staging_buffers() const noexcept {
    return std::size_t{stage_source} + std::size_t{stage_target} + std::size_t{scratch};
  }
};

template <class From, class To>
consteval route route_between() {
  using from_codec = typename From::codec_type;
  using to_codec = typename To::codec_type;
  constexpr bool from_addresses = From::medium_type::addressable == reach::host;
  constexpr bool to_addresses = To::medium_type::addressable == reach::host;
  route r;
  r.read = !from_addresses;
  r.write = !to_addresses;
  if (from_codec::format_id == to_codec::format_id) {  // the encoded bytes travel as they are
    // Straight between a medium and the other side's extent, where that begins and ends as the medium needs it.
    const bool lands = to_addresses && To::medium_type::alignment % From::medium_type::alignment == 0;
    const bool leaves = from_addresses && From::medium_type::alignment % To::medium_type::alignment == 0;
    r.stage_source = r.read && !lands;
    r.stage_target = r.write && !leaves && !r.read;
    if ((to_addresses && !r.read) || (r.read && to_addresses && !lands) || r.stage_target)
      r.what = route::work::copy;
    return r;
  }
  r.what = from_codec::format_id == identity::format_id ? route::work::encode
           : to_codec::format_id == identity::format_id ? route::work::decode
                                                        : route::work::recode;
  r.stage_source = !from_addresses;
  // What is written must lie somewhere until it is; and a codec whose size varies is encoded before its room
  // is cut.
  r.stage_target = !to_addresses || !to_codec::fixed_rate;
  r.scratch = r.what == route::work::recode;
  return r;
}

/// The work of a route, on a thread of the pool: from the encoded bytes of one tier to those of another.
/// Returns how many bytes of `target` it filled.
template <class From, class To>
result<std::size_t> transcode(const layer_group& group, const_bytes source, mutable_bytes target,
                              mutable_bytes scratch) noexcept {
  constexpr route r = route_between<From, To>();
  using from_codec = typename From::codec_type;
  using to_codec = typename To::codec_type;
  if constexpr (r.what == route::work::decode) {
    const mutable_bytes raw = target.first(group.block_bytes());
    if (auto decoded = from_codec::decode(group, source, raw); !decoded) return propagate(decoded.error());
    return raw.size();
  } else if constexpr (r.what == route::work::encode) {
    return to_codec::encode(group, source.first(group.block_bytes()), target);
  } else if constexpr (r.what == route::work::recode) {
    const mutable_bytes raw = scratch.first(group.block_bytes());
    if (auto decoded = from_codec::decode(group, source, raw); !decoded) return propagate(decoded.error());
    return to_codec::encode(group, raw, target);
  } else {
    if (r.what == route::work::copy) std::memcpy(target.data(), source.data(), source.size());
    return source.size();
  }
}

}  // namespace terrace
