#pragma once
#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "block_selector.hpp"
#include "fault_injector.hpp"
#include "kv_backend.hpp"
#include "terrace/terrace.hpp"

namespace runner {

/// What a step does, for measuring: all of it, its transfers alone, or its compute alone.
enum class step_parts : std::uint8_t { whole, transfers, compute };

class ladder;

/// A block by its place in a sequence.
struct block_place {
  std::uint32_t layer = 0, index = 0;
  friend auto operator<=>(const block_place&, const block_place&) = default;
};

/// Computes lost blocks anew.
class recomputation {
 public:
  virtual ~recomputation() = default;
  /// Restores the block at `place` of `kv` with kv.restore. If that needs other blocks that turn out to be lost too,
  /// reports them with kv.find_lost_too and fails; they are then restored first. They are of lower layers, so this
  /// comes to an end.
  virtual terrace::result<void> compute(ladder& kv, block_place place) = 0;
};

/// The runner's side of a Terrace cache: one sequence in it, fed and read through `kv_backend`. The cache
/// behind it is any `tiered_cache`, so the model is compiled once for all ladders.
class ladder : public kv_backend {
 public:
  ladder(std::shared_ptr<terrace::kv_store> cache, std::uint32_t layers)
      : ladder(cache, cache->make_sequence(), layers) {}

  /// Another sequence in the same cache, with the same tokens: it shares every block. The cache outlives both,
  /// whichever lives longer. Precondition: nothing is reserved.
  std::unique_ptr<ladder> fork() {
    auto forked = std::unique_ptr<ladder>(new ladder(owned_, cache_.fork(sequence_), layers()));
    forked->repair_ = repair_;
    forked->selector_ = selector_;
    return forked;
  }
  /// From now on `by`, which is referred to, computes lost blocks anew, and a share `rate` of the stored copies is
  /// made unreadable. Forks made from here on share this.
  void repair_with(recomputation& by, double rate) {
    repair_ = std::make_shared<repair_state>(repair_state{fault_injector(rate), &by});
  }
  /// From now on keys are summarised as blocks are sealed. Once `start` of the selector has been called, the
  /// attention of a single token reads the blocks that the selector chooses. Forks made from here on have a selector
  /// of their own. Precondition: the sequence is empty.
  void select_by(const attend_mode& mode) { selector_.emplace(mode, cache_.layout().groups[0]); }
  /// The selector, or nullptr where attention reads everything.
  block_selector* selector() noexcept { return selector_ ? &*selector_ : nullptr; }
  /// Blocks that were computed anew, in all sequences that share the repair.
  std::uint64_t recomputed_blocks() const noexcept { return repair_ == nullptr ? 0 : repair_->recomputed; }
  /// Attention no longer sees the tokens before `position`, in whole blocks.
  void forget_before(std::uint64_t position) { sequence_.forget(0, position); }

  terrace::result<void> reserve(std::uint32_t tokens) override {
    reservation_.reset();
    for (patience left;;) {
      auto made = sequence_.reserve(tokens);
      if (made) reservation_.emplace(std::move(*made));
      if (made) return {};
      if (!wait_for_tiers(made.error(), left)) return terrace::propagate(explained(made.error()));
    }
  }
  std::span<terrace::fp16> k(std::uint32_t layer, std::uint32_t token, std::uint32_t kv_head) override {
    return reservation_->k(layer).row<terrace::fp16>(token, kv_head);
  }
  std::span<terrace::fp16> v(std::uint32_t layer, std::uint32_t token, std::uint32_t kv_head) override {
    return reservation_->v(layer).row<terrace::fp16>(token, kv_head);
  }
  terrace::result<void> attend(std::uint32_t layer, std::span<const float> q, std::span<float> out) override {
    if (reservation_->tokens() == 1) last_queries_[layer].assign(q.begin(), q.end());
    const terrace::stream_options o = options_for(layer, q);
    auto done = attend(layer, q, out, o);
    if (!done || !o.only || !selector_->checking()) return done;
    scratch_.resize(out.size());
    if (auto checked = attend(layer, q, scratch_, {}); !checked) return checked;
    selector_->compare(out, scratch_);
    return {};
  }
  terrace::result<void> commit(std::uint32_t tokens) override {
    keep(tokens);
    end_step();
    return {};
  }
  /// The two halves of a commit, for several sequences that decode a step together.
  void keep(std::uint32_t tokens) {
    if (selector_) summarise(tokens);
    sequence_.commit(std::move(*reservation_), tokens);
    reservation_.reset();
    spoil();
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
      terrace::stream_options o = options_for(layer, q);
      o.attend = parts != step_parts::transfers;
      if (parts == step_parts::compute) o.stand_in = stand_in;
      if (auto done = attend(layer, q, scratch_, o); !done) return done;
    }
    reservation_.reset();
    return {};
  }

