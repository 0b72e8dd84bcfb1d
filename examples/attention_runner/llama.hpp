#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <utility>

#include "aligned_vector.hpp"
#include "elementwise.hpp"
#include "gemm.hpp"
#include "kv_backend.hpp"
#include "llama_weights.hpp"
#include "parallel_for.hpp"
#include "rope.hpp"
#include "terrace/core/convert.hpp"
#include "terrace/core/error.hpp"

namespace runner {

/// For which tokens of a chunk `forward` computes logits.
enum class logits_for : std::uint8_t { none, last, all };

/// Runs a Llama model over chunks of tokens; the KV is a backend's. What it computes for a token is bit for
/// bit the same in a chunk of any length and on any number of threads, provided the backend's attention is
/// too.
///
/// One object computes one chunk at a time, in buffers that grow to the largest chunk seen and are then
/// reused. It may serve several contexts, one after the other, each with a backend of its own.
class llama {
 public:
  /// `weights` must outlive this object.
  explicit llama(const llama_weights& weights, parallel_for parallel = serial_for)
      : weights_(weights),
        parallel_(std::move(parallel)),
        rope_(weights.config.head_dim, weights.config.rope_theta) {}

  const model_config& config() const noexcept { return weights_.config; }

  /// Reserves room in `kv` for `tokens`, the first of which is at `first_position`, computes them and commits them.
  /// Returns the logits as [token][vocab_size], for the tokens that were asked for; the span is valid until the next
  /// call. invalid_argument for an empty chunk or an id that is not in the vocabulary; otherwise the backend's
  /// errors, after which nothing has been committed.
  terrace::result<std::span<const float>> forward(std::span<const std::uint32_t> tokens,
                                                  std::uint32_t first_position, kv_backend& kv,
                                                  logits_for wanted) {
    if (auto done = begin(tokens, first_position, kv); !done) return terrace::propagate(done.error());
    for (std::uint32_t i = 0; i < config().num_hidden_layers; ++i)
      if (auto done = layer(i, kv); !done) return terrace::propagate(done.error());
    if (auto done = kv.commit(static_cast<std::uint32_t>(count_)); !done)
      return terrace::propagate(done.error());
    return logits(wanted);
  }

  /// Reserves room in `kv` for `tokens` and writes their keys and values of the layers up to and including `last`, as
  /// `forward` does; no more, and nothing is committed. Errors: those of `forward`.
  terrace::result<void> keys_and_values(std::span<const std::uint32_t> tokens, std::uint32_t first_position,
                                        kv_backend& kv, std::uint32_t last) {
    if (auto done = begin(tokens, first_position, kv); !done) return done;
    for (std::uint32_t i = 0; i < last; ++i)
      if (auto done = layer(i, kv); !done) return done;
    store_kv_of(last, kv);
    return {};
  }

  /// A model with the same weights and buffers of its own.
  llama another() const { return llama(weights_, parallel_); }

 private:
  static std::size_t padded(std::size_t size) noexcept { return llama_weights::padded(size); }
  /// Rows of `width` floats that make a piece of elementwise work worth handing to another thread.
  static std::size_t grain(std::size_t width) noexcept { return std::max<std::size_t>(1, 65536 / width); }

  // Room in `kv`, and the rows of the chunk as they enter the first layer.
  terrace::result<void> begin(std::span<const std::uint32_t> tokens, std::uint32_t first_position,
                              kv_backend& kv) {
    if (tokens.empty())
      return terrace::fail(terrace::errc::invalid_argument, "a chunk needs at least one token");
    for (const std::uint32_t token : tokens)
      if (token >= config().vocab_size)
        return terrace::fail(terrace::errc::invalid_argument, "a token id is not in the model's vocabulary");
    const auto count = static_cast<std::uint32_t>(tokens.size());
    if (auto done = kv.reserve(count); !done) return done;
    grow(count);
    rope_.prepare(first_position, count, parallel_);
    embed(tokens);
    return {};
  }

  void grow(std::size_t count) {
    count_ = count;
    const auto fit = [count](aligned_vector<float>& buffer, rows_of<float>& rows, std::size_t stride) {
      if (buffer.size() < count * stride) buffer.resize(count * stride);
      rows = {buffer.data(), stride};
    };
    const auto& c = config();
    fit(hidden_buffer_, hidden_, padded(c.hidden_size));
    fit(normed_buffer_, normed_, padded(c.hidden_size));
    fit(qkv_buffer_, qkv_, padded(c.q_size() + 2 * c.kv_size()));
    fit(q_buffer_, q_, c.q_size());
    fit(attended_buffer_, attended_, c.q_size());
    fit(gate_up_buffer_, gate_up_, 2 * padded(c.intermediate_size));
  }

