#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "../synthetic_kv.hpp"
#include "device_stream.hpp"
#include "terrace/cuda/host_link.hpp"
#include "terrace/sequence.hpp"

namespace runner {

/// Fills a sequence whose first tier is in device memory with synthetic keys and values, a chunk at a time, through
/// pinned memory.
class context_upload {
 public:
  static terrace::result<context_upload> make(const synthetic_kv& kv, const terrace::layer_group& group,
                                              std::uint32_t chunk) {
    context_upload c(kv, group);
    auto host = terrace::cuda::host_tables::make(chunk * group.token_bytes() * group.layers);
    if (!host) return terrace::propagate(host.error());
    c.host_ = std::move(*host);
    return c;
  }

  /// Writes the tokens of a reservation on the stream. Waits for the last chunk's copies, but not for these.
  terrace::result<void> write(const terrace::reservation& r, terrace::cuda::host_link& link,
                              const device_stream& stream, terrace::context& ctx) {
    if (auto done = stream.finish(); !done) return done;
    pieces_.resize(group_.layers);
    ctx.parallel_for(group_.layers,
                     [&](std::size_t layer) noexcept { stage(r, static_cast<std::uint32_t>(layer)); });
    for (const auto& of_layer : pieces_)
      if (const cudaError_t e = link.enqueue(of_layer, terrace::cuda::copy_direction::up, stream.get());
          e != cudaSuccess)
        return terrace::cuda::fail(e, "a chunk cannot be copied to the device");
    return {};
  }

 private:
  context_upload(const synthetic_kv& kv, const terrace::layer_group& group) : kv_(&kv), group_(group) {}

  // One layer's rows in the order of its blocks, so that most of them go in a few large pieces.
  void stage(const terrace::reservation& r, std::uint32_t layer) {
    std::vector<terrace::cuda::copy_piece>& pieces = pieces_[layer];
    pieces.clear();
    const std::size_t bytes = kv_->shape().head_dim * sizeof(terrace::fp16);
    std::byte* from = host_->data() + layer * group_.token_bytes() * r.tokens();
    for (std::uint32_t first = 0; first < r.tokens();) {
      const std::uint64_t position = r.first_position() + first;
      const std::uint32_t count =
          std::min(r.tokens() - first, group_.tokens - static_cast<std::uint32_t>(position % group_.tokens));
      for (const bool values : {false, true})
        for (std::uint32_t h = 0; h < kv_->shape().kv_heads; ++h) {
          const terrace::plane_rows plane = values ? r.v(layer) : r.k(layer);
          auto* const to = reinterpret_cast<std::byte*>(plane.row<terrace::fp16>(first, h).data());
          if (!pieces.empty() && pieces.back().to + pieces.back().bytes == to)
            pieces.back().bytes += count * bytes;
          else
            pieces.push_back({to, from, count * bytes});
          for (std::uint32_t t = 0; t < count; ++t, from += bytes)
            std::memcpy(
                from,
                kv_->row(values ? synthetic_kv::plane::v : synthetic_kv::plane::k, layer, h, position + t)
                    .data(),
                bytes);
        }
      first += count;
    }
  }

  const synthetic_kv* kv_;
  terrace::layer_group group_;
  std::unique_ptr<terrace::cuda::host_tables> host_;
  std::vector<std::vector<terrace::cuda::copy_piece>> pieces_;  // of each layer
};

}  // namespace runner
