#pragma once
#include <algorithm>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "problem.hpp"
#include "terrace/medium/nvme.hpp"
#include "terrace/terrace.hpp"

namespace equal_memory {

/// Terrace: a cache over the tiers of `Cache`, and `stream` for each layer.
template <class Cache>
class streamed : public contestant {
 public:
  streamed(context& ctx, const problem& p, Cache cache)
      : context_(ctx), problem_(p), cache_(std::move(cache)), text_(cache_.make_sequence()) {
    // As attention_runner does: up to an eighth of tier 0, at most 64 blocks.
    const std::size_t eighth = cache_.control().hot_capacity() / 8 / p.block_bytes;
    cache_.use(layer_ahead({.blocks = static_cast<std::uint32_t>(std::clamp<std::size_t>(eighth, 4, 64))}));
    for (std::uint32_t index = 0; index < problem::blocks_a_layer; ++index)
      append(index, problem::block_tokens);
    if (auto saved = ctx.sync_wait(cache_.flush()); !saved) give_up(saved.error().message());
  }

  void step(std::span<float> out) override {
    const std::uint64_t before = read_from_disk();
    decode(out, {});
    read_ += read_from_disk() - before;
  }
  /// A step that computes nothing.
  void transfers_alone() {
    std::vector<float> out(problem::layers * problem::width);
    decode(out, {.attend = false});
  }
  std::size_t peak_bytes() const override {
    const cache_stats now = cache_.stats();
    std::size_t bytes = now.hot_bytes_peak;
    for (std::size_t t = 1; t < now.tiers.size(); ++t)
      if (now.tiers[t].medium == ram::name) bytes += now.tiers[t].capacity_bytes;
    return bytes;
  }
  std::uint64_t bytes_read() const override { return read_; }

 private:
  void decode(std::span<float> out, const stream_options& how) {
    cache_.advance_step(++step_);
    auto token = reserve(1);  // dropped without a commit: the context stays as long as it is
    for (std::uint32_t layer = 0; layer < problem::layers; ++layer) {
      write(token, layer, problem::blocks_a_layer, 1);
      auto done = context_.sync_wait(stream(cache_, text_, token, layer, problem_.queries_of(layer),
                                            out.subspan(layer * problem::width, problem::width), how));
      if (!done) give_up(done.error().message());
    }
  }
  reservation reserve(std::uint32_t tokens) {
    auto made = text_.reserve(tokens);
    if (!made) give_up(made.error().message());
    return std::move(*made);
  }
  void append(std::uint32_t index, std::uint32_t tokens) {
    reservation room = reserve(tokens);
    for (std::uint32_t layer = 0; layer < problem::layers; ++layer) write(room, layer, index, tokens);
    text_.commit(std::move(room), tokens);
  }
  // A reservation that begins with block `index` has the block's memory to itself.
  void write(const reservation& room, std::uint32_t layer, std::uint32_t index, std::uint32_t tokens) {
    problem_.write_block(layer, index, tokens,
                         reinterpret_cast<std::byte*>(room.k(layer).template row<fp16>(0, 0).data()));
  }
  std::uint64_t read_from_disk() const {
    std::uint64_t bytes = 0;
    for (const tier_stats& t : cache_.stats().tiers)
      if (t.medium == nvme::name) bytes += t.bytes_read;
    return bytes;
  }

  context& context_;
  const problem& problem_;
  Cache cache_;
  sequence text_;
  std::uint64_t step_ = 0, read_ = 0;
};

}  // namespace equal_memory
