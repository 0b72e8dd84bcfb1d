#pragma once
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

#include "terrace/cuda/attention.hpp"
#include "terrace/cuda/batch.hpp"
#include "terrace/cuda/mass_feed.hpp"
#include "terrace/cuda/merge.hpp"

namespace terrace::cuda {
inline namespace TERRACE_EX {

/// Decode attention of a batch whose KV is larger than device memory: for each layer the windows of cuda::batch, the
/// attention kernel over each, and the merge in the order of the sequences. Everything is enqueued on the engine's
/// stream; meanwhile the copies of the next windows run on the link's.
///
///     auto decode = cuda::decode_attention<fp16, 128>::make(*batch, {.q_heads = 32});
///     for (layer ...) {
///       project(layer, slots.mapping(layer), queries, stream);
///       if (auto done = decode->run(layer, queries, out, stream); !done) ...   // batch.lost() has the blocks
///     }
///
/// It must end before the batch does. T is the element type of queries, keys and values, `dim` the dimension of keys
/// and values. Windows begin at multiples of a split's blocks (batch::options::align = split_blocks), so that the
/// result has the same bits wherever blocks lie. The kernels are instantiated in some .cu of the program
/// (cuda/attention.hpp, cuda/merge.hpp). If a policy wants it and the batch's kernels have `mass`, it is told what
/// share of the softmax mass each block drew (cuda/mass_feed.hpp).
template <element_type T, std::uint32_t dim>
class decode_attention {
 public:
  struct options {
    std::uint32_t q_heads = 0;
    std::uint32_t most_queries = 1;  ///< new tokens of any sequence in a step
    std::uint32_t split_blocks = 8;  ///< what a block of threads reads in one go
    float scale = 0;                 ///< of the logits; 0: 1 / sqrt(dim)
  };

  /// Errors: invalid_argument for heads that do not divide, splits of no blocks, or a batch whose windows are not
  /// aligned; unavailable for groups with sinks, whose pages have gaps.
  static result<decode_attention> make(batch& b, options o) {
    if (o.split_blocks == 0)
      return terrace::fail(errc::invalid_argument, "a split of decode attention needs at least one block");
    for (const layer_group& g : b.layout().groups) {
      if (g.holds_tensors()) continue;
      if (o.q_heads == 0 || o.q_heads % g.k.heads != 0)
        return terrace::fail(errc::invalid_argument, "the query heads are not a multiple of the KV heads");
      if (g.k.dim != dim || g.v_dim() != dim || g.k.type != element_of<T>)
        return terrace::fail(errc::invalid_argument,
                             "decode attention was made for another head dimension or type");
      if (g.keep.sinks != 0)
        return terrace::fail(errc::unavailable, "decode attention on a device does not know sinks yet");
    }
    if (b.limits().align % o.split_blocks != 0)
      return terrace::fail(errc::invalid_argument,
                           "the windows of the batch must begin where splits do: set its align");
    return decode_attention(b, o);
  }

  /// Attention of the reserved tokens of `layer`: `queries` and `out` are [token][q_head][dim] in device memory, with
  /// the tokens of the batch in order. Enqueues and returns; when a window needs more room for the states of its
  /// splits than any before, device memory is allocated outside the cache's. Errors: those of batch::next, with
  /// batch::lost() naming the blocks; those of the kernels; invalid_argument if a sequence has more new tokens than
  /// options::most_queries; unavailable if one has forgotten blocks in the middle, and a sequence has several new
  /// tokens or a sliding window, because positions within a window are counted from its first page. After an error
  /// `out` is unchanged or incomplete; the next call for the layer starts over.
  result<void> run(std::uint32_t layer, const T* queries, T* out, cudaStream_t stream) {
    auto done = run_windows(layer, queries, out, stream);
    if (!done) batch_->rewind();
    return done;
  }

 private:
  decode_attention(batch& b, const options& o)
      : batch_(&b), options_(o), feed_(std::make_unique<mass_feed>(b)) {}
  result<void> run_windows(std::uint32_t layer, const T* queries, T* out, cudaStream_t stream) {
    if (layer >= batch_->layout().layers())
      return terrace::fail(errc::invalid_argument,
                           "attention was asked for in a layer that the model does not have");
    const layer_group& g = batch_->layout().groups[batch_->layout().group_of(layer)];
    const std::uint32_t layer_in_block = (layer - g.first_layer) % g.layers_per_block;
    const reserved_slots& reserved = batch_->reserved();
    const std::uint32_t rows = reserved.tokens() * options_.q_heads;
    if (reserved.most() > options_.most_queries)
      return terrace::fail(errc::invalid_argument,
                           "a sequence has more new tokens than decode attention was made for");
    const bool weighs = feed_->wanted();
    feed_->begin();
    bool fresh = true;
    while (auto w = batch_->next(layer, stream)) {
      if (w->has_gaps() && (reserved.most() > 1 || g.keep.window != 0))
        return terrace::fail(errc::unavailable,
                             "decode attention on a device does not know pages with gaps between them yet");
      const std::uint32_t splits = splits_for(w->most_pages(), options_.split_blocks);
      if (auto room = grow(rows, splits); !room) return room;
      const split_states states{split_rows_.template as<softmax_row>(), split_o_.template as<float>(),
                                splits};
      attention_args args{
          .page = page_of(g, layer_in_block),
          .table = {.blocks = {.base = const_cast<std::byte*>(static_cast<const std::byte*>(w->pages())),
                               .indices = w->indices(),
                               .stride = batch::page_stride},
                    .indptr = w->indptr(),
                    .last_page_len = w->last_page_len(),
                    .first_position = w->first_position(),
                    .sequences = static_cast<std::uint32_t>(batch_->size())},
          .queries = {.values = queries,
                      .indptr = reserved.indptr(),
                      .first_position = reserved.first_position(),
                      .q_heads = options_.q_heads,
                      .most = options_.most_queries},
          .out = states,
          .scale = options_.scale,
          .keep = g.keep,
          .split_blocks = options_.split_blocks};
      finished_rows<T> whole{.o = w->last() ? out : nullptr};
      if (weighs) {
        if (auto kept = feed_->add(*w, args, stream); !kept) return kept;
        auto lse = feed_->lse(rows);
        if (!lse) return propagate(lse.error());
        if (w->last()) whole.lse = *lse;
      }
      if (auto enqueued = attend<T, dim>(args, stream); !enqueued) return enqueued;
      const row_states state{state_rows_.template as<softmax_row>(), state_o_.template as<float>()};
      if (auto merged = merge<T>(states, rows, dim, state, whole, stream, fresh); !merged) return merged;
      fresh = false;
    }
    if (batch_->failure()) return propagate(*batch_->failure());
    return weighs ? feed_->report(stream) : result<void>();
  }
  result<void> grow(std::size_t rows, std::size_t splits) {
    if (auto r = split_rows_.reserve(rows * splits * sizeof(softmax_row)); !r) return r;
    if (auto r = split_o_.reserve(rows * splits * dim * sizeof(float)); !r) return r;
    if (auto r = state_rows_.reserve(rows * sizeof(softmax_row)); !r) return r;
    return state_o_.reserve(rows * dim * sizeof(float));
  }

  batch* batch_;
  options options_;
  grown_tables split_rows_, split_o_, state_rows_, state_o_;
  std::unique_ptr<mass_feed> feed_;
};

}  // namespace TERRACE_EX
}  // namespace terrace::cuda
