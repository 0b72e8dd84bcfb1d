#pragma once
#include <exception>
#include <optional>
#include <tuple>
#include <type_traits>
#include <utility>

#include "terrace/core/config.hpp"
#include "terrace/execution/subset/run_loop.hpp"

namespace terrace::subset {

namespace detail {

struct sync_wait_state {
  run_loop loop;
  std::exception_ptr exception;
};
using sync_wait_env = prop<get_scheduler_t, run_loop::scheduler>;

template <class... Tuples>
struct sync_wait_values {
  static_assert(sizeof...(Tuples) == 1,
                "A sender that is waited for must complete with set_value in exactly one way.");
  using type = typename single<Tuples...>::type;
};
template <class... E>
inline constexpr bool only_exceptions = (std::is_same_v<E, std::exception_ptr> && ...);
template <class... E>
using only_exceptions_constant = std::bool_constant<only_exceptions<E...>>;

template <class Values>
struct sync_wait_receiver {
  using receiver_concept = receiver_t;
  sync_wait_state* state;
  std::optional<Values>* values;

  template <class... V>
  void set_value(V&&... v) noexcept {
    if constexpr (nothrow_decay_copies<V...>) {
      values->emplace(static_cast<V&&>(v)...);
    } else {
      TERRACE_TRY { values->emplace(static_cast<V&&>(v)...); }
      TERRACE_CATCH_ALL { state->exception = std::current_exception(); }
    }
    state->loop.finish();
  }
  void set_error(std::exception_ptr error) noexcept {
    state->exception = std::move(error);
    state->loop.finish();
  }
  void set_stopped() noexcept { state->loop.finish(); }
  sync_wait_env get_env() const noexcept { return {get_scheduler, state->loop.get_scheduler()}; }
};

}  // namespace detail

/// Starts `source`, runs a run_loop until it completes, and returns std::optional<std::tuple<values...>>, empty if it
/// was stopped. An exception from one of the sender's callables is rethrown. For senders that complete without the
/// caller's help; for those that live on a context use context::sync_wait, which drives it.
template <sender_in<detail::sync_wait_env> S>
auto sync_wait(S&& source) {
  using values_type = typename value_types_of_t<S, detail::sync_wait_env, detail::decayed_tuple,
                                                detail::sync_wait_values>::type;
  static_assert(
      error_types_of_t<S, detail::sync_wait_env, detail::only_exceptions_constant>::value,
      "ex::sync_wait has no place for an error: handle it by upon_error, or use context::sync_wait.");
  std::optional<values_type> values;
  detail::sync_wait_state state;
  auto operation =
      connect(static_cast<S&&>(source), detail::sync_wait_receiver<values_type>{&state, &values});
  start(operation);
  state.loop.run();
  if (state.exception) std::rethrow_exception(std::move(state.exception));
  return values;
}

}  // namespace terrace::subset
