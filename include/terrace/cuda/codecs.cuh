#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "terrace/codec/block_encoding.hpp"
#include "terrace/core/config.hpp"
#include "terrace/cuda/block_context.hpp"
#include "terrace/cuda/codec_arithmetic.hpp"
#include "terrace/cuda/codecs.hpp"
#include "terrace/cuda/cooperative_copy.cuh"
#include "terrace/cuda/decode_octet.cuh"
#include "terrace/cuda/launch.hpp"

namespace terrace::cuda {

/// What the kernels of encode_blocks and decode_blocks share. A thread has eight consecutive values, an octet; four
/// neighbouring lanes have a group of q8_0 or q4_0. Encoded bytes pass through shared memory, a tile of a block at a
/// time, so that global memory sees runs of 16 bytes although a group has 34 or 18.
template <element_type T, block_encoding encoding>
struct octet_tiles {
  static constexpr std::uint32_t threads = 256;
  static constexpr std::uint32_t per_thread = sizeof(T) == 4 ? 2 : 4;
  static constexpr std::uint32_t tile_octets = threads * per_thread;
  static constexpr std::uint32_t words = sizeof(T) / 2;  // of 16 bytes, in an octet of raw values
  static constexpr std::size_t shared_bytes =
      encoded_bytes(tile_octets * 8 * sizeof(T), element_of<T>, encoding);

  block_addresses raw, encoded;
  std::uint64_t items;
  std::uint32_t octets;  // of a block
  std::uint32_t tiles;   // of a block

  /// Bytes of `n` encoded octets, in whole groups.
  TERRACE_HD static constexpr std::size_t encoded_octets(std::size_t n) noexcept {
    return encoding == block_encoding::q8_0   ? n / 4 * 34
           : encoding == block_encoding::q4_0 ? n / 4 * 18
                                              : n * 8;
  }
  /// Calls work(block of the list, first octet, octets) for each tile that this block of threads has to do.
  template <class Block, class Work>
  TERRACE_DEVICE void for_each_tile(Block& block, Work work) const {
    for (std::uint64_t item = block.index().x; item < items; item += block.count().x) {
      const std::uint32_t first = static_cast<std::uint32_t>(item % tiles) * tile_octets;
      work(static_cast<std::size_t>(item / tiles), first,
           octets - first < tile_octets ? octets - first : tile_octets);
    }
  }
};

template <element_type T, block_encoding encoding>
struct encode_kernel : octet_tiles<T, encoding> {
  using base = octet_tiles<T, encoding>;

  template <class Block>
  TERRACE_DEVICE void operator()(Block& block) const {
    this->for_each_tile(block, [&](std::size_t i, std::uint32_t first, std::uint32_t count) {
      const std::byte* const from = this->raw[i] + std::size_t{first} * 8 * sizeof(T);
      vec16 v[base::per_thread][base::words];
      TERRACE_DEVICE_UNROLL
      for (std::uint32_t u = 0; u < base::per_thread; ++u) {
        const std::uint32_t octet = u * base::threads + block.thread();
        TERRACE_DEVICE_UNROLL
        for (std::uint32_t w = 0; w < base::words; ++w)
          v[u][w] = octet < count ? block.load16(from + (octet * base::words + w) * 16) : vec16{};
      }
      TERRACE_DEVICE_UNROLL
      for (std::uint32_t u = 0; u < base::per_thread; ++u) {
        const std::uint32_t octet = u * base::threads + block.thread();
        float x[8];
        widen(block, v[u], x);
        encode(block, x, octet, octet < count);
      }
      block.sync();
      copy_bytes<base::threads>(block, block.shared(), this->encoded[i] + base::encoded_octets(first), 0,
                                base::encoded_octets(count));
      block.sync();  // before the next tile overwrites this one
    });
  }

 private:
  template <class Block>
  TERRACE_DEVICE static void widen(Block& block, const vec16 (&v)[base::words], float (&x)[8]) {
    TERRACE_DEVICE_UNROLL
    for (std::uint32_t i = 0; i < 8; ++i) {
      if constexpr (sizeof(T) == 4)
        x[i] = std::bit_cast<float>(v[i / 4].word[i % 4]);
      else
        x[i] = block.to_float(T{static_cast<std::uint16_t>(v[0].word[i / 2] >> (i % 2 * 16))});
    }
  }

  // Encodes one octet to its place in shared memory. All lanes come here; `there` says whether this one has values.
  template <class Block>
  TERRACE_DEVICE static void encode(Block& block, float (&x)[8], std::uint32_t octet, bool there) {
    std::byte* const out = block.shared();
    if constexpr (encoding == block_encoding::fp8) {
      if (!there) return;
      TERRACE_DEVICE_UNROLL
      for (std::uint32_t i = 0; i < 8; i += 4) {
        std::uint32_t four = 0;
        TERRACE_DEVICE_UNROLL
        for (std::uint32_t j = 0; j < 4; ++j) four |= std::uint32_t{to_fp8_e4m3(x[i + j]).bits} << (j * 8);
        *reinterpret_cast<std::uint32_t*>(out + octet * 8 + i) = four;
      }
    } else {
      TERRACE_DEVICE_UNROLL
      for (std::uint32_t i = 0; i < 8; ++i) x[i] = tame<T>(x[i], encoding);
      if constexpr (encoding == block_encoding::q8_0)
        encode_q8_0(block, x, octet, there, out + octet / 4 * 34);
      else
        encode_q4_0(block, x, octet, there, out + octet / 4 * 18);
    }
  }

