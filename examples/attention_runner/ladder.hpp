#pragma once
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kv_backend.hpp"
#include "terrace/medium/nvme.hpp"
#include "terrace/terrace.hpp"

namespace runner {

/// What the user gives the tiers: capacities in bytes, 0 leaves a tier out.
struct ladder_sizes {
  std::size_t hot = 0, warm = 0, cool = 0;
  std::string cool_path;
};

/// What a step does, for measuring: all of it, its transfers alone, or its compute alone.
enum class step_parts : std::uint8_t { whole, transfers, compute };

/// The runner's side of a Terrace cache: one sequence in it, fed and read through `kv_backend`. The cache
/// behind it is any `tiered_cache`, so the model is compiled once for all ladders.
class ladder : public kv_backend {
 public:
  static constexpr std::array<std::string_view, 3> tier_names{"hot", "warm", "cool"};

  ladder(std::shared_ptr<terrace::kv_store> cache, std::uint32_t layers)
      : owned_(std::move(cache)), cache_(*owned_), sequence_(cache_.make_sequence()), last_queries_(layers) {}

  terrace::result<void> reserve(std::uint32_t tokens) override {
    reservation_.reset();
    auto made = sequence_.reserve(tokens);
    if (!made) return terrace::propagate(made.error());
    reservation_.emplace(std::move(*made));
    return {};
  }
  std::span<terrace::fp16> k(std::uint32_t layer, std::uint32_t token, std::uint32_t kv_head) override {
    return reservation_->k(layer).row<terrace::fp16>(token, kv_head);
  }
  std::span<terrace::fp16> v(std::uint32_t layer, std::uint32_t token, std::uint32_t kv_head) override {
    return reservation_->v(layer).row<terrace::fp16>(token, kv_head);
  }
  terrace::result<void> attend(std::uint32_t layer, std::span<const float> q, std::span<float> out) override {
    if (reservation_->tokens() == 1) last_queries_[layer].assign(q.begin(), q.end());
    auto done = cache_.owner().sync_wait(terrace::stream(cache_, sequence_, *reservation_, layer, q, out));
    if (!done) return terrace::propagate(done.error());
    return {};
  }
  terrace::result<void> commit(std::uint32_t tokens) override {
    sequence_.commit(std::move(*reservation_), tokens);
    reservation_.reset();
    cache_.advance_step(++step_);
    return {};
  }

  /// Runs the attention of the last decoded token once more over every layer, as one step of the cache's
  /// clock, and keeps nothing of it. Precondition: a single token has been decoded.
  terrace::result<void> repeat_last_step(step_parts parts, std::span<const std::byte> stand_in) {
    if (auto room = reserve(1); !room) return room;
    for (std::uint32_t layer = 0; layer < last_queries_.size(); ++layer) {
      for (std::uint32_t h = 0; h < reservation_->k(layer).heads(); ++h) {
        std::ranges::fill(k(layer, 0, h), terrace::fp16{});
        std::ranges::fill(v(layer, 0, h), terrace::fp16{});
      }
      const std::vector<float>& q = last_queries_[layer];
      scratch_.resize(q.size());
      terrace::stream_options o;
      o.attend = parts != step_parts::transfers;
      if (parts == step_parts::compute) o.stand_in = stand_in;
      auto done =
          cache_.owner().sync_wait(terrace::stream(cache_, sequence_, *reservation_, layer, q, scratch_, o));
      if (!done) return terrace::propagate(done.error());
    }
    reservation_.reset();
    cache_.advance_step(++step_);
    return {};
  }

  terrace::result<void> flush() { return cache_.owner().sync_wait(cache_.flush()); }
  terrace::cache_stats stats() const { return cache_.stats(); }

 private:
  std::shared_ptr<terrace::kv_store> owned_;
  terrace::kv_store& cache_;
  terrace::sequence sequence_;
  std::optional<terrace::reservation> reservation_;
  std::vector<std::vector<float>> last_queries_;  // of a decode step, for repeat_last_step
  std::vector<float> scratch_;
  std::uint64_t step_ = 0;
};

/// What --policy chooses from.
using any_policy = terrace::one_of<terrace::lru, terrace::step_aware, terrace::attention_weighted,
                                   terrace::two_queue, terrace::s3_fifo, terrace::sieve, terrace::fifo>;
using lossless_cache = terrace::tiered_cache<terrace::tier<terrace::ram>, terrace::tier<terrace::ram>,
                                             terrace::tier<terrace::nvme>, any_policy>;
using q8_cache =
    terrace::tiered_cache<terrace::tier<terrace::ram>, terrace::tier<terrace::ram, terrace::q8_0>,
                          terrace::tier<terrace::nvme, terrace::q8_0>, any_policy>;
using resident_cache = terrace::tiered_cache<terrace::tier<terrace::ram>, terrace::lru>;

/// Opens the ladder that `codec` names: "lossless", "q8", or "resident", where everything is in tier 0.
inline terrace::result<std::unique_ptr<ladder>> open_ladder(std::string_view codec, terrace::context& ctx,
                                                            const terrace::kv_layout& layout,
                                                            const ladder_sizes& sizes, std::size_t policy,
                                                            terrace::any_prefetcher prefetcher) {
  const auto finish = [&](auto cache) -> terrace::result<std::unique_ptr<ladder>> {
    if (!cache) return terrace::propagate(cache.error());
    cache->use(std::move(prefetcher));
    using cache_type = typename decltype(cache)::value_type;
    return std::make_unique<ladder>(std::make_shared<cache_type>(std::move(*cache)), layout.layers());
  };
  if (codec == "resident") return finish(resident_cache::open(ctx, layout, {.capacity = sizes.hot}));
  if (codec == "q8")
    return finish(q8_cache::open(ctx, layout, {.capacity = sizes.hot}, {.capacity = sizes.warm},
                                 {.capacity = sizes.cool, .path = sizes.cool_path}, {.choice = policy}));
  return finish(lossless_cache::open(ctx, layout, {.capacity = sizes.hot}, {.capacity = sizes.warm},
                                     {.capacity = sizes.cool, .path = sizes.cool_path}, {.choice = policy}));
}

}  // namespace runner
