#pragma once
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "terrace/core/bytes.hpp"
#include "terrace/core/error.hpp"

namespace terrace {

/// A compressor of bytes that does not know what they are: a stateless type with static members. It can follow
/// another codec in a `chain`. Any thread may call any member at any time; no member throws or touches memory outside
/// its spans, which do not overlap. Whatever a member allocates, its thread keeps and reuses.
///
/// Constants: `format_id`, `name` and `fixed_rate` as a codec has them (codec/codec.hpp), and `lossless`,
/// which must be true: the codec before it in a chain must get back exactly what it wrote.
///
/// Operations:
/// - `max_encoded_bytes(n)`: the most that n bytes can become, at least 1 for n > 0; 0 where n bytes are too
///   many for one call. It never decreases up to there. O(1).
/// - `encode_bytes(in, out)`: the bytes written, a prefix of `out`, which has at least
///   max_encoded_bytes(in.size()) of them. The same input gives the same bytes, on every thread. Errors:
///   invalid_argument where `out` is smaller or `in` too large, out_of_memory. O(in.size()).
/// - `decode_bytes(in, out)`: fills `out`, whose size is that of what was encoded: the caller keeps it. `in`
///   may hold anything at all. Errors: corrupt where `in` cannot come from so many bytes, and then `out` holds
///   anything; out_of_memory. O(out.size()).
template <class C>
concept byte_codec = requires(std::size_t n, const_bytes in, mutable_bytes out) {
  requires std::same_as<decltype(C::format_id), const std::uint32_t>;
  requires std::same_as<decltype(C::name), const std::string_view>;
  requires std::same_as<decltype(C::fixed_rate), const bool>;
  requires std::same_as<decltype(C::lossless), const bool>;
  requires C::lossless;
  { C::max_encoded_bytes(n) }
  noexcept->std::same_as<std::size_t>;
  { C::encode_bytes(in, out) }
  noexcept->std::same_as<result<std::size_t>>;
  { C::decode_bytes(in, out) }
  noexcept->std::same_as<result<void>>;
};

}  // namespace terrace
