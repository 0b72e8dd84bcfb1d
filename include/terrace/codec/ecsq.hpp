#pragma once
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "terrace/codec/codec.hpp"
#include "terrace/codec/rope.hpp"
#include "terrace/core/bytes.hpp"
#include "terrace/core/cpu.hpp"
#include "terrace/core/element.hpp"
#include "terrace/core/error.hpp"
#include "terrace/core/layout.hpp"

namespace terrace {

/// Entropy-coded scalar quantisation: each value of a head, within one block, is a multiple of one step, and the
/// multiples take as many bits as their distribution in their channel needs (codec/rans.hpp). Seven or more times
/// smaller than fp16, at less loss than q4_0: docs/performance.md has the figures. Attention cannot read it in place;
/// it is for tiers where bytes count.
///
/// Keys are coded as they were before RoPE rotated them, since a channel's mean and spread are then about the same
/// for all tokens; so the codec has to know the rotation. It counts positions from the beginning of the block: where
/// that is makes no difference to the spread. With a `Rope` other than the model's it is just as correct, but saves
/// less. A latent plane (MLA) is coded as it is.
///
/// The step is KeyStep or ValueStep tenths of the head's standard deviation about its channels' means, rounded to an
/// eighth of a power of two; a larger one gives fewer bytes and more loss. The error of a value is at most half a
/// step plus the rounding to its type, in the basis in which it is coded.
///
/// A head whose values are already multiples of one step, up to rounding to their type, is coded with that step, so
/// that encoding what was decoded gives the same codes. Heads for which this could not be recognised are stored as
/// they are: those with a NaN, an infinity or a magnitude beyond 30000, with values of 127 steps or more (bf16: 60),
/// with a spread below 2^-14, or with so few or so uniform values that another step could be mistaken for theirs.
///
/// Format: a record of three bytes for each head, layers in order, K before V: the step as log2 in eighths (a signed
/// byte; -128 for zeros, 127 for a head stored as it is), the middle of its channels' distributions (upper four bits)
/// and the distribution of the distances from it, the distribution of the channels' means. Then the elements of heads
/// stored as they are, token by token. Then one stream of codec/rans.hpp, 16 channels at a time: for each other head
/// its channels' distributions, their means in steps, and, token by token, the multiples less the mean. With RoPE the
/// channels of a head are the pairs' first elements, then their second ones.
template <rope Rope = rope{}, std::uint32_t KeyStep = 12, std::uint32_t ValueStep = 10>
struct ecsq;

/// The functions of ecsq, independent of its template parameters.
struct ecsq_format {
  struct parameters {
    rope turn;
    std::uint32_t key_step, value_step;  ///< tenths of a standard deviation
  };
  static constexpr std::uint32_t most_channels = 1024;
  static constexpr std::size_t record_bytes = 3;

  static result<void> supports(const layer_group& group, const parameters& how) noexcept;
  static std::size_t max_encoded_size(const layer_group& group) noexcept;
  static result<std::size_t> encode(const layer_group& group, const parameters& how, const_bytes raw,
                                    mutable_bytes out, isa set) noexcept;
  static result<void> decode(const layer_group& group, const parameters& how, const_bytes in,
                             mutable_bytes raw, isa set) noexcept;
};

template <rope Rope, std::uint32_t KeyStep, std::uint32_t ValueStep>
struct ecsq {
  static_assert(Rope.theta < 1u << 23, "ecsq takes a theta of RoPE below 2^23");
  static_assert(KeyStep >= 1 && KeyStep <= 15 && ValueStep >= 1 && ValueStep <= 15,
                "ecsq takes steps of 1 to 15 tenths of a standard deviation");

  /// A reader has to know how keys were rotated; the steps are in the block.
  static constexpr std::uint32_t format_id =
      0x12000000u | static_cast<std::uint32_t>(Rope.pairs) << 23 | Rope.theta;
  static constexpr std::string_view name = "ecsq";
  static constexpr bool lossless = false;
  static constexpr std::uint8_t loss = 64 + (KeyStep > ValueStep ? KeyStep : ValueStep);
  static constexpr bool fixed_rate = false;
  static constexpr bool attendable = false;

  static result<void> supports(const layer_group& group) noexcept {
    return ecsq_format::supports(group, how);
  }
  static std::size_t max_encoded_size(const layer_group& group) noexcept {
    return ecsq_format::max_encoded_size(group);
  }
  static result<std::size_t> encode(const layer_group& group, const_bytes raw, mutable_bytes out,
                                    isa set = best_isa()) noexcept {
    return ecsq_format::encode(group, how, raw, out, set);
  }
  static result<void> decode(const layer_group& group, const_bytes in, mutable_bytes raw,
                             isa set = best_isa()) noexcept {
    return ecsq_format::decode(group, how, in, raw, set);
  }

 private:
  static constexpr ecsq_format::parameters how{Rope, KeyStep, ValueStep};
};

static_assert(codec<ecsq<>>);

}  // namespace terrace

#if !defined(TERRACE_PREBUILT)
#include "terrace/codec/ecsq_body.hpp"  // IWYU pragma: export
#endif
