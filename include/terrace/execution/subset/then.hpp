#pragma once
#include <exception>
#include <functional>
#include <type_traits>
#include <utility>

#include "terrace/core/config.hpp"
#include "terrace/execution/subset/closure.hpp"

namespace terrace::subset {

namespace detail {

template <class Result>
struct value_signature {
  using type = completion_signatures<set_value_t(Result)>;
};
template <>
struct value_signature<void> {
  using type = completion_signatures<set_value_t()>;
};

// Completions with Tag become set_value of what F returns; the others stay.
template <class Tag, class F>
struct then_signatures {
  template <class Signature>
  struct map {
    using type = completion_signatures<Signature>;
  };
  template <class... A>
  struct map<Tag(A...)> {
    static_assert(
        std::is_invocable_v<F, A...>,
        "The callable of then, upon_error or upon_stopped does not accept what the sender completes with.");
    using type = unite_signatures_t<typename value_signature<std::invoke_result_t<F, A...>>::type,
                                    exception_unless<std::is_nothrow_invocable_v<F, A...>>>;
  };
  template <class Signature>
  using apply = typename map<Signature>::type;
};

template <class Tag, class F, class R>
struct then_receiver {
  using receiver_concept = receiver_t;
  R target;
  [[no_unique_address]] F function;

  template <class... V>
  void set_value(V&&... values) noexcept {
    complete<set_value_t>(static_cast<V&&>(values)...);
  }
  template <class E>
  void set_error(E&& error) noexcept {
    complete<set_error_t>(static_cast<E&&>(error));
  }
  void set_stopped() noexcept { complete<set_stopped_t>(); }
  decltype(auto) get_env() const noexcept { return subset::get_env(target); }

 private:
  template <class How, class... A>
  void complete(A&&... arguments) noexcept {
    if constexpr (!std::is_same_v<How, Tag>) {
      How{}(std::move(target), static_cast<A&&>(arguments)...);
    } else if constexpr (std::is_nothrow_invocable_v<F, A...>) {
      call(static_cast<A&&>(arguments)...);
    } else {
      TERRACE_TRY { call(static_cast<A&&>(arguments)...); }
      TERRACE_CATCH_ALL { subset::set_error(std::move(target), std::current_exception()); }
    }
  }
  template <class... A>
  void call(A&&... arguments) noexcept(std::is_nothrow_invocable_v<F, A...>) {
    if constexpr (std::is_void_v<std::invoke_result_t<F, A...>>) {
      std::invoke(std::move(function), static_cast<A&&>(arguments)...);
      subset::set_value(std::move(target));
    } else {
      subset::set_value(std::move(target), std::invoke(std::move(function), static_cast<A&&>(arguments)...));
    }
  }
};

template <class Tag, class S, class F>
struct then_sender {
  using sender_concept = sender_t;
  S source;
  [[no_unique_address]] F function;

  template <class Self, class... E>
  static consteval auto get_completion_signatures() {
    return transform_signatures_t<then_signatures<Tag, F>, completion_signatures_of_t<S, E...>>{};
  }
  template <receiver R>
  auto connect(R target) && noexcept(noexcept(subset::connect(std::declval<S>(),
                                                              std::declval<then_receiver<Tag, F, R>>()))) {
    return subset::connect(std::move(source),
                           then_receiver<Tag, F, R>{std::move(target), std::move(function)});
  }
  template <receiver R>
  auto connect(R target) const& {
    return subset::connect(source, then_receiver<Tag, F, R>{std::move(target), function});
  }
};

template <class Tag>
struct then_algorithm {
  template <sender S, class F>
  constexpr auto operator()(S&& source, F function) const {
    return then_sender<Tag, std::decay_t<S>, F>{static_cast<S&&>(source), std::move(function)};
  }
  template <class F>
  constexpr auto operator()(F function) const {
    return closure<then_algorithm, F>{{std::move(function)}};
  }
};

}  // namespace detail

/// then(sender, f): completes with f(values...). upon_error(sender, f): an error becomes the value f(error).
/// upon_stopped(sender, f): being stopped becomes the value f(). The other completions pass through. An exception
/// from f becomes set_error(std::exception_ptr); a noexcept f adds no error.
inline constexpr detail::then_algorithm<set_value_t> then{};
inline constexpr detail::then_algorithm<set_error_t> upon_error{};
inline constexpr detail::then_algorithm<set_stopped_t> upon_stopped{};

}  // namespace terrace::subset
