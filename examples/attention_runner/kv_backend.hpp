#pragma once
#include <cstdint>
#include <span>

#include "terrace/core/element.hpp"
#include "terrace/core/error.hpp"

namespace runner {

/// The KV of one decoding context, wherever it lives. A chunk of tokens passes through it as
///   reserve(n), then for each layer in ascending order { write k and v of all n tokens; attend }, then
///   commit(n).
/// All calls come from one thread. After an error the chunk is abandoned without a commit.
struct kv_backend {
  virtual ~kv_backend() = default;

  /// Makes room for the next `tokens` tokens in every layer. A reservation that was not committed is dropped.
  virtual terrace::result<void> reserve(std::uint32_t tokens) = 0;

  /// Where to write the key (after RoPE) and the value of one token and one KV head: head_dim elements.
  /// `token` counts from 0 within the reservation. The spans hold until the next attend of this layer.
  virtual std::span<terrace::fp16> k(std::uint32_t layer, std::uint32_t token, std::uint32_t kv_head) = 0;
  virtual std::span<terrace::fp16> v(std::uint32_t layer, std::uint32_t token, std::uint32_t kv_head) = 0;

  /// Causal attention of the reservation's tokens over everything committed and over the reservation, each up
  /// to its own position. `q` and `out` are [token][q_head][dim]; `q` is not scaled yet, the backend
  /// multiplies the scores by 1/sqrt(dim). A row of `out` must not depend on which other rows are in the
  /// chunk.
  virtual terrace::result<void> attend(std::uint32_t layer, std::span<const float> q,
                                       std::span<float> out) = 0;

  /// Keeps the first `tokens` tokens of the reservation and ends it.
  virtual terrace::result<void> commit(std::uint32_t tokens) = 0;
};

}  // namespace runner
