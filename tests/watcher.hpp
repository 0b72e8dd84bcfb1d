#pragma once
#include "terrace/execution/ex.hpp"

/// How an operation has ended.
enum class ending { none, value, error, stopped };

/// A receiver that notes how its operation ended, and through which a test can stop it:
///
///     auto operation = sender.connect(watcher{&how, stop.get_token()});
struct watcher {
  using receiver_concept = terrace::ex::receiver_t;
  ending* how;
  terrace::ex::inplace_stop_token token;
  // What comes is taken by value, so that it is let go of at once.
  template <class... V>
  void set_value(V...) noexcept {
    *how = ending::value;
  }
  template <class E>
  void set_error(E) noexcept {
    *how = ending::error;
  }
  void set_stopped() noexcept { *how = ending::stopped; }
  auto get_env() const noexcept { return terrace::ex::prop{terrace::ex::get_stop_token, token}; }
};
