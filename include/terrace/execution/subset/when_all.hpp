#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <optional>
#include <tuple>
#include <type_traits>
#include <utility>
#include <variant>

#include "terrace/core/config.hpp"
#include "terrace/execution/elide.hpp"
#include "terrace/execution/subset/concepts.hpp"

namespace terrace::subset {

namespace detail {

// The environment of the children: their own stop token, the rest from the receiver.
template <class E>
using when_all_env = env<prop<get_stop_token_t, inplace_stop_token>, E>;

// How many ways of set_value a sender has, and whether its values can be kept without an exception.
template <class... Tuples>
inline constexpr std::size_t count_of = sizeof...(Tuples);
template <class... Tuples>
using count_constant = std::integral_constant<std::size_t, sizeof...(Tuples)>;
template <class... V>
using nothrow_kept = std::bool_constant<nothrow_decay_copies<V...>>;
template <class... B>
using all_of = std::bool_constant<(B::value && ...)>;
template <class... Tuples>
using only_tuple = typename single<Tuples...>::type;

template <class S, class E>
inline constexpr bool has_one_value = value_types_of_t<S, E, decayed_tuple, count_constant>::value == 1;
template <class S, class E>
inline constexpr bool keeps_nothrow = value_types_of_t<S, E, nothrow_kept, all_of>::value;

struct without_values {
  template <class Signature>
  struct map {
    using type = completion_signatures<Signature>;
  };
  template <class... V>
  struct map<set_value_t(V...)> {
    using type = completion_signatures<>;
  };
  template <class Signature>
  using apply = typename map<Signature>::type;
};

template <class Tuple>
struct value_signature_of;
template <class... V>
struct value_signature_of<std::tuple<V...>> {
  using type = completion_signatures<set_value_t(V...)>;
};

template <class E, class... S>
struct when_all_types {
  static_assert((has_one_value<S, E> && ...),
                "Each sender of when_all must complete with set_value in exactly one way.");
  // Errors and stopping of the children, decay-copied.
  using failures =
      unite_signatures_t<transform_signatures_t<without_values, completion_signatures_of_t<S, E>>...,
                         exception_unless<(keeps_nothrow<S, E> && ...)>>;
  using values = std::tuple<value_types_of_t<S, E, decayed_tuple, only_tuple>...>;
  using joined =
      decltype(std::tuple_cat(std::declval<value_types_of_t<S, E, decayed_tuple, only_tuple>>()...));
  using signatures = unite_signatures_t<typename value_signature_of<joined>::type, failures,
                                        completion_signatures<set_stopped_t()>>;
  using errors = gather_t<set_error_t, failures, decayed_single, optional_variant>;
};

template <class R, class... S>
class when_all_operation {
  using child_env = when_all_env<env_of_t<R>>;
  using types = when_all_types<child_env, S...>;
  enum class outcome : std::uint8_t { value, error, stopped };

  template <std::size_t I>
  struct child_receiver {
    using receiver_concept = receiver_t;
    when_all_operation* owner;

    template <class... V>
    void set_value(V&&... values) noexcept {
      owner->template keep<I>(static_cast<V&&>(values)...);
      owner->arrive();
    }
    template <class E>
    void set_error(E&& error) noexcept {
      owner->fail(static_cast<E&&>(error));
      owner->arrive();
    }
    void set_stopped() noexcept {
      outcome expected = outcome::value;
      if (owner->outcome_.compare_exchange_strong(expected, outcome::stopped)) owner->stop_.request_stop();
      owner->arrive();
    }
    child_env get_env() const noexcept {
      return child_env{{get_stop_token, owner->stop_.get_token()}, subset::get_env(owner->target_)};
    }
  };
  template <class Indices>
  struct child_operations;
  template <std::size_t... I>
  struct child_operations<std::index_sequence<I...>> {
    using type = std::tuple<connect_result_t<S, child_receiver<I>>...>;
  };
  // Counts as a child while it asks the others: one that completes at once must not end the operation, which has the
  // source, in the middle of that. If all have ended already, they need not be asked.
  struct forward_stop {
    when_all_operation* to;
    void operator()() const noexcept {
      when_all_operation& all = *to;  // this callback may not outlive the last line
      std::size_t running = all.running_.load(std::memory_order_relaxed);
      while (running != 0 &&
             !all.running_.compare_exchange_weak(running, running + 1, std::memory_order_acq_rel)) {
      }
      if (running == 0) return;
      all.stop_.request_stop();
      all.arrive();
    }
  };
  using stop_callback = stop_callback_for_t<stop_token_of_t<env_of_t<R>>, forward_stop>;

