#pragma once
#include <concepts>
#include <type_traits>
#include <utility>

#include "terrace/execution/subset/signatures.hpp"

namespace terrace::subset {

/// A class declares what it is with a member: `using sender_concept = sender_t;`, and likewise for the others.
struct sender_tag {};
struct receiver_tag {};
struct operation_state_tag {};
struct scheduler_tag {};
using sender_t = sender_tag;
using receiver_t = receiver_tag;
using operation_state_t = operation_state_tag;
using scheduler_t = scheduler_tag;

/// An operation that is ready to start. It stays where it is from start() until it has completed.
template <class T>
concept operation_state = std::derived_from<typename T::operation_state_concept, operation_state_tag> &&
    requires(T& operation) {
  { operation.start() }
  noexcept;
};

/// What an operation completes to: it has some of set_value, set_error and set_stopped, and an environment.
template <class T>
concept receiver = std::derived_from<typename std::remove_cvref_t<T>::receiver_concept, receiver_tag> &&
    std::move_constructible<std::remove_cvref_t<T>>;

/// A description of work, which becomes an operation by connect(sender, receiver).
template <class T>
concept sender = std::derived_from<typename std::remove_cvref_t<T>::sender_concept, sender_tag> &&
    std::move_constructible<std::remove_cvref_t<T>>;

/// A sender whose completions in environment E are known.
template <class S, class... E>
concept sender_in = sender<S> && !std::is_void_v<completion_signatures_of_t<S, E...>>;

/// Starts an operation. From here until it completes nobody may move or destroy it.
struct start_t {
  template <operation_state O>
  constexpr void operator()(O& operation) const noexcept {
    operation.start();
  }
};
inline constexpr start_t start{};

/// Makes an operation of a sender and a receiver. The result is immovable.
struct connect_t {
  template <sender S, receiver R>
  requires requires(S&& s, R&& r) { static_cast<S&&>(s).connect(static_cast<R&&>(r)); }
  constexpr auto operator()(S&& s, R&& r) const
      noexcept(noexcept(static_cast<S&&>(s).connect(static_cast<R&&>(r)))) {
    return static_cast<S&&>(s).connect(static_cast<R&&>(r));
  }
};
inline constexpr connect_t connect{};
template <class S, class R>
using connect_result_t = decltype(connect(std::declval<S>(), std::declval<R>()));

/// A sender that can be connected to R.
template <class S, class R>
concept sender_to = requires(S&& s, R&& r) {
  connect(static_cast<S&&>(s), static_cast<R&&>(r));
};

/// schedule(scheduler): a sender that completes with no value on the scheduler's resource.
struct schedule_t {
  template <class S>
  requires requires(S&& scheduler) { static_cast<S&&>(scheduler).schedule(); }
  constexpr auto operator()(S&& scheduler) const noexcept { return static_cast<S&&>(scheduler).schedule(); }
};
inline constexpr schedule_t schedule{};
template <class S>
using schedule_result_t = decltype(schedule(std::declval<S>()));

/// A cheap handle to a place where work can run.
template <class T>
concept scheduler = std::derived_from<typename std::remove_cvref_t<T>::scheduler_concept, scheduler_tag> &&
    std::copy_constructible<std::remove_cvref_t<T>> && std::equality_comparable<std::remove_cvref_t<T>> &&
    requires(T&& handle) {
  { schedule(static_cast<T&&>(handle)) } -> sender;
};

}  // namespace terrace::subset
