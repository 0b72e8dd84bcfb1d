#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

#include "terrace/codec/codec.hpp"
#include "terrace/core/bytes.hpp"
#include "terrace/core/error.hpp"
#include "terrace/core/layout.hpp"

namespace terrace {

/// The block as it is. Attention reads it in place; a tier that uses it copies bytes and nothing else.
struct identity {
  static constexpr std::uint32_t format_id = 0;
  static constexpr std::string_view name = "identity";
  static constexpr bool lossless = true;
  static constexpr std::uint8_t loss = 0;
  static constexpr bool fixed_rate = true;
  static constexpr bool attendable = true;

  static result<void> supports(const layer_group&) noexcept { return {}; }
  static constexpr std::size_t max_encoded_size(const layer_group& group) noexcept {
    return group.block_bytes();
  }

  static result<std::size_t> encode(const layer_group& group, const_bytes raw, mutable_bytes out) noexcept {
    const std::size_t bytes = group.block_bytes();
    if (raw.size() != bytes || out.size() < bytes)
      return fail(errc::invalid_argument,
                  "a block and its encoding must have the sizes that their group says");
    if (bytes != 0) std::memcpy(out.data(), raw.data(), bytes);
    return bytes;
  }
  static result<void> decode(const layer_group& group, const_bytes in, mutable_bytes raw) noexcept {
    const std::size_t bytes = group.block_bytes();
    if (raw.size() != bytes)
      return fail(errc::invalid_argument, "a block must have the size that its group says");
    if (in.size() != bytes)
      return fail(errc::corrupt, "a stored block has not the size of its group's blocks");
    if (bytes != 0) std::memcpy(raw.data(), in.data(), bytes);
    return {};
  }
};

static_assert(codec<identity>);

}  // namespace terrace
