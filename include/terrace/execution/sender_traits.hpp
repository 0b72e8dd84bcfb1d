#pragma once
#include <type_traits>

#include "terrace/execution/ex.hpp"

namespace terrace {
inline namespace TERRACE_EX {

/// What the traits below gather a sender's completions into.
struct gathered {
  template <class... T>
  using is_empty = std::bool_constant<sizeof...(T) == 0>;
  template <class... B>
  using are_all = std::bool_constant<(B::value && ...)>;
};

/// Whether a sender of type S, in environment E, completes without a value in each way that it may succeed.
template <class S, class E = ex::env<>>
inline constexpr bool sends_nothing =
    ex::value_types_of_t<S, E, gathered::is_empty, gathered::are_all>::value;

/// Whether the operations of S succeed and fail only after their start() has returned, and on the thread that called
/// it: then start and completion need no arbitration.
/// S declares `static constexpr bool completes_after_start = true`. Being stopped may still come from inside start().
template <class S>
concept completes_after_start = requires {
  requires S::completes_after_start;
};

/// Whether S, in environment E, never completes with an error.
template <class S, class E = ex::env<>>
inline constexpr bool never_fails = ex::error_types_of_t<S, E, gathered::is_empty>::value;

}  // namespace TERRACE_EX
}  // namespace terrace
