#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>

#include "terrace/attention/attention_arithmetic.hpp"
#include "terrace/attention/float_buffer.hpp"
#include "terrace/core/bytes.hpp"
#include "terrace/core/config.hpp"
#include "terrace/core/convert.hpp"
#include "terrace/core/element.hpp"
#include "terrace/core/error.hpp"
#include "terrace/core/layout.hpp"

namespace terrace {

/// The shape of one layer's attention. Query head h reads KV head h / (q_heads / kv_heads): GQA, with MHA and
/// MQA as its ends.
struct attention_shape {
  std::uint32_t q_heads = 0;
  std::uint32_t kv_heads = 0;
  std::uint32_t dim = 0;  ///< of a query and of a key; a multiple of 16. Values may have another.
  float scale = 0;        ///< of the logits; 0 stands for 1 / sqrt(dim)
  retention keep{};       ///< which of the keys up to its own position a query may see
  attention_arithmetic arithmetic = attention_arithmetic::floating;  ///< `integer`, `bf16`: faster

  constexpr std::uint32_t group() const noexcept { return q_heads / kv_heads; }
  float logit_scale() const noexcept {
    return scale != 0 ? scale : 1.0f / std::sqrt(static_cast<float>(dim));
  }
  friend constexpr bool operator==(const attention_shape&, const attention_shape&) noexcept = default;
};

/// Whether the host can compute attention of this shape; the error's text says why not.
inline result<void> validate(const attention_shape& shape) noexcept {
  if (shape.q_heads == 0 || shape.kv_heads == 0 || shape.q_heads % shape.kv_heads != 0)
    return fail(errc::invalid_argument, "the KV heads must divide the query heads");
  if (shape.dim == 0 || shape.dim % 16 != 0)
    return fail(errc::invalid_argument,
                "attention on the host needs a head dimension that is a multiple of 16");
  if (!std::isfinite(shape.scale))
    return fail(errc::invalid_argument, "the scale of the logits must be finite");
  return {};
}

/// Queries of consecutive positions, as float and multiplied by the scale of the logits, so that each is
/// converted once however many blocks it meets. Query i has position first_position() + i. Storage is kept
/// between uses.
class query_tile {
 public:
  /// Takes queries in the order [query][q_head][dim]; as many as the span holds. O(size). Allocates only
  /// beyond the largest size so far. Errors: invalid_argument (the shape, or a span that is not a whole number of
  /// queries), out_of_memory; then the tile is as it was.
  template <element_type T>
  result<void> load(const attention_shape& shape, std::span<const T> queries,
                    std::uint64_t first_position) noexcept {
    if (auto good = validate(shape); !good) return good;
    const std::size_t row = std::size_t{shape.q_heads} * shape.dim;
    if (queries.size() % row != 0)
      return fail(errc::invalid_argument, "queries must be a whole number of [q_head][dim] rows");
    if (auto room = values_.require(queries.size()); !room) return room;
    convert(queries, std::span<float>(values_.data(), queries.size()));
    const float scale = shape.logit_scale();
    for (std::size_t i = 0; i < queries.size(); ++i) values_.data()[i] *= scale;
    shape_ = shape;
    count_ = static_cast<std::uint32_t>(queries.size() / row);
    first_position_ = first_position;
    return {};
  }

  const attention_shape& shape() const noexcept { return shape_; }
  /// Queries in the tile.
  std::uint32_t size() const noexcept { return count_; }
  std::uint64_t first_position() const noexcept { return first_position_; }
  /// Rows of the partial state that belongs to the tile: one for each query of each query head.
  std::size_t rows() const noexcept { return std::size_t{count_} * shape_.q_heads; }
  /// The row of a query of a head.
  std::size_t row(std::uint32_t query, std::uint32_t head) const noexcept {
    return std::size_t{query} * shape_.q_heads + head;
  }
  /// The scaled query of a row: shape().dim floats on a cache-line boundary.
  const float* values(std::size_t row) const noexcept { return values_.data() + row * shape_.dim; }

 private:
  attention_shape shape_;
  float_buffer values_;
  std::uint32_t count_ = 0;
  std::uint64_t first_position_ = 0;
};

}  // namespace terrace
