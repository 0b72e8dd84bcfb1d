#pragma once
#include <type_traits>
#include <utility>

#include "terrace/execution/subset/let_value.hpp"

namespace terrace::subset {

namespace detail {
template <class S>
struct hand_over {
  S source;
  S operator()() && noexcept(std::is_nothrow_move_constructible_v<S>) { return std::move(source); }
};
}  // namespace detail

/// starts_on(scheduler, sender): starts `sender` on the scheduler's resource.
template <scheduler Sch, sender S>
constexpr auto starts_on(Sch place, S&& source) {
  return let_value(schedule(place), detail::hand_over<std::decay_t<S>>{static_cast<S&&>(source)});
}

}  // namespace terrace::subset