  template <class Block>
  TERRACE_DEVICE static void encode_q8_0(Block& block, const float (&x)[8], std::uint32_t octet, bool there,
                                         std::byte* group) {
    std::uint32_t most = 0;
    TERRACE_DEVICE_UNROLL
    for (std::uint32_t i = 0; i < 8; ++i) most = most < magnitude_bits(x[i]) ? magnitude_bits(x[i]) : most;
    TERRACE_DEVICE_UNROLL
    for (std::uint32_t other = 1; other < 4; other *= 2) {
      const std::uint32_t theirs = block.shuffle_xor(most, other);
      most = most < theirs ? theirs : most;
    }
    const group_scale scale = q8_0_scale<T>(std::bit_cast<float>(most));
    int code[8];
    TERRACE_DEVICE_UNROLL
    for (std::uint32_t i = 0; i < 8; ++i) code[i] = q8_0_code(x[i], scale.inverse);
    if constexpr (std::is_same_v<T, bf16>) {  // see codec/q8_0.hpp
      exact_code exact[8];
      std::uint32_t missing = 0;
      TERRACE_DEVICE_UNROLL
      for (std::uint32_t i = 0; i < 8; ++i) {
        exact[i] = q8_0_exact_code(x[i], scale.stored, code[i]);
        missing |= exact[i].found ? 0u : 1u;
      }
      missing |= block.shuffle_xor(missing, 1);
      missing |= block.shuffle_xor(missing, 2);
      TERRACE_DEVICE_UNROLL
      for (std::uint32_t i = 0; i < 8; ++i) code[i] = missing == 0 ? exact[i].code : code[i];
    }
    if (!there) return;
    if (octet % 4 == 0) *reinterpret_cast<std::uint16_t*>(group) = scale.stored.bits;
    TERRACE_DEVICE_UNROLL
    for (std::uint32_t i = 0; i < 8; i += 2)
      *reinterpret_cast<std::uint16_t*>(group + 2 + octet % 4 * 8 + i) =
          static_cast<std::uint16_t>((code[i] & 0xff) | (code[i + 1] & 0xff) << 8);
  }

  template <class Block>
  TERRACE_DEVICE static void encode_q4_0(Block& block, const float (&x)[8], std::uint32_t octet, bool there,
                                         std::byte* group) {
    // The first of the values of largest magnitude: within a thread, then among the four lanes.
    float extreme = x[0];
    TERRACE_DEVICE_UNROLL
    for (std::uint32_t i = 1; i < 8; ++i)
      extreme = magnitude_bits(extreme) < magnitude_bits(x[i]) ? x[i] : extreme;
    TERRACE_DEVICE_UNROLL
    for (std::uint32_t other = 1; other < 4; other *= 2) {
      const float theirs = block.shuffle_xor(extreme, other);
      const bool later = (octet & other) == 0;  // their values come after ours
      const std::uint32_t own_bits = magnitude_bits(extreme), their_bits = magnitude_bits(theirs);
      extreme = own_bits < their_bits || (own_bits == their_bits && !later) ? theirs : extreme;
    }
    const group_scale scale = q4_0_scale(extreme);
    std::uint32_t codes[2] = {};  // a nibble in each byte
    TERRACE_DEVICE_UNROLL
    for (std::uint32_t i = 0; i < 8; ++i)
      codes[i / 4] |= static_cast<std::uint32_t>(q4_0_code(x[i], scale.inverse)) << (i % 4 * 8);
    // Values 16 to 31 go to the high nibbles of the bytes that have values 0 to 15.
    const std::uint32_t high[2] = {block.shuffle_xor(codes[0], 2), block.shuffle_xor(codes[1], 2)};
    if (!there || octet % 4 >= 2) return;
    if (octet % 4 == 0) *reinterpret_cast<std::uint16_t*>(group) = scale.stored.bits;
    TERRACE_DEVICE_UNROLL
    for (std::uint32_t i = 0; i < 2; ++i) {
      const std::uint32_t four = codes[i] | high[i] << 4;
      auto* const out = reinterpret_cast<std::uint16_t*>(group + 2 + octet % 4 * 8 + i * 4);
      out[0] = static_cast<std::uint16_t>(four);
      out[1] = static_cast<std::uint16_t>(four >> 16);
    }
  }
};

template <element_type T, block_encoding encoding>
struct decode_kernel : octet_tiles<T, encoding> {
  using base = octet_tiles<T, encoding>;
  std::uint32_t* bad;

