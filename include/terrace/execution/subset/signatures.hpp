#pragma once
#include <exception>
#include <tuple>
#include <type_traits>
#include <variant>

#include "terrace/execution/subset/completion.hpp"
#include "terrace/execution/subset/env.hpp"

namespace terrace::subset {

/// How an operation may complete: completion_signatures<set_value_t(int), set_error_t(error),
/// set_stopped_t()>.
template <class... Signatures>
struct completion_signatures {};

/// The completion signatures of sender S in environment E. A sender declares them in a static member template
/// `template <class Self, class... E> static consteval auto get_completion_signatures()`.
template <class S, class... E>
consteval auto get_completion_signatures() {
  using type = std::remove_cvref_t<S>;
  if constexpr (requires { type::template get_completion_signatures<S, E...>(); })
    return type::template get_completion_signatures<S, E...>();
  else if constexpr (requires { type::template get_completion_signatures<S>(); })
    return type::template get_completion_signatures<S>();
}
template <class S, class... E>
using completion_signatures_of_t = decltype(get_completion_signatures<S, E...>());

namespace detail {

template <class... T>
struct type_list {};

template <class T, class... U>
inline constexpr bool one_of = (std::is_same_v<T, U> || ...);

/// The union of lists, each type once, in the order of first appearance.
template <class... Lists>
struct unite;
template <class List>
struct unite<List> {
  using type = List;
};
template <template <class...> class List, class... Seen, class... Rest>
struct unite<List<Seen...>, List<>, Rest...> : unite<List<Seen...>, Rest...> {};
template <template <class...> class List, class... Seen, class T, class... U, class... Rest>
struct unite<List<Seen...>, List<T, U...>, Rest...>
    : unite<std::conditional_t<one_of<T, Seen...>, List<Seen...>, List<Seen..., T>>, List<U...>, Rest...> {};

template <class... Signatures>
using unite_signatures_t = typename unite<completion_signatures<>, Signatures...>::type;

/// Map::template apply<Signature> is a completion_signatures; this is their union over all signatures.
template <class Map, class Signatures>
struct transform_signatures;
template <class Map, class... Signature>
struct transform_signatures<Map, completion_signatures<Signature...>> {
  using type = unite_signatures_t<typename Map::template apply<Signature>...>;
};
template <class Map, class Signatures>
using transform_signatures_t = typename transform_signatures<Map, Signatures>::type;

/// type_list<Tuple<Arguments...>> for a signature with this tag, an empty list for any other.
template <class Tag, template <class...> class Tuple, class Signature>
struct pick {
  using type = type_list<>;
};
template <class Tag, template <class...> class Tuple, class... Arguments>
struct pick<Tag, Tuple, Tag(Arguments...)> {
  using type = type_list<Tuple<Arguments...>>;
};

template <template <class...> class Target, class List>
struct rename;
template <template <class...> class Target, class... T>
struct rename<Target, type_list<T...>> {
  using type = Target<T...>;
};

/// Variant<Tuple<Arguments...>...> over the signatures with this tag, without repetition.
template <class Tag, class Signatures, template <class...> class Tuple, template <class...> class Variant>
struct gather;
template <class Tag, class... Signature, template <class...> class Tuple, template <class...> class Variant>
struct gather<Tag, completion_signatures<Signature...>, Tuple, Variant> {
  using list = typename unite<type_list<>, typename pick<Tag, Tuple, Signature>::type...>::type;
  using type = typename rename<Variant, list>::type;
};
template <class Tag, class Signatures, template <class...> class Tuple, template <class...> class Variant>
using gather_t = typename gather<Tag, Signatures, Tuple, Variant>::type;

template <class... T>
using decayed_tuple = std::tuple<std::decay_t<T>...>;
template <class... T>
using optional_variant = std::variant<std::monostate, T...>;  // empty at first
template <class T>
using itself = T;
template <class... T>
struct single;  // the type of a list that must have exactly one
template <class T>
struct single<T> {
  using type = T;
};
template <class... T>
using decayed_single = std::decay_t<typename single<T...>::type>;

/// set_error_t(std::exception_ptr) unless nothing can throw.
template <bool Nothrow>
using exception_unless = std::conditional_t<Nothrow, completion_signatures<>,
                                            completion_signatures<set_error_t(std::exception_ptr)>>;
template <class... T>
inline constexpr bool nothrow_decay_copies = (std::is_nothrow_constructible_v<std::decay_t<T>, T> && ...);

}  // namespace detail

/// Variant<Tuple<values...>...>: what S may complete with by set_value.
template <class S, class E, template <class...> class Tuple, template <class...> class Variant>
using value_types_of_t = detail::gather_t<set_value_t, completion_signatures_of_t<S, E>, Tuple, Variant>;

/// Variant<errors...>: what S may complete with by set_error.
template <class S, class E, template <class...> class Variant>
using error_types_of_t =
    typename detail::rename<Variant, detail::gather_t<set_error_t, completion_signatures_of_t<S, E>,
                                                      detail::decayed_single, detail::type_list>>::type;

/// Whether S may complete by set_stopped.
template <class S, class E>
inline constexpr bool sends_stopped = !std::is_same_v<
    detail::gather_t<set_stopped_t, completion_signatures_of_t<S, E>, detail::type_list, detail::type_list>,
    detail::type_list<>>;

}  // namespace terrace::subset
