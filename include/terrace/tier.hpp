#pragma once
#include <type_traits>

#include "terrace/codec/codec.hpp"
#include "terrace/codec/identity.hpp"
#include "terrace/medium/medium.hpp"

namespace terrace {

/// One rung of the ladder: a medium and the codec that its blocks are stored in. It holds only types;
/// `tiered_cache::open` takes capacities and paths, as the medium's options.
template <medium Medium, codec Codec = identity>
requires(Medium::addressable == reach::nobody || host_addressable_medium<Medium> ||
         device_addressable_medium<Medium>) struct tier {
  using medium_type = Medium;
  using codec_type = Codec;
  using options = typename Medium::options;

  /// Attention can read its blocks in place, encoded or not.
  static constexpr bool attendable = Medium::addressable != reach::nobody && Codec::attendable;
  /// They are stored as the engine wrote them.
  static constexpr bool raw_in_place = attendable && std::is_same_v<Codec, identity>;
};

template <class T>
inline constexpr bool is_tier = false;
template <class M, class C>
inline constexpr bool is_tier<tier<M, C>> = true;

}  // namespace terrace
