#pragma once
#include <exception>
#include <optional>
#include <tuple>
#include <type_traits>
#include <utility>

#include "terrace/core/error.hpp"
#include "terrace/execution/scheduler.hpp"

namespace terrace {
inline namespace TERRACE_EX {

/// The environment that context::sync_wait gives to the sender: its scheduler is the context's.
using sync_wait_env = ex::prop<ex::get_scheduler_t, task_scheduler<context>>;

namespace waiting {

template <class... T>
struct types {};

/// The values of a sender as one type: void, the type itself, or a tuple.
template <class... V>
struct joined_value {
  using type = std::tuple<std::decay_t<V>...>;
};
template <class V>
struct joined_value<V> {
  using type = std::decay_t<V>;
};
template <>
struct joined_value<> {
  using type = void;
};
template <class... V>
using joined_value_t = typename joined_value<V...>::type;

template <class... Values>
struct waited_value {
  static_assert(sizeof...(Values) < 2,
                "A sender that is waited for must complete with set_value in at most one way.");
  using type = void;  // no value: only errors and stopping
};
template <class Value>
struct waited_value<Value> {
  using type = Value;
};

/// The error that all others convert to; exceptions do not count, as they are rethrown.
template <class All, class... Candidates>
struct common_error {
  static constexpr bool found = false;
  using type = error;
};
template <class... All, class E, class... Rest>
struct common_error<types<All...>, E, Rest...> {
  using rest = common_error<types<All...>, Rest...>;
  static constexpr bool this_one =
      !std::is_same_v<E, std::exception_ptr> &&
      ((std::is_same_v<All, std::exception_ptr> || std::is_constructible_v<E, All>)&&...);
  static constexpr bool found = this_one || rest::found;
  using type = std::conditional_t<this_one, E, typename rest::type>;
};
template <class... E>
struct waited_error {
  static constexpr bool none = (std::is_same_v<E, std::exception_ptr> && ...);
  using common = common_error<types<E...>, E...>;
  static_assert(
      none || common::found,
      "The errors of a sender that is waited for must convert to one of them: map them by upon_error.");
  using type = typename common::type;
};

struct wait_state : task {
  explicit wait_state(context& owner) noexcept
      : task([](task* self) noexcept { static_cast<wait_state*>(self)->done = true; }), ctx(&owner) {}
  // The last thing that a completion does. On any other thread it must wake the owner, and touches nothing
  // afterwards.
  void finish() noexcept {
    if (ctx->on_owner_thread())
      done = true;
    else
      ctx->post(*this);
  }
  context* ctx;
  std::exception_ptr exception;
  bool done = false;  // only the owner touches it
};

template <class T, class E>
struct wait_receiver {
  using receiver_concept = ex::receiver_t;
  using outcome = basic_result<T, E>;
  wait_state* state;
  std::optional<outcome>* result;

  template <class... V>
  void set_value(V&&... values) noexcept {
    TERRACE_TRY {
      if constexpr (std::is_void_v<T>)
        result->emplace();
      else
        result->emplace(T(static_cast<V&&>(values)...));
    }
    TERRACE_CATCH_ALL { state->exception = std::current_exception(); }
    state->finish();
  }
  template <class Error>
  void set_error(Error&& value) noexcept {
    if constexpr (std::is_same_v<std::decay_t<Error>, std::exception_ptr>)
      state->exception = static_cast<Error&&>(value);
    else
      result->emplace(failure<E>{E(static_cast<Error&&>(value))});
    state->finish();
  }
  void set_stopped() noexcept {
    result->emplace(failure<E>{E(error{errc::stopped, "the operation was stopped"})});
    state->finish();
  }
  sync_wait_env get_env() const noexcept { return {ex::get_scheduler, task_scheduler<context>(*state->ctx)}; }
};

}  // namespace waiting

/// basic_result<T, E>: what context::sync_wait returns for a sender S.
template <class S>
using sync_wait_result_t = basic_result<
    typename ex::value_types_of_t<S, sync_wait_env, waiting::joined_value_t, waiting::waited_value>::type,
    typename ex::error_types_of_t<S, sync_wait_env, waiting::waited_error>::type>;

}  // namespace TERRACE_EX

template <class Sender, class Backend>
auto context::sync_wait(Sender&& sender) {
  using result_type = sync_wait_result_t<Sender>;
  using value_type = typename result_type::value_type;
  using error_type = typename result_type::error_type;
  static_assert(
      std::is_constructible_v<error_type, error>,
      "The error of a sender that is waited for must be constructible from terrace::error, to say stopped.");
  std::optional<result_type> result;
  waiting::wait_state state(*this);
  auto operation = ex::connect(static_cast<Sender&&>(sender),
                               waiting::wait_receiver<value_type, error_type>{&state, &result});
  ex::start(operation);
  while (!state.done) wait(clock::time_point::max());
  if (state.exception) std::rethrow_exception(std::move(state.exception));
  return std::move(*result);
}

}  // namespace terrace
