#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "ladder.hpp"
#include "terrace/terrace.hpp"

namespace runner {

/// Sequences of one cache that decode a token each, together: what they share is brought once a layer. They outlive
/// this, and meanwhile none of them has a selector or reserves by itself.
class ladder_batch {
 public:
  explicit ladder_batch(std::span<const std::unique_ptr<ladder>> all)
      : cache_(all.front()->cache_),
        batch_(cache_, {.sequences = static_cast<std::uint32_t>(all.size())}),
        one_(all.size(), 1),
        none_(all.size(), 0),
        last_queries_(all.front()->layers()) {
    std::vector<terrace::sequence*> sequences;
    for (const auto& s : all) {
      all_.push_back(s.get());
      sequences.push_back(&s->sequence_);
    }
    static_cast<void>(batch_.assign(sequences));  // distinct ones of this cache
  }

  terrace::result<void> reserve() {
    for (ladder::patience left;;) {
      auto made = batch_.reserve(one_);
      if (made) return {};
      if (!first().wait_for_tiers(made.error(), left))
        return terrace::propagate(first().explained(made.error()));
    }
  }
  /// Where the token of sequence i goes.
  const terrace::reservation& reserved(std::size_t i) const noexcept { return batch_.reserved(i); }
  /// `q` and `out` are [sequence][q_head][dim].
  terrace::result<void> attend(std::uint32_t layer, std::span<const float> q, std::span<float> out) {
    last_queries_[layer].assign(q.begin(), q.end());
    return attend(layer, q, out, {});
  }
  void keep() {
    batch_.commit(one_);
    for (ladder* const s : all_) s->spoil();
  }

  /// As ladder::repeat_last_token, for all of them.
  terrace::result<void> repeat_last_token(step_parts parts, std::span<const std::byte> stand_in) {
    if (auto room = reserve(); !room) return room;
    for (std::uint32_t layer = 0; layer < last_queries_.size(); ++layer) {
      for (std::size_t i = 0; i < batch_.size(); ++i)
        for (const terrace::plane_rows& rows : {reserved(i).k(layer), reserved(i).v(layer)})
          for (std::uint32_t h = 0; h < rows.heads(); ++h)
            std::ranges::fill(rows.row<terrace::fp16>(0, h), terrace::fp16{});
      const std::vector<float>& q = last_queries_[layer];
      scratch_.resize(q.size());
      terrace::stream_options o;
      o.attend = parts != step_parts::transfers;
      if (parts == step_parts::compute) o.stand_in = stand_in;
      if (auto done = attend(layer, q, scratch_, o); !done) return done;
    }
    batch_.commit(none_);
    return {};
  }

 private:
  ladder& first() noexcept { return *all_.front(); }
  terrace::result<void> attend(std::uint32_t layer, std::span<const float> q, std::span<float> out,
                               const terrace::stream_options& o) {
    return ladder::repairing(
        all_, [&] { return cache_.owner().sync_wait(terrace::stream(cache_, batch_, layer, q, out, o)); });
  }

  terrace::kv_store& cache_;
  terrace::batch batch_;
  std::vector<ladder*> all_;
  std::vector<std::uint32_t> one_, none_;
  std::vector<std::vector<float>> last_queries_;
  std::vector<float> scratch_;
};

}  // namespace runner
