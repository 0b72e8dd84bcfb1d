#pragma once
#if !__has_include(<zstd.h>)
#error \
    "terrace/codec/zstd.hpp needs libzstd: install its development package (libzstd-dev), or leave this header out"
#endif
#include <zstd.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string_view>

#include "terrace/codec/byte_codec.hpp"
#include "terrace/codec/byte_planes.hpp"
#include "terrace/codec/codec.hpp"
#include "terrace/core/bytes.hpp"
#include "terrace/core/error.hpp"

namespace terrace {

namespace detail {
// The libzstd contexts that a thread keeps, for all levels. Null if there is no memory.
inline ZSTD_CCtx* zstd_compressor() noexcept {
  struct release {
    void operator()(ZSTD_CCtx* context) const noexcept { ZSTD_freeCCtx(context); }
  };
  thread_local std::unique_ptr<ZSTD_CCtx, release> kept;
  if (kept == nullptr) kept.reset(ZSTD_createCCtx());
  return kept.get();
}
inline ZSTD_DCtx* zstd_decompressor() noexcept {
  struct release {
    void operator()(ZSTD_DCtx* context) const noexcept { ZSTD_freeDCtx(context); }
  };
  thread_local std::unique_ptr<ZSTD_DCtx, release> kept;
  if (kept == nullptr) kept.reset(ZSTD_createDCtx());
  return kept.get();
}
}  // namespace detail

/// libzstd at one compression level: a lossless codec of blocks, whose format is that of codec/byte_planes.hpp,
/// and a byte codec for a `chain`. Level 1 is the best for KV: higher levels take longer and find no more. The format
/// is the same for all levels.
///
/// Encoded bytes are one standard zstd frame (RFC 8878) that states its content size, without a checksum (tiers have
/// their own) or a dictionary. Two versions of libzstd may write different frames for the same bytes, but read each
/// other's.
///
/// Each thread keeps one context for compression and one for decompression for all levels: after the first
/// block there is no allocation.
template <int Level = 1>
struct zstd : byte_planes<zstd<Level>> {
  static_assert(Level != 0 && Level <= 22, "zstd has the levels 1 to 22, and faster ones below 0");

  static constexpr std::uint32_t format_id = 0x1000;
  static constexpr std::string_view name = "zstd";
  static constexpr bool lossless = true;
  static constexpr std::uint8_t loss = 0;
  static constexpr bool fixed_rate = false;
  static constexpr bool attendable = false;

  static std::size_t max_encoded_bytes(std::size_t n) noexcept {
    const std::size_t bound = ZSTD_compressBound(n);
    return ZSTD_isError(bound) != 0 ? 0 : bound;
  }

  static result<std::size_t> encode_bytes(const_bytes in, mutable_bytes out) noexcept {
    const std::size_t most = max_encoded_bytes(in.size());
    if (most == 0 || out.size() < most)
      return fail(errc::invalid_argument, "zstd needs room for the largest encoding of its input");
    ZSTD_CCtx* const context = detail::zstd_compressor();
    if (context == nullptr) return fail(errc::out_of_memory, "no memory for zstd's context");
    const std::size_t written =
        ZSTD_compressCCtx(context, out.data(), out.size(), in.data(), in.size(), Level);
    if (ZSTD_isError(written) != 0) return fail(errc::out_of_memory, "no memory for zstd's tables");
    return written;
  }

  /// Rejects anything but exactly one frame of out.size() bytes before it writes anything.
  static result<void> decode_bytes(const_bytes in, mutable_bytes out) noexcept {
    // Older formats and skippable frames begin differently: only what encode_bytes writes is accepted.
    constexpr unsigned char magic[] = {0x28, 0xb5, 0x2f, 0xfd};
    if (in.size() < sizeof magic || std::memcmp(in.data(), magic, sizeof magic) != 0 ||
        ZSTD_getFrameContentSize(in.data(), in.size()) != out.size() ||
        ZSTD_findFrameCompressedSize(in.data(), in.size()) != in.size())
      return fail(errc::corrupt, "stored bytes are no zstd frame of the right size");
    ZSTD_DCtx* const context = detail::zstd_decompressor();
    if (context == nullptr) return fail(errc::out_of_memory, "no memory for zstd's context");
    const std::size_t read = ZSTD_decompressDCtx(context, out.data(), out.size(), in.data(), in.size());
    if (read != out.size()) return fail(errc::corrupt, "a stored zstd frame does not decode");
    return {};
  }
};

static_assert(codec<zstd<>> && byte_codec<zstd<>>);

}  // namespace terrace
