#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "hand_attention.hpp"
#include "huge_memory.hpp"
#include "problem.hpp"
#include "raw_disk.hpp"
#include "report.hpp"

namespace equal_memory {

/// A step's compute alone: over as many bytes, from more memory than caches hold.
class compute_alone {
 public:
  compute_alone(context& ctx, const problem& p)
      : problem_(p), attention_(ctx, p), memory_(bench::huge_memory(p.layer_bytes)) {
    for (std::uint32_t b = 0; b < problem::blocks_a_layer; ++b)
      p.write_block(0, b, problem::block_tokens, memory_.get() + b * p.block_bytes);
  }
  double seconds() {
    return bench::seconds([&] {
      for (std::uint32_t layer = 0; layer < problem::layers; ++layer) {
        attention_.begin(layer);
        for (std::uint32_t first = 0; first < problem::blocks_a_layer; first += problem::piece) {
          std::array<const std::byte*, problem::piece> here{};
          for (std::size_t b = 0; b < here.size(); ++b)
            here[b] = memory_.get() + (first + b) * problem_.block_bytes;
          attention_.fold(first, here);
        }
        attention_.finish(layer, out_);
      }
    });
  }

 private:
  const problem& problem_;
  hand_attention attention_;
  bench::memory memory_;
  std::vector<float> out_ = std::vector<float>(problem::layers * problem::width);
};

/// A step's bytes from disk: how long a raw loop takes for them, with 32 blocks in flight, into as much memory as
/// each contestant has. Without liburing there is no loop, and it takes no time.
class disk_alone {
 public:
  enum class order { of_layers, of_tokens };

  explicit disk_alone([[maybe_unused]] const problem& p, [[maybe_unused]] const std::string& path) {
#if __has_include(<liburing.h>)
    raw_.emplace(path);
    buffers_ = bench::huge_memory(p.budget);
    job_ = {true, p.block_bytes, bench::raw_disk::most_depth,
            std::vector<std::uint32_t>(p.kv_bytes / p.block_bytes / 2), p.budget / p.block_bytes};
#endif
  }
  /// Seconds that `bytes` take, scaled from a read of half of the KV: in the order of the file, or every eighth
  /// block, then every eighth again, which is how a layer lies in a file written token after token.
  double seconds_for([[maybe_unused]] double bytes, [[maybe_unused]] order o) {
#if __has_include(<liburing.h>)
    for (std::uint32_t i = 0; i < job_.order.size(); ++i)
      job_.order[i] = o == order::of_layers
                          ? i
                          : i % problem::blocks_a_layer * problem::layers + i / problem::blocks_a_layer;
    const double took = bench::seconds([&] { raw_->run(job_, buffers_.get()); });
    return took * bytes / static_cast<double>(job_.order.size() * job_.bytes);
#else
    return 0;
#endif
  }

 private:
#if __has_include(<liburing.h>)
  std::optional<bench::raw_disk> raw_;
#endif
  bench::disk_job job_{};
  bench::memory buffers_;
};

}  // namespace equal_memory
