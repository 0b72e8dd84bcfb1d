#pragma once
#include <tuple>
#include <type_traits>
#include <utility>

#include "terrace/execution/subset/concepts.hpp"

namespace terrace::subset {

namespace detail {

template <class Tag, class... V>
struct just_sender {
  using sender_concept = sender_t;
  [[no_unique_address]] std::tuple<V...> values;

  template <class Self, class... E>
  static consteval auto get_completion_signatures() {
    return completion_signatures<Tag(V...)>{};
  }

  template <class R>
  struct operation {
    using operation_state_concept = operation_state_t;
    [[no_unique_address]] std::tuple<V...> values;
    R target;
    void start() noexcept {
      std::apply([this](V&... v) noexcept { Tag{}(std::move(target), std::move(v)...); }, values);
    }
  };
  template <receiver R>
  operation<R> connect(R target) && noexcept((std::is_nothrow_move_constructible_v<V> && ...)) {
    return {std::move(values), std::move(target)};
  }
  template <receiver R>
  operation<R> connect(R target) const& noexcept((std::is_nothrow_copy_constructible_v<V> && ...)) {
    return {values, std::move(target)};
  }
};

}  // namespace detail

/// A sender of these values, which completes inside start().
template <class... V>
constexpr auto just(V&&... values) {
  return detail::just_sender<set_value_t, std::decay_t<V>...>{{static_cast<V&&>(values)...}};
}
/// A sender of this error, which completes inside start().
template <class E>
constexpr auto just_error(E&& error) {
  return detail::just_sender<set_error_t, std::decay_t<E>>{{static_cast<E&&>(error)}};
}
/// A sender that was stopped, which completes inside start().
constexpr auto just_stopped() noexcept { return detail::just_sender<set_stopped_t>{}; }

}  // namespace terrace::subset
