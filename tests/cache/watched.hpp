#pragma once
#include <optional>
#include <span>
#include <utility>

#include "terrace/cache/acquire.hpp"

// An acquire that is watched from outside.
struct watched {
  struct receiver {
    using receiver_concept = terrace::ex::receiver_t;
    watched* w;
    void set_value(terrace::lease l) noexcept { w->held.emplace(std::move(l)); }
    void set_error(terrace::block_error e) noexcept { w->failure.emplace(std::move(e)); }
    void set_stopped() noexcept { w->stopped = true; }
    struct env {
      terrace::ex::inplace_stop_token token;
      terrace::ex::inplace_stop_token query(terrace::ex::get_stop_token_t) const noexcept { return token; }
    };
    env get_env() const noexcept { return {w->stop.get_token()}; }
  };
  template <class Cache>
  watched(Cache& cache, std::span<const terrace::block_id> ids)
      : operation(cache.acquire(ids).connect(receiver{this})) {}
  bool done() const { return held || failure || stopped; }

  terrace::ex::inplace_stop_source stop;
  std::optional<terrace::lease> held;
  std::optional<terrace::block_error> failure;
  bool stopped = false;
  terrace::acquire_sender::operation<receiver> operation;
};
