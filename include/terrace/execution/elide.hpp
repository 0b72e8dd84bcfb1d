#pragma once
#include <type_traits>

namespace terrace {

/// Lets emplace() construct an immovable object, such as an operation, from the call that returns it:
/// `optional.emplace(elide{[&] { return ex::connect(sender, receiver); }})`.
template <class F>
struct elide {
  F function;
  operator std::invoke_result_t<F&>() noexcept(std::is_nothrow_invocable_v<F&>) { return function(); }
};
template <class F>
elide(F) -> elide<F>;

}  // namespace terrace