  // --- What a recomputation needs. The layout has one group, and one layer a block.

  std::uint32_t layers() const noexcept { return static_cast<std::uint32_t>(last_queries_.size()); }
  std::uint32_t block_tokens() const noexcept { return cache_.layout().groups[0].tokens; }
  /// A sequence of the first `blocks` blocks of this one, by reference, with a backend of its own that repairs
  /// nothing; nullptr if some of them have been forgotten.
  std::unique_ptr<ladder> past_of(std::uint32_t blocks) {
    auto shared = cache_.fork(sequence_, std::uint64_t{blocks} * block_tokens());
    if (!shared) return nullptr;
    for (const auto& row : shared->pages().rows)
      if (!std::ranges::all_of(row, &terrace::block_id::valid)) return nullptr;
    return std::unique_ptr<ladder>(new ladder(owned_, std::move(*shared), layers()));
  }
  /// Stores a lost block anew: write(restoration) writes it, or says why not. Does nothing if the block is not lost.
  template <class Write>
  terrace::result<void> restore(block_place place, Write write) {
    const terrace::block_id id = sequence_.pages().rows[place.layer][place.index];
    const bool lost = lost_.erase(place) != 0 || !cache_.control().resident(id);
    if (!lost || cache_.control().copy(id.index, 0).present()) return {};
    auto anew = cache_.restore(id);
    for (patience left; !anew && wait_for_tiers(anew.error(), left);) anew = cache_.restore(id);
    if (!anew) return terrace::propagate(explained(anew.error()));
    if (auto written = write(*anew); !written) return written;
    std::move(*anew).complete();
    if (repair_ == nullptr) return {};
    repair_->faults.spare(id);
    ++repair_->recomputed;
    return {};
  }
  /// What `past` has found lost is lost here too.
  void find_lost_too(ladder& past) { lost_.merge(past.lost_); }

  /// Where the reserved tokens go, for callers that write or ask in their own way.
  const terrace::reservation& reserved() const noexcept { return *reservation_; }
  terrace::context& owner() noexcept { return cache_.owner(); }

  void use(terrace::any_prefetcher p) { cache_.use(std::move(p)); }

  terrace::result<void> flush() { return cache_.owner().sync_wait(cache_.flush()); }
  terrace::cache_stats stats() const { return cache_.stats(); }
  terrace::cache_health health() const { return cache_.health(); }

 private:
  friend class ladder_batch;
  ladder(std::shared_ptr<terrace::kv_store> cache, terrace::sequence tokens, std::uint32_t layers)
      : owned_(std::move(cache)), cache_(*owned_), sequence_(std::move(tokens)), last_queries_(layers) {}

  terrace::result<void> attend(std::uint32_t layer, std::span<const float> q, std::span<float> out,
                               const terrace::stream_options& o) {
    ladder* const self = this;
    return repairing({&self, 1}, [&] {
      return cache_.owner().sync_wait(terrace::stream(cache_, sequence_, *reservation_, layer, q, out, o));
    });
  }
  // For a single token the chosen blocks; for several all.
  terrace::stream_options options_for(std::uint32_t layer, std::span<const float> q) {
    terrace::stream_options o;
    if (!selector_ || !selector_->started() || reservation_->tokens() != 1) return o;
    const terrace::block_id open = sequence_.pages().rows[layer].back();
    const auto open_tokens = static_cast<std::uint32_t>(sequence_.length() % block_tokens()) + 1;
    o.only = selector_->choose(owner(), layer, q, cache_.control().open_data(open.index), open_tokens);
    return o;
  }
  // Summarises the blocks that are sealed when `tokens` of the reserved tokens are kept.
  void summarise(std::uint32_t tokens) {
    std::vector<const std::byte*> blocks(layers());
    const std::uint64_t end = (sequence_.length() + tokens) / block_tokens();
    for (std::uint64_t b = sequence_.length() / block_tokens(); b < end; ++b) {
      for (std::uint32_t layer = 0; layer < layers(); ++layer)
        blocks[layer] = cache_.control().open_data(sequence_.pages().rows[layer][b].index);
      selector_->add(owner(), blocks);
    }
  }

