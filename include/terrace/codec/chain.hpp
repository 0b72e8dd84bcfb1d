#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string_view>

#include "terrace/codec/byte_codec.hpp"
#include "terrace/codec/codec.hpp"
#include "terrace/codec/thread_scratch.hpp"
#include "terrace/core/bytes.hpp"
#include "terrace/core/error.hpp"
#include "terrace/core/layout.hpp"

namespace terrace {

namespace detail {
/// The format id of a chain, which never changes: FNV-1a (32 bits: basis 2166136261, prime 16777619) over the format
/// ids of its codecs, first to last, each as four bytes, little-endian; then the highest bit is set, which no other
/// codec's id has.
template <class... Codecs>
consteval std::uint32_t chain_format_id() noexcept {
  std::uint32_t hash = 2166136261u;
  for (const std::uint32_t id : {std::uint32_t{Codecs::format_id}...})
    for (unsigned shift = 0; shift < 32; shift += 8) hash = (hash ^ ((id >> shift) & 0xffu)) * 16777619u;
  return hash | 0x80000000u;
}

/// The names of the codecs, joined by plus signs: the characters behind `chain::name`.
template <class... Codecs>
inline constexpr auto chain_name = [] {
  std::array<char, (Codecs::name.size() + ...) + sizeof...(Codecs) - 1> text{};
  std::size_t at = 0;
  for (const std::string_view name : {std::string_view(Codecs::name)...}) {
    if (at != 0) text[at++] = '+';
    for (const char c : name) text[at++] = c;
  }
  return text;
}();
}  // namespace detail

/// One codec after another: `First` encodes the block, and each byte codec in `Rest` compresses what the one
/// before it wrote. chain<q4_0, zstd<>> takes a quarter of the bytes of fp16, or less.
///
/// Format: the encoded bytes of the last codec. They are preceded, for each codec but the last, in order, by the
/// number of bytes that it wrote, as four bytes, little-endian; except for those whose size is known because they and
/// all before them are of fixed rate. A chain of q4_0 and zstd has no such numbers.
///
/// A thread keeps a buffer for what each codec but the last writes, as large as its largest block.
template <class First, class... Rest>
struct chain {
  static_assert(codec<First>, "a chain begins with a codec of blocks (codec/codec.hpp)");
  static_assert(sizeof...(Rest) != 0, "a chain needs a byte codec after its first codec");
  static_assert(
      (byte_codec<Rest> && ...),
      "each codec of a chain after its first must be a byte codec (codec/byte_codec.hpp), as zstd is");

  static constexpr std::uint32_t format_id = detail::chain_format_id<First, Rest...>();
  static constexpr std::string_view name{detail::chain_name<First, Rest...>.data(),
                                         detail::chain_name<First, Rest...>.size()};
  static constexpr bool lossless = First::lossless;  // byte codecs lose nothing
  static constexpr std::uint8_t loss = First::loss;
  static constexpr bool fixed_rate = (First::fixed_rate && ... && Rest::fixed_rate);
  static constexpr bool attendable = false;

  static result<void> supports(const layer_group& group) noexcept {
    if (auto first = First::supports(group); !first) return first;
    for (const std::size_t size : most(group))
      if (size == 0 || size > std::numeric_limits<std::uint32_t>::max())
        return fail(errc::invalid_argument, "a block is too large for a codec of the chain");
    return {};
  }

  static std::size_t max_encoded_size(const layer_group& group) noexcept {
    return header_bytes + most(group).back();
  }

  static result<std::size_t> encode(const layer_group& group, const_bytes raw, mutable_bytes out) noexcept {
    const sizes bounds = most(group);
    if (raw.size() != group.block_bytes() || out.size() < header_bytes + bounds.back())
      return fail(errc::invalid_argument,
                  "a block and its encoding must have the sizes that their group says");
    const mutable_bytes between = thread_scratch<stage<0>>(bounds[0]);
    if (between.size() != bounds[0]) return no_memory();
    const auto first = First::encode(group, raw, between);
    if (!first) return first;
    const auto last = encode_rest<0, Rest...>(bounds, between.first(*first), out.first(header_bytes),
                                              out.subspan(header_bytes));
    if (!last) return last;
    return header_bytes + *last;
  }

