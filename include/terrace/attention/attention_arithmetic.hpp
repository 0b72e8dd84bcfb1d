#pragma once
#include <cstdint>

#include "terrace/codec/block_encoding.hpp"

namespace terrace {

/// How attention on the host multiplies. Results of `floating` do not depend on where blocks are; the others trade
/// that, or some precision, for speed.
enum class attention_arithmetic : std::uint8_t {
  /// In float, with the values that decoding gives: the bits of a result do not depend on where a block was.
  floating,
  /// In integers, which is faster, where the head dimensions of keys and values are at most max_integer_dim; in float
  /// otherwise, and for blocks that are raw or fp8. So results depend on whether a block was decoded or read in
  /// place, but on nothing else: not on threads, windows, or what else is computed in the call.
  ///
  /// Keys and values are taken as stored, code * scale, not rounded to the element type. Besides float's own rounding
  /// (that of attend.hpp) there are two errors, with u = 2^-16:
  /// - a query is rounded to 16 bits of its largest element: a logit is off by at most u * max|q| * (sum of |k|);
  /// - in a tile of up to 64 tokens, p * scale is rounded to 16 bits of its largest, for each group of 32 dimensions:
  ///   the sum of p * v in a dimension is off by at most u * max(p |scale|) * (sum of |code|), over visible tokens.
  /// With random data both are about 1e-5 of the result. A query whose largest element is less than 2^-100 counts as
  /// zero, and so does a tile's p * scale. A query or a scale that is not finite makes everything it touches NaN.
  integer,
  /// As `integer`; and raw bf16 blocks are multiplied as they are stored, in pairs of bf16 whose products are added in
  /// float, as tensor cores do: where the processor can (has_bf16_products()) and the head dimensions of keys and
  /// values are multiples of 32, at most max_bf16_dim; in float otherwise. For engines whose activations are bf16.
  ///
  /// Besides float's own rounding there are these errors:
  /// - a query, without the scale of the logits, is the sum of two bf16. If it was bf16 it is so again, and nothing is
  ///   lost; else a logit is off by at most 2^-17 * (sum of |q * k|);
  /// - weights are rounded to bf16, also where they are summed up. So the result is still a mean of the visible values,
  ///   with weights that are off by at most 2^-8 of themselves: about 1e-3 of the result with random data;
  /// - numbers below 2^-126 count as zero.
  bf16,
};

/// The largest head dimension that attention computes in integers, and in bf16.
inline constexpr std::uint32_t max_integer_dim = 256, max_bf16_dim = 1024;

/// Whether `arithmetic` computes in integers over blocks of this encoding, with keys and values of these dimensions.
constexpr bool computes_in_integers(attention_arithmetic arithmetic, block_encoding encoding,
                                    std::uint32_t k_dim, std::uint32_t v_dim) noexcept {
  return arithmetic != attention_arithmetic::floating &&
         (encoding == block_encoding::q8_0 || encoding == block_encoding::q4_0) && k_dim <= max_integer_dim &&
         v_dim <= max_integer_dim;
}

}  // namespace terrace
