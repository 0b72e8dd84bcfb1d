#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "terrace/cache/lease.hpp"
#include "terrace/core/mix64.hpp"
#include "terrace/kv_store.hpp"
#include "terrace/sequence.hpp"
#include "terrace/testing/simulated_content.hpp"

namespace terrace {
inline namespace TERRACE_EX {

/// An acquire of a simulated engine: under way, then a lease, and what its blocks must hold.
class simulated_acquire {
 public:
  struct wanted_block {
    block_id id;
    simulated_content content;
  };
  simulated_acquire(kv_store& cache, std::vector<wanted_block> w, lease_form form)
      : wanted(std::move(w)),
        ids_(ids_of(wanted)),
        operation_(cache.acquire(ids_, form).connect(receiver{this})) {}
  simulated_acquire(simulated_acquire&&) = delete;

  void start() noexcept { operation_.start(); }
  void stop() noexcept { stop_.request_stop(); }
  bool done() const noexcept { return held.has_value() || failure.has_value() || stopped; }
  /// What is pinned now; nullptr where nothing is.
  lease* blocks() noexcept { return held ? &*held : failure ? &failure->rest : nullptr; }

  const std::vector<wanted_block> wanted;
  bool wants(block_id id) const noexcept {
    return std::any_of(wanted.begin(), wanted.end(), [&](const wanted_block& w) { return w.id == id; });
  }

  std::optional<lease> held;
  std::optional<block_error> failure;
  std::vector<block_id> excused;  ///< blocks that may be lost whatever has happened to them since
  bool stopped = false;
  bool examined = false;

 private:
  struct receiver {
    using receiver_concept = ex::receiver_t;
    simulated_acquire* a;
    void set_value(lease l) noexcept { a->held.emplace(std::move(l)); }
    void set_error(block_error e) noexcept { a->failure.emplace(std::move(e)); }
    void set_stopped() noexcept { a->stopped = true; }
    auto get_env() const noexcept { return ex::prop{ex::get_stop_token, a->stop_.get_token()}; }
  };
  static std::vector<block_id> ids_of(const std::vector<wanted_block>& wanted) {
    std::vector<block_id> ids;
    for (const wanted_block& w : wanted) ids.push_back(w.id);
    return ids;
  }
  ex::inplace_stop_source stop_;
  std::vector<block_id> ids_;
  acquire_sender::operation<receiver> operation_;
};

/// A sequence of a simulated engine, and what its tokens are.
struct simulated_sequence {
  sequence tokens;
  std::vector<std::uint64_t> stamps;  ///< of the committed ones
  std::optional<reservation> open = {};
  std::vector<std::uint64_t> writing = {};  ///< stamps of the open reservation
  bool streaming = false;                   ///< a stream reads the open reservation, so it stays
  bool batched = false;                     ///< a batch has a reservation open on it
  bool asking = false;                      ///< room for more tokens is on its way
};

/// Room for tokens of a simulated sequence, asked for without blocking.
class simulated_request {
 public:
  simulated_request(simulated_sequence& s, std::uint32_t t)
      : of(&s), tokens(t), operation_(s.tokens.reserve_async(t).connect(receiver{this})) {
    s.asking = true;
  }
  simulated_request(simulated_request&&) = delete;
  ~simulated_request() { of->asking = false; }

  void start() noexcept { operation_.start(); }
  void stop() noexcept {
    asked_to_stop = true;
    stop_.request_stop();
  }

  simulated_sequence* const of;
  const std::uint32_t tokens;
  std::optional<reservation> room;
  tier_stats hot;       ///< when it was refused
  bool waited = false;  ///< it did not come at once
  std::optional<error> failure;
  bool done = false, stopped = false, asked_to_stop = false;

 private:
  struct receiver {
    using receiver_concept = ex::receiver_t;
    simulated_request* r;
    void set_value(reservation came) noexcept {
      r->room.emplace(std::move(came));
      r->done = true;
    }
    void set_error(error e) noexcept {
      r->failure = e;
      r->hot = r->of->tokens.pages().owner->stats().tiers[0];
      r->done = true;
    }
    void set_stopped() noexcept { r->done = r->stopped = true; }
    auto get_env() const noexcept { return ex::prop{ex::get_stop_token, r->stop_.get_token()}; }
  };
  ex::inplace_stop_source stop_;
  room_sender<reservation_room>::operation<receiver> operation_;
};

/// A cut of a simulated sequence, or the end of its suspension, without blocking.
class simulated_cut {
 public:
  simulated_cut(simulated_sequence& s, std::uint64_t to)
      : of(&s),
        tokens(to),
        was_suspended(s.tokens.suspended()),
        operation_(s.tokens.truncate_async(to).connect(receiver{this})) {
    s.asking = true;
    const page_table& pages = s.tokens.pages();
    for (std::size_t row = 0; row < pages.rows.size(); ++row)
      if (const std::uint64_t at = to / pages.group(row).tokens; at < pages.rows[row].size())
        blocks.push_back(pages.rows[row][at]);
  }
  simulated_cut(simulated_cut&&) = delete;
  ~simulated_cut() { of->asking = false; }

  void start() noexcept { operation_.start(); }
  void stop() noexcept {
    asked_to_stop = true;
    stop_.request_stop();
  }
  bool wants(block_id id) const noexcept {
    return std::find(blocks.begin(), blocks.end(), id) != blocks.end();
  }

  simulated_sequence* const of;
  const std::uint64_t tokens;
  const bool was_suspended;
  std::vector<block_id> blocks;  ///< that it may cut
  std::optional<block_error> failure;
  bool done = false, stopped = false, asked_to_stop = false;
  bool excused = false;  ///< its blocks may be lost whatever has happened to them since

 private:
  struct receiver {
    using receiver_concept = ex::receiver_t;
    simulated_cut* c;
    void set_value() noexcept { c->done = true; }
    void set_error(block_error e) noexcept {
      c->failure.emplace(std::move(e));
      c->done = true;
    }
    void set_stopped() noexcept { c->done = c->stopped = true; }
    auto get_env() const noexcept { return ex::prop{ex::get_stop_token, c->stop_.get_token()}; }
  };
  ex::inplace_stop_source stop_;
  cut_sender::operation<receiver> operation_;
};

/// What must be true of a simulated cache: contents of blocks and of names, and which of them a fault has struck.
class simulation_model {
 public:
  struct named_block {
    simulated_content content;
    bool struck = false;   ///< a fault has hit some copy of it: it may be lost
    bool durable = false;  ///< a flush has covered it
    bool gone = false;     ///< a flush has covered that it was forgotten
  };

  /// The block of a sequence at `index` of a row, according to its stamps; the last one may be partial.
  static simulated_content content_of(const simulated_sequence& s, std::uint32_t row, std::size_t index) {
    simulated_content c{row, {}};
    const std::size_t tokens = s.tokens.pages().group(row).tokens;
    for (std::size_t t = 0; t < tokens && index * tokens + t < s.stamps.size(); ++t)
      c.stamps[t] = s.stamps[index * tokens + t];
    return c;
  }

  void strike(block_id id) {
    if (struck_.size() <= id.index) struck_.resize(id.index + 1, unstruck);
    struck_[id.index] = id.generation;
  }
  /// It has been computed anew, and no struck copy is left.
  void mend(block_id id) {
    if (struck(id)) struck_[id.index] = unstruck;
  }
  bool struck(block_id id) const noexcept {
    return id.index < struck_.size() && struck_[id.index] == id.generation;
  }

  std::map<std::uint64_t, named_block> names;      ///< blocks that have one
  std::map<std::uint64_t, named_block> forgotten;  ///< that had one: a crash may bring it back

  /// The cache has been closed: ids mean nothing any more.
  void forget_ids() { struck_.clear(); }

  static block_key key(std::uint64_t name) noexcept { return {.low = mix64(name), .high = name + 1}; }

 private:
  static constexpr std::uint64_t unstruck = ~std::uint64_t{0};
  std::vector<std::uint64_t> struck_;  // by index: the generation that was struck last
};

/// A flush of a simulated engine, the names that it must make durable, and those that must not come back after it.
class simulated_flush {
 public:
  simulated_flush(kv_store& cache, std::vector<std::uint64_t> n, std::vector<std::uint64_t> f = {})
      : names(std::move(n)),
        forgotten(std::move(f)),
        cache_(&cache),
        operation_(cache.flush().connect(receiver{this})) {}
  simulated_flush(simulated_flush&&) = delete;
  void start() noexcept { operation_.start(); }

  const std::vector<std::uint64_t> names, forgotten;
  std::optional<result<void>> outcome;
  std::vector<std::uint64_t> lost;  ///< names of blocks that were lost when it was answered

 private:
  struct receiver {
    using receiver_concept = ex::receiver_t;
    simulated_flush* f;
    void set_value() noexcept { f->outcome.emplace(); }
    void set_error(error e) noexcept {
      f->outcome.emplace(propagate(e));
      std::copy_if(f->names.begin(), f->names.end(), std::back_inserter(f->lost),
                   [this](std::uint64_t n) { return !f->somebody_has(n); });
    }
    void set_stopped() noexcept { f->outcome.emplace(fail(errc::stopped, "a flush was stopped")); }
    ex::env<> get_env() const noexcept { return {}; }
  };
  bool somebody_has(std::uint64_t name) const {
    const auto id = cache_->find(simulation_model::key(name));
    const planner& control = cache_->control();
    for (std::size_t t = 0; id && t < control.tiers(); ++t)
      if (control.copy(id->index, t).readable()) return true;
    return false;
  }

  kv_store* cache_;
  flush_sender::operation<receiver> operation_;
};

}  // namespace TERRACE_EX
}  // namespace terrace
