#pragma once
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "terrace/core/bytes.hpp"
#include "terrace/core/error.hpp"
#include "terrace/core/layout.hpp"

namespace terrace {

/// What a codec is: a stateless type with static members that turns the bytes of one block into fewer, and
/// back.
///
/// A block's raw bytes are those that the engine writes: layer_group::block_bytes() of them, planes of the group's
/// element types in its page order. Any thread may call any member at any time. No member throws, allocates memory
/// that outlives the call (except a thread's scratch, kept for its next block), or reads or writes outside its spans.
/// Spans do not overlap, and need no alignment.
///
/// Constants:
/// - `format_id`: names the encoded format on disk, for ever. 0 is identity; ggml's formats have ggml's numbers.
/// - `name`: for people and command lines.
/// - `lossless`: decode gives back the bytes that encode was given.
/// - `loss`: rank of fidelity of what decode gives (core/block.hpp). 0 is exact; larger is worse.
/// - `fixed_rate`: encode always writes max_encoded_size bytes.
/// - `attendable`: attention reads the encoded bytes in place, as the values that decode would give. On the
///   host these are the formats of `block_encoding` (cache/block_view.hpp), and no others.
///
/// Operations:
/// - `supports(group)`: success, or invalid_argument with a sentence that says which groups can be encoded.
///   Asked once, when a cache is opened. The other operations require that it succeeded.
/// - `max_encoded_size(group)`: bytes that encode may write for any block of the group. O(1).
/// - `encode(group, raw, out)`: the bytes written, a prefix of `out`. `raw` has block_bytes() bytes of any
///   content: NaN and garbage are encoded as something. `out` has at least max_encoded_size(group).
///   Errors: invalid_argument where a span has another size. O(raw.size()).
/// - `decode(group, in, raw)`: fills `raw`, block_bytes() bytes. `in` may hold anything at all. Errors:
///   invalid_argument where `raw` has another size; corrupt where `in` cannot come from encode, and then
///   `raw` holds anything. O(raw.size()).
///
/// Laws, for every block x, with e = encode and d = decode:
/// - d(e(d(e(x)))) == d(e(x)), and e(d(e(x))) == e(x): going up and down between tiers loses nothing after
///   the first time, and does not change the stored bytes. A lossless codec has d(e(x)) == x.
template <class C>
concept codec = requires(const layer_group& group, const_bytes in, mutable_bytes out) {
  requires std::same_as<decltype(C::format_id), const std::uint32_t>;
  requires std::same_as<decltype(C::name), const std::string_view>;
  requires std::same_as<decltype(C::lossless), const bool>;
  requires std::same_as<decltype(C::loss), const std::uint8_t>;
  requires std::same_as<decltype(C::fixed_rate), const bool>;
  requires std::same_as<decltype(C::attendable), const bool>;
  requires C::lossless == (C::loss == 0);
  { C::supports(group) }
  noexcept->std::same_as<result<void>>;
  { C::max_encoded_size(group) }
  noexcept->std::same_as<std::size_t>;
  { C::encode(group, in, out) }
  noexcept->std::same_as<result<std::size_t>>;
  { C::decode(group, in, out) }
  noexcept->std::same_as<result<void>>;
};

}  // namespace terrace