  static result<void> decode(const layer_group& group, const_bytes in, mutable_bytes raw) noexcept {
    if (raw.size() != group.block_bytes())
      return fail(errc::invalid_argument, "a block must have the size that its group says");
    if constexpr (header_bytes != 0)  // nvcc warns about a comparison with 0
      if (in.size() < header_bytes) return fail(errc::corrupt, "a stored block ends within its sizes");
    sizes written = most(group);
    for (std::size_t i = fixed_stages, at = 0; i + 1 < stages; ++i, at += size_bytes) {
      const std::size_t size = load_size(in.subspan(at));
      if (size > written[i]) return fail(errc::corrupt, "a stored block says a size that no codec writes");
      written[i] = size;
    }
    const auto first = decode_rest<0, Rest...>(written, in.subspan(header_bytes));
    if (!first) return propagate(first.error());
    return First::decode(group, *first, raw);
  }

 private:
  static constexpr std::size_t stages = 1 + sizeof...(Rest);
  static constexpr std::size_t size_bytes = 4;
  using sizes = std::array<std::size_t, stages>;

  // How many codecs, from the first on, have an output of known size.
  static constexpr std::size_t fixed_stages = [] {
    std::size_t count = 0;
    bool fixed = true;
    for (const bool rate : {First::fixed_rate, Rest::fixed_rate...})
      count += (fixed = fixed && rate) ? 1u : 0u;
    return count;
  }();
  static constexpr std::size_t header_bytes =
      fixed_stages < stages ? (stages - 1 - fixed_stages) * size_bytes : 0;

  // Names the buffer for what the I-th codec writes.
  template <std::size_t I>
  struct stage {};

  // The most that each codec can write.
  static sizes most(const layer_group& group) noexcept {
    sizes bounds{};
    std::size_t i = 0;
    bounds[0] = First::max_encoded_size(group);
    ((bounds[i + 1] = Rest::max_encoded_bytes(bounds[i]), ++i), ...);
    return bounds;
  }

  static failure<error> no_memory() noexcept {
    return fail(errc::out_of_memory, "no memory for what one codec of a chain hands to the next");
  }
  static void store_size(std::size_t size, mutable_bytes out) noexcept {
    for (std::size_t i = 0; i < size_bytes; ++i) out[i] = static_cast<std::byte>(size >> 8 * i);
  }
  static std::size_t load_size(const_bytes in) noexcept {
    std::size_t size = 0;
    for (std::size_t i = 0; i < size_bytes; ++i) size |= std::to_integer<std::size_t>(in[i]) << 8 * i;
    return size;
  }

  // Encodes from the output of the I-th codec to the end of the chain.
  template <std::size_t I, class Next, class... More>
  static result<std::size_t> encode_rest(const sizes& bounds, const_bytes in, mutable_bytes header,
                                         mutable_bytes out) noexcept {
    if constexpr (I >= fixed_stages) {
      store_size(in.size(), header);
      header = header.subspan(size_bytes);
    }
    if constexpr (sizeof...(More) == 0) {
      return Next::encode_bytes(in, out);
    } else {
      const mutable_bytes between = thread_scratch<stage<I + 1>>(bounds[I + 1]);
      if (between.size() != bounds[I + 1]) return no_memory();
      const auto encoded = Next::encode_bytes(in, between);
      if (!encoded) return encoded;
      return encode_rest<I + 1, More...>(bounds, between.first(*encoded), header, out);
    }
  }

  // Decodes from the end of the chain back to the output of the I-th codec.
  template <std::size_t I, class Next, class... More>
  static result<const_bytes> decode_rest(const sizes& written, const_bytes in) noexcept {
    if constexpr (sizeof...(More) != 0) {
      const auto after = decode_rest<I + 1, More...>(written, in);
      if (!after) return after;
      in = *after;
    }
    const mutable_bytes out = thread_scratch<stage<I>>(written[I]);
    if (out.size() != written[I]) return no_memory();
    if (auto decoded = Next::decode_bytes(in, out); !decoded) return propagate(decoded.error());
    return const_bytes(out);
  }
};

}  // namespace terrace
