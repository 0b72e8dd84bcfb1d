#pragma once
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "terrace/codec/codec.hpp"
#include "terrace/core/bytes.hpp"
#include "terrace/core/error.hpp"
#include "terrace/core/layout.hpp"

namespace terrace {

/// A codec as a value: its constants, and its operations as codec/codec.hpp says. They are called once per block, so
/// a call through a pointer costs nothing, and code that takes one is compiled once, not for each codec or pair of
/// codecs.
struct any_codec {
  std::string_view name;
  std::uint32_t format_id;
  std::uint8_t loss;
  bool fixed_rate;
  result<void> (*supports)(const layer_group&) noexcept;
  std::size_t (*max_encoded_size)(const layer_group&) noexcept;
  result<std::size_t> (*encode)(const layer_group&, const_bytes raw, mutable_bytes out) noexcept;
  result<void> (*decode)(const layer_group&, const_bytes in, mutable_bytes raw) noexcept;

  /// `C` as such a value.
  template <codec C>
  static constexpr any_codec of() noexcept {
    // Lambdas, as the codec's own functions may have further parameters with defaults.
    return {
        .name = C::name,
        .format_id = C::format_id,
        .loss = C::loss,
        .fixed_rate = C::fixed_rate,
        .supports = [](const layer_group& g) noexcept { return C::supports(g); },
        .max_encoded_size = [](const layer_group& g) noexcept { return C::max_encoded_size(g); },
        .encode = [](const layer_group& g, const_bytes raw,
                     mutable_bytes out) noexcept { return C::encode(g, raw, out); },
        .decode = [](const layer_group& g, const_bytes in,
                     mutable_bytes raw) noexcept { return C::decode(g, in, raw); },
    };
  }
};

}  // namespace terrace