  template <class Block>
  TERRACE_DEVICE void operator()(Block& block) const {
    this->for_each_tile(block, [&](std::size_t i, std::uint32_t first, std::uint32_t count) {
      std::byte* const stored = block.shared();
      load(block, this->encoded[i] + base::encoded_octets(first), stored, base::encoded_octets(count));
      block.sync();
      std::byte* const to = this->raw[i] + std::size_t{first} * 8 * sizeof(T);
      for (std::uint32_t octet = block.thread(); octet < count; octet += base::threads) {
        if (bad != nullptr && is_bad(stored, octet)) bad[i] = 1;
        if constexpr (sizeof(T) == 2) {
          block.store16(to + octet * 16, decode_octet_as<T, encoding>(block, stored, octet));
        } else {
          float value[8];
          decode_octet<encoding>(block, stored, octet, value);
          TERRACE_DEVICE_UNROLL
          for (std::uint32_t w = 0; w < 2; ++w) {
            vec16 v;
            TERRACE_DEVICE_UNROLL
            for (std::uint32_t j = 0; j < 4; ++j) v.word[j] = std::bit_cast<std::uint32_t>(value[w * 4 + j]);
            block.store16(to + octet * 32 + w * 16, v);
          }
        }
      }
      block.sync();  // before the next tile overwrites this one
    });
  }

 private:
  // Asynchronous copies keep the whole tile in flight without a register.
  template <class Block>
  TERRACE_DEVICE static void load(Block& block, const std::byte* from, std::byte* to, std::size_t bytes) {
    if (!aligned_to(from, to, 16)) return copy_bytes<base::threads>(block, from, to, 0, bytes);
    for (std::size_t at = std::size_t{block.thread()} * 16; at < bytes; at += base::threads * 16) {
      const std::size_t left = bytes - at;
      block.copy_async16(to + at, from + at, left < 16 ? static_cast<std::uint32_t>(left) : 16u);
    }
    block.commit_copies();
    block.template wait_copies<0>();
  }
  TERRACE_DEVICE static bool is_bad(const std::byte* stored, std::uint32_t octet) {
    if constexpr (encoding == block_encoding::fp8) return false;
    constexpr std::uint32_t group_bytes = encoding == block_encoding::q8_0 ? 34 : 18;
    return (*reinterpret_cast<const std::uint16_t*>(stored + octet / 4 * group_bytes) & 0x7c00u) == 0x7c00u;
  }
};

namespace detail {
template <element_type T, block_encoding encoding>
result<octet_tiles<T, encoding>> octet_tiles_of(const layer_group& group, const block_addresses& raw,
                                                const block_addresses& encoded,
                                                std::uint32_t count) noexcept {
  using tiles = octet_tiles<T, encoding>;
  static_assert(encoding != block_encoding::raw, "raw blocks are gathered, not encoded");
  static_assert(sizeof(T) >= 2, "a plane of fp8 elements needs no codec");
  const std::uint32_t unit = encoding == block_encoding::fp8 ? 8 : 32;
  for (const plane* p : {&group.k, &group.v}) {
    if (!p->present()) continue;
    if (p->type != element_of<T>)
      return fail(errc::invalid_argument, "the planes have another element type than the kernel");
    if (p->dim % unit != 0)
      return fail(errc::invalid_argument,
                  "a device encodes q8_0 and q4_0 for head dimensions of a multiple of 32, fp8 of 8");
  }
  const std::size_t octets = group.block_bytes() / sizeof(T) / 8;
  if (octets > 0x7fffffffu) return fail(errc::invalid_argument, "a block of that size cannot be encoded");
  const auto of_block = static_cast<std::uint32_t>(octets);
  const std::uint32_t per_block = (of_block + tiles::tile_octets - 1) / tiles::tile_octets;
  return tiles{raw, encoded, std::uint64_t{count} * per_block, of_block, per_block};
}
template <class Kernel>
result<void> launch_octets(const Kernel& kernel, std::uint32_t ctas, stream_handle stream) noexcept {
  const auto blocks = static_cast<std::uint32_t>(std::min<std::uint64_t>(kernel.items, std::max(ctas, 1u)));
  return launch(kernel, {.x = blocks, .shared_bytes = Kernel::shared_bytes}, stream);
}
}  // namespace detail

template <element_type T, block_encoding encoding>
result<void> encode_blocks(const layer_group& group, const block_addresses& raw,
                           const block_addresses& encoded, std::uint32_t count, stream_handle stream,
                           std::uint32_t ctas) noexcept {
  const auto tiles = detail::octet_tiles_of<T, encoding>(group, raw, encoded, count);
  if (!tiles) return propagate(tiles.error());
  return detail::launch_octets(encode_kernel<T, encoding>{*tiles}, ctas, stream);
}

template <element_type T, block_encoding encoding>
result<void> decode_blocks(const layer_group& group, const block_addresses& encoded,
                           const block_addresses& raw, std::uint32_t count, stream_handle stream,
                           std::uint32_t* bad, std::uint32_t ctas) noexcept {
  const auto tiles = detail::octet_tiles_of<T, encoding>(group, raw, encoded, count);
  if (!tiles) return propagate(tiles.error());
  return detail::launch_octets(decode_kernel<T, encoding>{*tiles, bad}, ctas, stream);
}

}  // namespace terrace::cuda