  // Makes copies unreadable, if that was asked for.
  void spoil() {
    if (repair_ != nullptr) repair_->faults.look_at(cache_, sequence_);
  }

  struct repair_state {
    fault_injector faults;
    recomputation* by;
    std::uint64_t recomputed = 0;
  };

  // How long a run waits, in all, for tiers that may work again.
  struct patience {
    std::chrono::milliseconds left{2000};
  };
  // The cache reports at once that there is no room. If that is because a tier is set aside, there may be some once
  // the tier has been tried again. False: there is nothing to wait for, or no patience left.
  bool wait_for_tiers(const terrace::error& why, patience& p) {
    if (why.code != terrace::errc::out_of_capacity || p.left.count() <= 0) return false;
    if (cache_.health().now != terrace::cache_health::verdict::failing) return false;
    constexpr std::chrono::milliseconds nap{5};
    p.left -= nap;
    cache_.owner().wait(terrace::context::clock::now() + nap);
    return true;
  }

  // For people: if there is no room because a tier has failed, says so, with that tier's system error.
  terrace::error explained(const terrace::error& why) const {
    if (why.code != terrace::errc::out_of_capacity) return why;
    for (const terrace::tier_health& h : cache_.health().tiers)
      if (h.now != terrace::tier_health::state::working)
        return {why.code, "tier 0 is full, and a tier below it is set aside for having failed",
                h.last.system};
    return why;
  }

  // Attends; if blocks are lost, computes them anew, in ascending order, and attends again. The blocks belong to some
  // of `all`, which share a cache.
  template <class Attend>
  static terrace::result<void> repairing(std::span<ladder* const> all, Attend attend) {
    ladder& first = *all.front();
    for (patience left;;) {
      auto done = attend();
      if (done) return {};
      const terrace::error why = done.error();
      bool lost = false;
      for (const terrace::lost_block& l : done.error().lost)
        lost = std::ranges::any_of(all, [&](ladder* s) { return s->lose(l.id); }) || lost;
      done.error().rest.release();
      if (!lost && first.wait_for_tiers(why, left)) continue;
      if (first.repair_ == nullptr || !lost) return terrace::propagate(first.explained(why));
      for (ladder* const s : all)
        if (auto repaired = s->repair(); !repaired) return repaired;
    }
  }
  // Notes that a block is lost; false if it is not this sequence's.
  bool lose(terrace::block_id id) {
    const terrace::block_record& r = cache_.control().record(id.index);
    const auto& row = sequence_.pages().rows[r.row];
    if (r.depth >= row.size() || row[r.depth] != id) return false;
    lost_.insert({r.row, r.depth});
    return true;
  }
  terrace::result<void> repair() {
    while (!lost_.empty()) {
      const block_place first = *lost_.begin();
      if (auto done = repair_->by->compute(*this, first);
          !done && (lost_.empty() || *lost_.begin() == first)) {
        lost_.clear();
        return done;
      }
    }
    return {};
  }

  std::shared_ptr<terrace::kv_store> owned_;
  terrace::kv_store& cache_;
  terrace::sequence sequence_;
  std::optional<terrace::reservation> reservation_;
  std::vector<std::vector<float>> last_queries_;  // of a decode step, for repeat_last_token
  std::vector<float> scratch_;
  std::optional<block_selector> selector_;
  std::set<block_place> lost_;  // and not yet computed anew
  std::shared_ptr<repair_state> repair_;
};

}  // namespace runner
