#pragma once
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "terrace/cuda/attention.hpp"
#include "terrace/cuda/batch.hpp"
#include "terrace/cuda/page_tables.hpp"

namespace terrace::cuda {
inline namespace TERRACE_EX {

/// Tells the cache's policies what share of the softmax mass each block drew, as streams do on the host. Shares are
/// of the whole, so they are known only when the last window of a layer has been merged: until then the scalars of
/// the windows' tiles and their tables are kept on the device. The shares come to the host after the step, on the
/// engine's stream, and the policies are told when the context is polled: no host wait. For decode_attention.
///
/// Device memory: 8 bytes for each tile, query and query head of a layer, beside the cache's.
class mass_feed {
 public:
  explicit mass_feed(batch& b) noexcept : batch_(&b) {}
  mass_feed(const mass_feed&) = delete;
  mass_feed& operator=(const mass_feed&) = delete;
  /// Waits for reports that are under way.
  ~mass_feed() {
    while (idle_.size() != reports_.size()) batch_->owner().wait(context::clock::time_point::max());
  }

  /// Whether some policy wants to be told, and there is a kernel for it.
  bool wanted() const noexcept { return batch_->limits().kernels.mass != nullptr && batch_->weighs(); }

  /// A layer begins.
  void begin() noexcept { used_ = 0; }
  /// Adds a window of the layer: gives `args`, the arguments of the attention over it, room for the scalars of its
  /// tiles. Errors: out_of_memory, and those of the runtime.
  result<void> add(const window& w, attention_args& args, cudaStream_t stream) {
    if (used_ == windows_.size()) windows_.push_back(std::make_unique<seen_window>());
    seen_window& kept = *windows_[used_];
    const std::size_t rows =
        std::size_t{w.page_count()} * tiles_of(args.page) * args.queries.most * args.queries.q_heads;
    if (auto room = kept.tiles.reserve(rows * sizeof(softmax_row)); !room) return room;
    args.tiles.rows = kept.tiles.as<softmax_row>();
    // The next window will soon overwrite the window's own arrays.
    const std::size_t n = args.table.sequences;
    const std::size_t lengths = align_up((n + 1) * sizeof(std::int32_t), 16);
    const std::size_t positions = lengths + align_up(n * sizeof(std::int32_t), 16);
    if (auto room = kept.table.reserve(positions + n * sizeof(std::int64_t)); !room) return room;
    kept.args = args;
    kept.args.table.indptr = kept.table.as<std::int32_t>();
    kept.args.table.last_page_len = kept.table.as<std::int32_t>(lengths);
    kept.args.table.first_position = kept.table.as<std::int64_t>(positions);
    const auto keep = [&](std::size_t at, const void* from, std::size_t bytes) {
      return cudaMemcpyAsync(kept.table.as<std::byte>(at), from, bytes, cudaMemcpyDeviceToDevice, stream);
    };
    cudaError_t e = keep(0, args.table.indptr, (n + 1) * sizeof(std::int32_t));
    if (e == cudaSuccess) e = keep(lengths, args.table.last_page_len, n * sizeof(std::int32_t));
    if (e == cudaSuccess) e = keep(positions, args.table.first_position, n * sizeof(std::int64_t));
    if (e != cudaSuccess) return fail(e, "a window's tables cannot be kept for the mass of its blocks");
    w.blocks(kept.blocks);
    ++used_;
    return {};
  }
  /// Where the merge of the last window must write `rows` values of lse. Errors: out_of_memory.
  result<float*> lse(std::size_t rows) {
    if (auto room = lse_.reserve(rows * sizeof(float)); !room) return propagate(room.error());
    return lse_.as<float>();
  }
  /// Call when that merge has been enqueued. Errors: those of the kernel and of the runtime.
  result<void> report(cudaStream_t stream) {
    std::size_t entries = 0;
    for (std::size_t i = 0; i < used_; ++i) entries += windows_[i]->blocks.size();
    if (entries == 0) return {};
    if (auto room = shares_.reserve(entries * sizeof(float)); !room) return room;
    auto taken = take(entries);
    if (!taken) return propagate(taken.error());
    layer_report& r = **taken;
    std::size_t first = 0;
    for (std::size_t i = 0; i < used_; ++i) {
      const seen_window& kept = *windows_[i];
      const auto count = static_cast<std::uint32_t>(kept.blocks.size());
      const cudaError_t e = count == 0 ? cudaSuccess
                                       : batch_->limits().kernels.mass(kept.args, lse_.as<float>(), count,
                                                                       shares_.as<float>() + first, stream);
      if (e != cudaSuccess) return give_back(r, e);
      r.blocks.insert(r.blocks.end(), kept.blocks.begin(), kept.blocks.end());
      first += count;
    }
    if (const cudaError_t e = cudaMemcpyAsync(r.shares->data(), shares_.as<float>(), entries * sizeof(float),
                                              cudaMemcpyDeviceToHost, stream);
        e != cudaSuccess)
      return give_back(r, e);
    batch_->link().when_done(r, stream);
    return {};
  }

 private:
  struct seen_window {
    grown_tables tiles, table;
    attention_args args;
    std::vector<block_id> blocks;  // of the table's entries
  };
  // The shares of a layer on their way to the policies.
  struct layer_report final : device_work {
    mass_feed* owner = nullptr;
    std::unique_ptr<host_tables> shares;
    std::size_t room = 0;
    std::vector<block_id> blocks;
    void complete(cudaError_t how) noexcept override {
      const auto* const share = reinterpret_cast<const float*>(shares->data());
      if (how == cudaSuccess)
        for (std::size_t i = 0; i < blocks.size(); ++i) owner->batch_->weigh(blocks[i], share[i]);
      blocks.clear();
      owner->idle_.push_back(this);
    }
  };

  result<layer_report*> take(std::size_t entries) {
    if (idle_.empty()) {
      reports_.push_back(std::make_unique<layer_report>());
      reports_.back()->owner = this;
      idle_.reserve(reports_.size());
      idle_.push_back(reports_.back().get());
    }
    layer_report& r = *idle_.back();
    if (r.room < entries) {
      auto made = host_tables::make(2 * entries * sizeof(float));
      if (!made) return propagate(made.error());
      r.shares = std::move(*made);
      r.room = 2 * entries;
    }
    idle_.pop_back();
    return &r;
  }
  result<void> give_back(layer_report& r, cudaError_t e) {
    r.blocks.clear();
    idle_.push_back(&r);
    return fail(e, "the mass of blocks cannot be told");
  }

  batch* batch_;
  std::vector<std::unique_ptr<seen_window>> windows_;
  std::size_t used_ = 0;  // windows of the layer
  grown_tables lse_, shares_;
  std::vector<std::unique_ptr<layer_report>> reports_;
  std::vector<layer_report*> idle_;
};

}  // namespace TERRACE_EX
}  // namespace terrace::cuda
