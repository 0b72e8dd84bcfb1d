#pragma once
#if !__has_include(<lz4.h>)
#error \
    "terrace/codec/lz4.hpp needs liblz4: install its development package (liblz4-dev), or leave this header out"
#endif
#include <lz4.h>

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "terrace/codec/byte_codec.hpp"
#include "terrace/codec/byte_planes.hpp"
#include "terrace/codec/codec.hpp"
#include "terrace/codec/thread_scratch.hpp"
#include "terrace/core/bytes.hpp"
#include "terrace/core/error.hpp"

namespace terrace {

/// liblz4: a lossless codec of blocks, whose format is that of codec/byte_planes.hpp, and a byte codec for a
/// `chain`. It finds only repeated bytes: it is fast, and useful where a plane holds zeros or few distinct values,
/// but not on noise.
///
/// Encoded bytes are one block of LZ4's block format, which has neither a size nor a checksum. Two versions of liblz4
/// may write different blocks for the same bytes, but read each other's.
///
/// Each thread keeps one table for compression: after the first block there is no allocation.
struct lz4 : byte_planes<lz4> {
  static constexpr std::uint32_t format_id = 0x1001;
  static constexpr std::string_view name = "lz4";
  static constexpr bool lossless = true;
  static constexpr std::uint8_t loss = 0;
  static constexpr bool fixed_rate = false;
  static constexpr bool attendable = false;

  static std::size_t max_encoded_bytes(std::size_t n) noexcept {
    return n > LZ4_MAX_INPUT_SIZE ? 0 : static_cast<std::size_t>(LZ4_compressBound(static_cast<int>(n)));
  }

  static result<std::size_t> encode_bytes(const_bytes in, mutable_bytes out) noexcept {
    const std::size_t most = max_encoded_bytes(in.size());
    if (most == 0 || out.size() < most)
      return fail(errc::invalid_argument, "lz4 needs room for the largest encoding of its input");
    const mutable_bytes state = thread_scratch<lz4>(static_cast<std::size_t>(LZ4_sizeofState()));
    if (state.empty()) return fail(errc::out_of_memory, "no memory for lz4's table");
    const int written = LZ4_compress_fast_extState(state.data(), reinterpret_cast<const char*>(in.data()),
                                                   reinterpret_cast<char*>(out.data()),
                                                   static_cast<int>(in.size()), static_cast<int>(most), 1);
    return static_cast<std::size_t>(written);  // there is room for any result, so it cannot fail
  }

  static result<void> decode_bytes(const_bytes in, mutable_bytes out) noexcept {
    if (out.size() > LZ4_MAX_INPUT_SIZE || in.size() > max_encoded_bytes(out.size()))
      return fail(errc::corrupt, "a stored lz4 block is larger than any for so many bytes");
    const int read =
        LZ4_decompress_safe(reinterpret_cast<const char*>(in.data()), reinterpret_cast<char*>(out.data()),
                            static_cast<int>(in.size()), static_cast<int>(out.size()));
    if (read < 0 || static_cast<std::size_t>(read) != out.size())
      return fail(errc::corrupt, "a stored lz4 block does not decode");
    return {};
  }
};

static_assert(codec<lz4> && byte_codec<lz4>);

}  // namespace terrace
