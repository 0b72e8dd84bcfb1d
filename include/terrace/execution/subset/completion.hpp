#pragma once
#include <type_traits>
#include <utility>

namespace terrace::subset {

/// The three ways in which an operation ends, exactly one of them once: set_value(std::move(receiver),
/// values...), set_error(std::move(receiver), error), set_stopped(std::move(receiver)). None may throw. The
/// receiver may destroy the operation from within.
struct set_value_t {
  template <class R, class... V>
  requires requires(R&& receiver, V&&... values) {
    static_cast<R&&>(receiver).set_value(static_cast<V&&>(values)...);
  }
  constexpr void operator()(R&& receiver, V&&... values) const noexcept {
    static_assert(!std::is_lvalue_reference_v<R>, "set_value consumes its receiver: pass it with std::move.");
    static_assert(noexcept(static_cast<R&&>(receiver).set_value(static_cast<V&&>(values)...)),
                  "A receiver's set_value must be noexcept.");
    static_cast<R&&>(receiver).set_value(static_cast<V&&>(values)...);
  }
};
struct set_error_t {
  template <class R, class E>
  requires requires(R&& receiver, E&& error) {
    static_cast<R&&>(receiver).set_error(static_cast<E&&>(error));
  }
  constexpr void operator()(R&& receiver, E&& error) const noexcept {
    static_assert(!std::is_lvalue_reference_v<R>, "set_error consumes its receiver: pass it with std::move.");
    static_assert(noexcept(static_cast<R&&>(receiver).set_error(static_cast<E&&>(error))),
                  "A receiver's set_error must be noexcept.");
    static_cast<R&&>(receiver).set_error(static_cast<E&&>(error));
  }
};
struct set_stopped_t {
  template <class R>
  requires requires(R&& receiver) { static_cast<R&&>(receiver).set_stopped(); }
  constexpr void operator()(R&& receiver) const noexcept {
    static_assert(!std::is_lvalue_reference_v<R>,
                  "set_stopped consumes its receiver: pass it with std::move.");
    static_assert(noexcept(static_cast<R&&>(receiver).set_stopped()),
                  "A receiver's set_stopped must be noexcept.");
    static_cast<R&&>(receiver).set_stopped();
  }
};
inline constexpr set_value_t set_value{};
inline constexpr set_error_t set_error{};
inline constexpr set_stopped_t set_stopped{};

}  // namespace terrace::subset