 public:
  using operation_state_concept = operation_state_t;
  template <std::size_t... I>
  when_all_operation(std::tuple<S...>&& sources, R&& target, std::index_sequence<I...>)
      : target_(std::move(target)), children_(elide{[&] {
          return subset::connect(std::get<I>(std::move(sources)), child_receiver<I>{this});
        }}...) {}
  when_all_operation(const when_all_operation&) = delete;

  void start() noexcept {
    on_stop_.emplace(get_stop_token(subset::get_env(target_)), forward_stop{this});
    if constexpr (sizeof...(S) == 0) {
      finish();
    } else if (stop_.stop_requested()) {
      outcome_ = outcome::stopped;
      finish();
    } else {
      std::apply([](auto&... child) noexcept { (subset::start(child), ...); }, children_);
    }
  }

 private:
  template <std::size_t I, class... V>
  void keep(V&&... values) noexcept {
    if constexpr (nothrow_decay_copies<V...>) {
      std::get<I>(values_).emplace(static_cast<V&&>(values)...);
    } else {
      TERRACE_TRY { std::get<I>(values_).emplace(static_cast<V&&>(values)...); }
      TERRACE_CATCH_ALL { fail(std::current_exception()); }
    }
  }
  // The first error is kept, and outranks a stop that came before it.
  template <class E>
  void fail(E&& error) noexcept {
    if (outcome_.exchange(outcome::error) == outcome::error) return;
    error_.template emplace<std::decay_t<E>>(static_cast<E&&>(error));
    stop_.request_stop();
  }
  void arrive() noexcept {
    if (running_.fetch_sub(1, std::memory_order_acq_rel) == 1) finish();
  }
  void finish() noexcept {
    on_stop_.reset();
    switch (outcome_.load(std::memory_order_relaxed)) {
      case outcome::value:
        return deliver_values();
      case outcome::error:
        return deliver_error();
      case outcome::stopped:
        return subset::set_stopped(std::move(target_));
    }
  }
  void deliver_values() noexcept {
    std::apply(
        [this](auto&... kept) noexcept {
          std::apply(
              [this](auto&... value) noexcept { subset::set_value(std::move(target_), std::move(value)...); },
              std::tuple_cat(std::apply([](auto&... part) noexcept { return std::tie(part...); }, *kept)...));
        },
        values_);
  }
  void deliver_error() noexcept {
    std::visit(
        [this](auto& error) noexcept {
          if constexpr (!std::is_same_v<decltype(error), std::monostate&>)
            subset::set_error(std::move(target_), std::move(error));
        },
        error_);
  }

  R target_;
  inplace_stop_source stop_;
  std::atomic<std::size_t> running_{sizeof...(S)};
  std::atomic<outcome> outcome_{outcome::value};
  typename types::errors error_;
  std::tuple<std::optional<value_types_of_t<S, child_env, decayed_tuple, only_tuple>>...> values_;
  std::optional<stop_callback> on_stop_;
  typename child_operations<std::index_sequence_for<S...>>::type children_;
};

template <class... S>
struct when_all_sender {
  using sender_concept = sender_t;
  std::tuple<S...> sources;

  template <class Self, class... E>
  static consteval auto get_completion_signatures() {
    return typename when_all_types<when_all_env<env<E...>>, S...>::signatures{};
  }
  template <receiver R>
  when_all_operation<R, S...> connect(R target) && {
    return {std::move(sources), std::move(target), std::index_sequence_for<S...>{}};
  }
  template <receiver R>
  when_all_operation<R, S...> connect(R target) const& {
    return {std::tuple<S...>(sources), std::move(target), std::index_sequence_for<S...>{}};
  }
};

}  // namespace detail

/// when_all(senders...): runs them concurrently and completes with all their values in order, once all have ended.
/// The first that fails or is stopped asks the others to stop. The whole completes with the first error, or as
/// stopped if there was none.
template <sender... S>
constexpr auto when_all(S&&... sources) {
  return detail::when_all_sender<std::decay_t<S>...>{{static_cast<S&&>(sources)...}};
}

}  // namespace terrace::subset
