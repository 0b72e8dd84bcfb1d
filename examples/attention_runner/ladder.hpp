#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "kv_backend.hpp"
#include "terrace/terrace.hpp"

namespace runner {

/// What a step does, for measuring: all of it, its transfers alone, or its compute alone.
enum class step_parts : std::uint8_t { whole, transfers, compute };

/// The runner's side of a Terrace cache: one sequence in it, fed and read through `kv_backend`. The cache
/// behind it is any `tiered_cache`, so the model is compiled once for all ladders.
class ladder : public kv_backend {
 public:
  ladder(std::shared_ptr<terrace::kv_store> cache, std::uint32_t layers)
      : ladder(cache, cache->make_sequence(), layers) {}

  /// Another sequence in the same cache, with the same tokens: it shares every block. Both end before the
  /// cache does, whichever lives longer. Precondition: nothing is reserved.
  std::unique_ptr<ladder> fork() {
    return std::unique_ptr<ladder>(
        new ladder(owned_, cache_.fork(sequence_), static_cast<std::uint32_t>(last_queries_.size())));
  }
  /// Attention does not see the tokens before `position` any more, block-wise.
  void forget_before(std::uint64_t position) { sequence_.forget(0, position); }

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
    keep(tokens);
    end_step();
    return {};
  }
  /// The two halves of a commit, for several sequences that decode a step together.
  void keep(std::uint32_t tokens) {
    sequence_.commit(std::move(*reservation_), tokens);
    reservation_.reset();
  }
  void end_step() { cache_.advance_step(cache_.control().step() + 1); }

  /// Runs the attention of the last decoded token once more over every layer, and keeps nothing of it.
  /// Precondition: a single token has been decoded.
  terrace::result<void> repeat_last_token(step_parts parts, std::span<const std::byte> stand_in) {
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
    return {};
  }

  /// For those who write or ask in their own way: where the reserved tokens go.
  const terrace::reservation& reserved() const noexcept { return *reservation_; }
  terrace::context& owner() noexcept { return cache_.owner(); }

  void use(terrace::any_prefetcher p) { cache_.use(std::move(p)); }

  terrace::result<void> flush() { return cache_.owner().sync_wait(cache_.flush()); }
  terrace::cache_stats stats() const { return cache_.stats(); }

 private:
  ladder(std::shared_ptr<terrace::kv_store> cache, terrace::sequence tokens, std::uint32_t layers)
      : owned_(std::move(cache)), cache_(*owned_), sequence_(std::move(tokens)), last_queries_(layers) {}

  std::shared_ptr<terrace::kv_store> owned_;
  terrace::kv_store& cache_;
  terrace::sequence sequence_;
  std::optional<terrace::reservation> reservation_;
  std::vector<std::vector<float>> last_queries_;  // of a decode step, for repeat_last_token
  std::vector<float> scratch_;
};

}  // namespace runner
