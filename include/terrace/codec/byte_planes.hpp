#pragma once
#include <cstddef>
#include <cstdint>
#include <initializer_list>

#include "terrace/codec/thread_scratch.hpp"
#include "terrace/core/bytes.hpp"
#include "terrace/core/error.hpp"
#include "terrace/core/layout.hpp"

namespace terrace {

/// Turns the byte codec that derives from it into a lossless codec of blocks (codec/codec.hpp). Elements are first
/// split into their bytes: the signs and exponents of neighbours are alike, their mantissas are noise, and a
/// compressor that sees the two mixed finds little in either.
///
/// Format: for each layer of the block, for each plane present, for each byte of an element, lowest first: a
/// four-byte little-endian length, and that many bytes, which `Bytes` encoded from that byte of all elements of the
/// plane, in the block's order.
template <class Bytes>
struct byte_planes {
  /// Every group whose planes `Bytes` can take in one call.
  static result<void> supports(const layer_group& group) noexcept {
    for (const plane* p : {&group.k, &group.v})
      if (p->present() && encoded_size(group, *p) == 0)
        return fail(errc::invalid_argument, "a plane has too many elements for one call of the compressor");
    return {};
  }

  static std::size_t max_encoded_size(const layer_group& group) noexcept {
    return group.layers_per_block * (encoded_size(group, group.k) + encoded_size(group, group.v));
  }

  static result<std::size_t> encode(const layer_group& group, const_bytes raw, mutable_bytes out) noexcept {
    if (raw.size() != group.block_bytes() || out.size() < max_encoded_size(group))
      return fail(errc::invalid_argument,
                  "a block and its encoding must have the sizes that their group says");
    std::size_t written = 0;
    for (std::uint32_t layer = 0; layer < group.layers_per_block; ++layer) {
      for (const plane* p : {&group.k, &group.v}) {
        const auto encoded =
            encode_plane(size_of(p->type), raw.first(group.plane_bytes(*p)), out.subspan(written));
        if (!encoded) return encoded;
        written += *encoded;
        raw = raw.subspan(group.plane_bytes(*p));
      }
    }
    return written;
  }

  static result<void> decode(const layer_group& group, const_bytes in, mutable_bytes raw) noexcept {
    if (raw.size() != group.block_bytes())
      return fail(errc::invalid_argument, "a block must have the size that its group says");
    for (std::uint32_t layer = 0; layer < group.layers_per_block; ++layer) {
      for (const plane* p : {&group.k, &group.v}) {
        if (auto decoded = decode_plane(size_of(p->type), in, raw.first(group.plane_bytes(*p))); !decoded)
          return decoded;
        raw = raw.subspan(group.plane_bytes(*p));
      }
    }
    if (!in.empty()) return fail(errc::corrupt, "a stored block is longer than its planes");
    return {};
  }

 private:
  static constexpr std::size_t length_bytes = 4;

  static std::size_t encoded_size(const layer_group& group, const plane& p) noexcept {
    if (!p.present()) return 0;
    const std::size_t bytes = Bytes::max_encoded_bytes(group.plane_bytes(p) / size_of(p.type));
    return bytes == 0 ? 0 : size_of(p.type) * (length_bytes + bytes);
  }

  static result<std::size_t> encode_plane(std::size_t element_bytes, const_bytes raw,
                                          mutable_bytes out) noexcept {
    if (raw.empty()) return std::size_t{0};
    const std::size_t count = raw.size() / element_bytes;
    const_bytes split = raw;
    if (element_bytes != 1) {
      const mutable_bytes scratch = thread_scratch<byte_planes>(raw.size());
      if (scratch.empty()) return fail(errc::out_of_memory, "no memory to split a plane into bytes");
      if (element_bytes == 2)
        split_elements<2>(raw, scratch);
      else
        split_elements<4>(raw, scratch);
      split = scratch;
    }
    std::size_t written = 0;
    for (; !split.empty(); split = split.subspan(count)) {
      const auto encoded = Bytes::encode_bytes(split.first(count), out.subspan(written + length_bytes));
      if (!encoded) return encoded;
      for (std::size_t i = 0; i < length_bytes; ++i)
        out[written + i] = static_cast<std::byte>(*encoded >> 8 * i);
      written += length_bytes + *encoded;
    }
    return written;
  }

  // Removes what it decodes from the front of `in`.
  static result<void> decode_plane(std::size_t element_bytes, const_bytes& in, mutable_bytes raw) noexcept {
    if (raw.empty()) return {};
    const std::size_t count = raw.size() / element_bytes;
    const mutable_bytes split = element_bytes == 1 ? raw : thread_scratch<byte_planes>(raw.size());
    if (split.empty()) return fail(errc::out_of_memory, "no memory to join the bytes of a plane");
    for (std::size_t done = 0; done < split.size(); done += count) {
      if (in.size() < length_bytes) return fail(errc::corrupt, "a stored block ends before its planes do");
      std::size_t length = 0;
      for (std::size_t i = 0; i < length_bytes; ++i) length |= std::to_integer<std::size_t>(in[i]) << 8 * i;
      in = in.subspan(length_bytes);
      if (length > in.size()) return fail(errc::corrupt, "a stored block ends before its planes do");
      if (auto decoded = Bytes::decode_bytes(in.first(length), split.subspan(done, count)); !decoded)
        return decoded;
      in = in.subspan(length);
    }
    if (element_bytes == 2)
      join_elements<2>(split, raw);
    else if (element_bytes == 4)
      join_elements<4>(split, raw);
    return {};
  }

  template <std::size_t N>
  static void split_elements(const_bytes raw, mutable_bytes split) noexcept {
    const std::size_t count = raw.size() / N;
    const std::byte* const in = raw.data();
    std::byte* const out = split.data();
    for (std::size_t i = 0; i < count; ++i)
      for (std::size_t b = 0; b < N; ++b) out[b * count + i] = in[i * N + b];
  }
  template <std::size_t N>
  static void join_elements(const_bytes split, mutable_bytes raw) noexcept {
    const std::size_t count = raw.size() / N;
    const std::byte* const in = split.data();
    std::byte* const out = raw.data();
    for (std::size_t i = 0; i < count; ++i)
      for (std::size_t b = 0; b < N; ++b) out[i * N + b] = in[b * count + i];
  }
};

}  // namespace terrace
