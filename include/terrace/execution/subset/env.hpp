#pragma once
#include <concepts>
#include <type_traits>
#include <utility>

#include "terrace/execution/subset/stop_token.hpp"

namespace terrace::subset {

namespace detail {
template <class E, class Query>
concept answers = requires(const E& environment, Query query) {
  environment.query(query);
};
}  // namespace detail

/// An environment answers queries, `environment.query(get_stop_token)`: what a receiver tells the operation
/// that it is connected to. env<A, B> asks A first, then B; env<> answers nothing.
template <class... Environments>
struct env;
template <>
struct env<> {};
template <class First, class... Rest>
struct env<First, Rest...> {
  [[no_unique_address]] First first;
  [[no_unique_address]] env<Rest...> rest;

  constexpr explicit env(First a, Rest... b) noexcept : first(std::move(a)), rest(std::move(b)...) {}

  template <class Query>
  requires(detail::answers<First, Query> || detail::answers<env<Rest...>, Query>) constexpr decltype(auto)
      query(Query query) const noexcept {
    if constexpr (detail::answers<First, Query>)
      return first.query(query);
    else
      return rest.query(query);
  }
};
template <class... E>
env(E...) -> env<E...>;

/// An environment that answers one query with one value.
template <class Query, class Value>
struct prop {
  [[no_unique_address]] Query asked;
  Value value;
  constexpr const Value& query(Query) const noexcept { return value; }
};
template <class Query, class Value>
prop(Query, Value) -> prop<Query, Value>;

/// get_env(receiver), get_env(sender): its environment, env<> where it has none.
struct get_env_t {
  template <class T>
  constexpr decltype(auto) operator()(const T& object) const noexcept {
    if constexpr (requires { object.get_env(); })
      return object.get_env();
    else
      return env<>{};
  }
};
inline constexpr get_env_t get_env{};
template <class T>
using env_of_t = decltype(get_env(std::declval<const T&>()));

/// The stop token of an environment, never_stop_token where it has none.
struct get_stop_token_t {
  template <class E>
  constexpr auto operator()(const E& environment) const noexcept {
    if constexpr (detail::answers<E, get_stop_token_t>)
      return environment.query(*this);
    else
      return never_stop_token{};
  }
};
inline constexpr get_stop_token_t get_stop_token{};
template <class E>
using stop_token_of_t = std::remove_cvref_t<decltype(get_stop_token(std::declval<const E&>()))>;

/// The scheduler that the receiver's owner prefers for work that must go somewhere.
struct get_scheduler_t {
  template <detail::answers<get_scheduler_t> E>
  constexpr auto operator()(const E& environment) const noexcept {
    return environment.query(*this);
  }
};
inline constexpr get_scheduler_t get_scheduler{};

/// The scheduler on which a sender completes with Tag, asked of the sender's environment.
template <class Tag>
struct get_completion_scheduler_t {
  template <detail::answers<get_completion_scheduler_t> E>
  constexpr auto operator()(const E& environment) const noexcept {
    return environment.query(*this);
  }
};
template <class Tag>
inline constexpr get_completion_scheduler_t<Tag> get_completion_scheduler{};

}  // namespace terrace::subset
