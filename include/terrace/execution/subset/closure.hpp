#pragma once
#include <tuple>
#include <utility>

#include "terrace/execution/subset/concepts.hpp"

namespace terrace::subset {

/// An algorithm that lacks only its sender: `sender | then(f)` is then(sender, f).
template <class Algorithm, class... Arguments>
struct closure {
  [[no_unique_address]] std::tuple<Arguments...> arguments;

  template <sender S>
  constexpr auto operator()(S&& s) && {
    return std::apply([&](Arguments&... a) { return Algorithm{}(static_cast<S&&>(s), std::move(a)...); },
                      arguments);
  }
};

/// Two closures in a row, `then(f) | then(g)`.
template <class First, class Second>
struct closure_chain {
  First first;
  Second second;

  template <sender S>
  constexpr auto operator()(S&& s) && {
    return std::move(second)(std::move(first)(static_cast<S&&>(s)));
  }
};

namespace detail {
template <class T>
inline constexpr bool is_closure = false;
template <class A, class... B>
inline constexpr bool is_closure<closure<A, B...>> = true;
template <class A, class B>
inline constexpr bool is_closure<closure_chain<A, B>> = true;
}  // namespace detail

template <sender S, class C>
requires detail::is_closure<C>
constexpr auto operator|(S&& s, C c) { return std::move(c)(static_cast<S&&>(s)); }
template <class A, class B>
requires(detail::is_closure<A>&& detail::is_closure<B>) constexpr auto operator|(A first, B second) {
  return closure_chain<A, B>{std::move(first), std::move(second)};
}

}  // namespace terrace::subset