  void embed(std::span<const std::uint32_t> tokens) {
    for (std::size_t r = 0; r < count_; ++r) {
      const std::span row(hidden_[r], hidden_.stride);
      weights_.embedding.get_column(tokens[r], row);
      std::fill(row.begin() + config().hidden_size, row.end(), 0.0f);
    }
  }

  terrace::result<void> layer(std::uint32_t index, kv_backend& kv) {
    const llama_layer& w = weights_.layers[index];
    store_kv_of(index, kv);
    const std::size_t q_floats = count_ * q_.stride;
    if (auto done = kv.attend(index, {q_.data, q_floats}, {attended_.data, q_floats}); !done) return done;
    product(attended_, w.output, hidden_, store::add);

    normalise(hidden_, count_, w.mlp_norm, normed_);
    product(normed_, w.gate_up, gate_up_, store::replace);
    const std::size_t middle = padded(config().intermediate_size);
    for_pieces(parallel_, count_, grain(2 * middle), [this, middle](std::size_t begin, std::size_t end) {
      for (std::size_t r = begin; r < end; ++r)
        swiglu(gate_up_[r], gate_up_[r] + middle, middle, gate_up_[r]);
    });
    product(gate_up_, w.down, hidden_, store::add);
    return {};
  }

  // From the rows that enter the layer, computes its queries, and its keys and values in `kv`.
  void store_kv_of(std::uint32_t index, kv_backend& kv) {
    const llama_layer& w = weights_.layers[index];
    normalise(hidden_, count_, w.attention_norm, normed_);
    product(normed_, w.qkv, qkv_, store::replace);
    rotate();
    store_kv(index, kv);
  }

  void product(rows_of<float> x, const packed_matrix& w, rows_of<float> y, store how) {
    gemm({x.data, x.stride}, count_, w, y, how, parallel_);
  }

  void normalise(rows_of<float> x, std::size_t rows, const aligned_vector<float>& weight, rows_of<float> y) {
    for_pieces(parallel_, rows, grain(x.stride), [&](std::size_t begin, std::size_t end) {
      for (std::size_t r = begin; r < end; ++r)
        rms_norm(x[r], weight.data(), x.stride, config().hidden_size, config().rms_norm_eps, y[r]);
    });
  }

  /// Rotates queries into the contiguous rows that attention takes, and keys in place.
  void rotate() {
    const auto& c = config();
    for_pieces(parallel_, count_, grain(4 * qkv_.stride), [&](std::size_t begin, std::size_t end) {
      for (std::size_t r = begin; r < end; ++r) {
        float* const row = qkv_[r];
        for (std::size_t i = 0; i < c.q_size(); i += c.head_dim) rope_.rotate(r, row + i, q_[r] + i);
        float* const k = row + c.q_size();
        for (std::size_t i = 0; i < c.kv_size(); i += c.head_dim) rope_.rotate(r, k + i, k + i);
      }
    });
  }

  /// On the calling thread: all calls of a backend come from one thread.
  void store_kv(std::uint32_t index, kv_backend& kv) {
    const auto& c = config();
    for (std::uint32_t r = 0; r < count_; ++r) {
      const float* k = qkv_[r] + c.q_size();
      const float* v = k + c.kv_size();
      for (std::uint32_t head = 0; head < c.num_key_value_heads; ++head, k += c.head_dim, v += c.head_dim) {
        terrace::convert(std::span(k, c.head_dim), kv.k(index, r, head));
        terrace::convert(std::span(v, c.head_dim), kv.v(index, r, head));
      }
    }
  }

  std::span<const float> logits(logits_for wanted) {
    if (wanted == logits_for::none) return {};
    const std::size_t rows = wanted == logits_for::all ? count_ : 1;
    const rows_of<float> from{hidden_[count_ - rows], hidden_.stride};
    const packed_matrix& w = weights_.output_layer();
    if (logits_buffer_.size() < rows * w.columns()) logits_buffer_.resize(rows * w.columns());
    const rows_of<float> out{logits_buffer_.data(), w.columns()};
    normalise(from, rows, weights_.final_norm, normed_);
    gemm({normed_.data, normed_.stride}, rows, w, out, store::replace, parallel_);

    const std::size_t vocab = config().vocab_size;  // close the gaps between rows where there are any
    for (std::size_t r = 1; r < rows && vocab != out.stride; ++r)
      std::memmove(logits_buffer_.data() + r * vocab, out[r], vocab * sizeof(float));
    return {logits_buffer_.data(), rows * vocab};
  }

  const llama_weights& weights_;
  parallel_for parallel_;
  rope_table rope_;

  std::size_t count_ = 0;  ///< tokens in the current chunk
  rows_of<float> hidden_, normed_, qkv_, q_, attended_, gate_up_;
  aligned_vector<float> hidden_buffer_, normed_buffer_, qkv_buffer_, q_buffer_, attended_buffer_,
      gate_up_buffer_;
  aligned_vector<float> logits_buffer_;
};

}  // namespace runner
