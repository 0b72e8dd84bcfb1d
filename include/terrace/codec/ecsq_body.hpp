#pragma once
// The functions of codec/ecsq.hpp.
#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>

#include "terrace/codec/ecsq.hpp"
#include "terrace/codec/ecsq_head.hpp"
#include "terrace/codec/rans.hpp"
#include "terrace/codec/rans_simd.hpp"
#include "terrace/codec/thread_scratch.hpp"
#include "terrace/core/config.hpp"

#define TERRACE_KERNEL "terrace/codec/ecsq_kernel.hpp"
#include "terrace/core/for_each_isa.hpp"

namespace terrace {

namespace detail {

// The rotations of positions 0 to tokens - 1, as ecsq_head has them. A thread keeps those that it used last. Null if
// there is no memory.
inline const float* ecsq_turns(std::uint32_t theta, std::uint32_t tokens, std::uint32_t dim) noexcept {
  struct kept_turns {
    std::uint32_t theta = 0, tokens = 0, dim = 0;
    std::unique_ptr<float[]> values;
  };
  thread_local kept_turns kept;
  if (kept.theta == theta && kept.tokens == tokens && kept.dim == dim) return kept.values.get();
  kept = {};
  kept.values.reset(new (std::nothrow) float[std::size_t{tokens} * dim]);
  if (kept.values == nullptr) return nullptr;
  const std::uint32_t half = dim / 2;
  for (std::uint32_t i = 0; i < half; ++i) {
    const double frequency = std::pow(static_cast<double>(theta), -2.0 * i / dim);
    for (std::uint32_t t = 0; t < tokens; ++t) {
      kept.values[std::size_t{t} * dim + i] = static_cast<float>(std::cos(t * frequency));
      kept.values[std::size_t{t} * dim + half + i] = static_cast<float>(std::sin(t * frequency));
    }
  }
  kept.theta = theta;
  kept.tokens = tokens;
  kept.dim = dim;
  return kept.values.get();
}

inline std::size_t ecsq_heads(const layer_group& group) noexcept {
  return std::size_t{group.layers_per_block} * (group.k.heads + (group.v.present() ? group.v.heads : 0));
}

// The rotations of a group's keys, null if they are coded as they are. Returns false if there is no memory.
inline bool ecsq_turns(const layer_group& group, const rope& turn, const float*& turns) noexcept {
  turns = turn.theta != 0 && group.v.present() ? ecsq_turns(turn.theta, group.tokens, group.k.dim) : nullptr;
  return turns != nullptr || turn.theta == 0 || !group.v.present();
}

// One head of a block, by its number in the order of records.
struct ecsq_place {
  kernels::ecsq_head head;
  element type;
  bool keys;
  std::size_t offset;  // of the first row
  std::size_t row_bytes() const noexcept { return head.dim * size_of(type); }
};
inline ecsq_place ecsq_place_of(const layer_group& group, const rope& turn, const float* turns,
                                std::size_t number) noexcept {
  const std::size_t heads = ecsq_heads(group) / group.layers_per_block;
  const auto layer = static_cast<std::uint32_t>(number / heads);
  const std::size_t within = number % heads;
  const bool keys = within < group.k.heads;
  const plane& p = keys ? group.k : group.v;
  const std::size_t plane_at = keys ? group.k_offset(layer) : group.v_offset(layer);
  return {.head = {group.tokens, p.dim, group.token_stride(p), keys ? turns : nullptr, turn.pairs},
          .type = p.type,
          .keys = keys,
          .offset = plane_at + (keys ? within : within - group.k.heads) * group.head_stride(p)};
}

static_assert(kernels::ecsq_channels::most == ecsq_format::most_channels);
inline void ecsq_describe(const kernels::ecsq_head& h, const std::int8_t* codes,
                          kernels::ecsq_channels& c) noexcept {
  const auto tokens = static_cast<int>(h.tokens);
  int middle = 0, most_mean = 0;
  float mean_squares = 0;
  // Sixteen channels side by side, as they lie in memory.
  for (std::uint32_t at = 0; at < h.dim; at += 16) {
    std::int32_t sums[16] = {}, means[16], mosts[16] = {};
    std::int64_t squares[16] = {};
    for (std::uint32_t t = 0; t < h.tokens; ++t)
      for (std::uint32_t i = 0; i < 16; ++i) sums[i] += codes[std::size_t{t} * h.dim + at + i];
    for (std::uint32_t i = 0; i < 16; ++i)
      means[i] = (sums[i] + (sums[i] < 0 ? -tokens : tokens) / 2) / tokens;
    for (std::uint32_t t = 0; t < h.tokens; ++t)
      for (std::uint32_t i = 0; i < 16; ++i) {
        const std::int32_t off = codes[std::size_t{t} * h.dim + at + i] - means[i];
        squares[i] += off * off;
        mosts[i] = std::max(mosts[i], off < 0 ? -off : off);
      }
    for (std::uint32_t i = 0; i < 16; ++i) {
      const int mean = means[i];
      const int best = rans::choose(static_cast<float>(squares[i]) / static_cast<float>(tokens), mosts[i]);
      c.means[at + i] = static_cast<std::int16_t>(mean);
      c.distributions[at + i] = static_cast<std::uint8_t>(best);
      middle += best;
      mean_squares += static_cast<float>(mean * mean);
      most_mean = std::max(most_mean, mean < 0 ? -mean : mean);
    }
  }
  const auto channels = static_cast<int>(h.dim);
  middle = (middle + channels / 2) / channels;
  int squares = 0, most = 0;
  for (std::uint32_t i = 0; i < h.dim; ++i) {
    const int off = c.distributions[i] - middle;
    c.distances[i] = static_cast<std::int16_t>(off);
    squares += off * off;
    most = std::max(most, off < 0 ? -off : off);
  }
  const auto count = static_cast<float>(channels);
  const int spread = rans::choose(static_cast<float>(squares) / count, most);
  c.record.spread = static_cast<std::uint8_t>(middle << 4 | spread);
  c.record.means = static_cast<std::uint8_t>(rans::choose(mean_squares / count, most_mean));
}

// Calls f with the head's element type.
template <class F>
auto ecsq_with_type(element type, F f) noexcept {
  if (type == element::fp16) return f(fp16{});
  if (type == element::bf16) return f(bf16{});
  return f(float{});
}
inline std::int8_t ecsq_quantise(const ecsq_place& at, const std::byte* in, std::uint32_t tenths,
                                 float* values, std::int8_t* codes, isa set) noexcept {
  return ecsq_with_type(at.type, [&](auto t) {
    using type = decltype(t);
#if TERRACE_X86
    if (set == isa::avx512) return kernels::avx512::quantise_head<type>(at.head, in, tenths, values, codes);
    if (set == isa::avx2) return kernels::avx2::quantise_head<type>(at.head, in, tenths, values, codes);
#endif
    static_cast<void>(set);
    return kernels::portable::quantise_head<type>(at.head, in, tenths, values, codes);
  });
}
inline void ecsq_write(const kernels::ecsq_head& h, const std::int8_t* codes, const kernels::ecsq_channels& c,
                       rans_writer& to, isa set) noexcept {
#if TERRACE_X86
  if (set == isa::avx512) return kernels::avx512::write_head(h, codes, c, to);
  if (set == isa::avx2) return kernels::avx2::write_head(h, codes, c, to);
#endif
  static_cast<void>(set);
  kernels::portable::write_head(h, codes, c, to);
}
inline void ecsq_restore(const ecsq_place& at, kernels::ecsq_record record, rans_reader& from, std::byte* out,
                         isa set) noexcept {
  ecsq_with_type(at.type, [&](auto t) {
    using type = decltype(t);
#if TERRACE_X86
    if (set == isa::avx512) return kernels::avx512::restore_head<type>(at.head, record, from, out);
    if (set == isa::avx2) return kernels::avx2::restore_head<type>(at.head, record, from, out);
#endif
    static_cast<void>(set);
    kernels::portable::restore_head<type>(at.head, record, from, out);
  });
}

}  // namespace detail

TERRACE_BODY result<void> ecsq_format::supports(const layer_group& group, const parameters& how) noexcept {
  for (const plane* p : {&group.k, &group.v}) {
    if (!p->present()) continue;
    if (p->dim % 16 != 0 || p->dim > most_channels)
      return fail(errc::invalid_argument,
                  "ecsq needs head dimensions that are multiples of 16, at most 1024");
    if (p->type == element::fp8_e4m3) return fail(errc::invalid_argument, "ecsq encodes fp16, bf16 and fp32");
  }
  if (how.turn.theta != 0 && group.v.present() && group.k.dim % 32 != 0)
    return fail(errc::invalid_argument,
                "ecsq turns keys back whose head dimension is a multiple of 32, and no others");
  return {};
}

TERRACE_BODY std::size_t ecsq_format::max_encoded_size(const layer_group& group) noexcept {
  // A number takes at most two bytes of the stream, and an element at least two; two rows of numbers precede a
  // head's.
  std::size_t ahead = 0;
  for (const plane* p : {&group.k, &group.v})
    if (p->present()) ahead += std::size_t{p->heads} * p->dim * 4;
  return group.block_bytes() + detail::ecsq_heads(group) * record_bytes + ahead * group.layers_per_block +
         rans::state_bytes;
}

TERRACE_BODY result<std::size_t> ecsq_format::encode(const layer_group& group, const parameters& how,
                                                     const_bytes raw, mutable_bytes out, isa set) noexcept {
  using kernels::ecsq_record;
  if (raw.size() != group.block_bytes() || out.size() < max_encoded_size(group))
    return fail(errc::invalid_argument, "a block and its encoding must have the sizes that their group says");
  out = out.first(max_encoded_size(group));
  const std::size_t most =
      std::size_t{group.tokens} * std::max(group.k.dim, group.v.present() ? group.v.dim : 0);
  const mutable_bytes room = thread_scratch<ecsq_format>(most * (sizeof(float) + 1));
  const float* turns = nullptr;
  const bool good = detail::ecsq_turns(group, how.turn, turns);
  if (room.empty() || !good) return fail(errc::out_of_memory, "no memory to encode a block with ecsq");
  auto* const values = reinterpret_cast<float*>(room.data());
  auto* const codes = reinterpret_cast<std::int8_t*>(room.data() + most * sizeof(float));

  const std::size_t heads = detail::ecsq_heads(group);
  std::byte* const records = out.data();
  rans_writer stream(out.data() + out.size());
  kernels::ecsq_channels channels;
  for (std::size_t n = heads; n-- != 0;) {
    const detail::ecsq_place at = detail::ecsq_place_of(group, how.turn, turns, n);
    channels.record = {};
    channels.record.step = detail::ecsq_quantise(at, raw.data() + at.offset,
                                                 at.keys ? how.key_step : how.value_step, values, codes, set);
    if (channels.record.coded()) {
      detail::ecsq_describe(at.head, codes, channels);
      detail::ecsq_write(at.head, codes, channels, stream, set);
    }
    std::memcpy(records + n * record_bytes, &channels.record, record_bytes);
  }
  std::byte* const begin = stream.finish();

  std::byte* to = records + heads * record_bytes;
  for (std::size_t n = 0; n < heads; ++n) {
    if (static_cast<std::int8_t>(records[n * record_bytes]) != ecsq_record::stored) continue;
    const detail::ecsq_place at = detail::ecsq_place_of(group, how.turn, turns, n);
    const std::byte* row = raw.data() + at.offset;
    for (std::uint32_t t = 0; t < group.tokens; ++t, row += at.head.stride, to += at.row_bytes())
      std::memcpy(to, row, at.row_bytes());
  }
  const auto length = static_cast<std::size_t>(out.data() + out.size() - begin);
  std::memmove(to, begin, length);
  return static_cast<std::size_t>(to - out.data()) + length;
}

TERRACE_BODY result<void> ecsq_format::decode(const layer_group& group, const parameters& how, const_bytes in,
                                              mutable_bytes raw, isa set) noexcept {
  using kernels::ecsq_record;
  if (raw.size() != group.block_bytes())
    return fail(errc::invalid_argument, "a block must have the size that its group says");
  const float* turns = nullptr;
  if (!detail::ecsq_turns(group, how.turn, turns))
    return fail(errc::out_of_memory, "no memory to decode a block with ecsq");
  const auto is_corrupt = [] { return fail(errc::corrupt, "a stored ecsq block is no encoder's"); };
  const std::size_t heads = detail::ecsq_heads(group);
  if (in.size() < heads * record_bytes) return is_corrupt();
  const auto record_of = [&](std::size_t n) {
    ecsq_record r;
    std::memcpy(&r, in.data() + n * record_bytes, record_bytes);
    return r;
  };

  // Restores the heads that are not in the stream, and so finds where the stream begins.
  std::size_t from = heads * record_bytes;
  for (std::size_t n = 0; n < heads; ++n) {
    const ecsq_record record = record_of(n);
    const detail::ecsq_place at = detail::ecsq_place_of(group, how.turn, turns, n);
    std::byte* row = raw.data() + at.offset;
    if (record.step == ecsq_record::stored) {
      if (in.size() - from < at.row_bytes() * group.tokens) return is_corrupt();
      for (std::uint32_t t = 0; t < group.tokens; ++t, row += at.head.stride, from += at.row_bytes())
        std::memcpy(row, in.data() + from, at.row_bytes());
    } else if (record.step == ecsq_record::zeros) {
      for (std::uint32_t t = 0; t < group.tokens; ++t, row += at.head.stride)
        std::memset(row, 0, at.row_bytes());
    } else if (record.step < ecsq_record::least_step || record.step > ecsq_record::most_step) {
      return is_corrupt();
    }
  }
  if (in.size() - from < rans::state_bytes) return is_corrupt();
  rans_reader stream(in.data() + from, in.size() - from);
  for (std::size_t n = 0; n < heads; ++n) {
    const ecsq_record record = record_of(n);
    if (!record.coded()) continue;
    const detail::ecsq_place at = detail::ecsq_place_of(group, how.turn, turns, n);
    detail::ecsq_restore(at, record, stream, raw.data() + at.offset, set);
  }
  return stream.done() ? result<void>{} : is_corrupt();
}

}  // namespace terrace
