#pragma once
#include <exception>
#include <tuple>
#include <type_traits>
#include <utility>
#include <variant>

#include "terrace/core/config.hpp"
#include "terrace/execution/elide.hpp"
#include "terrace/execution/subset/closure.hpp"

namespace terrace::subset {

namespace detail {

/// Passes completions to a receiver that is stored elsewhere.
template <class R>
struct receiver_reference {
  using receiver_concept = receiver_t;
  R* target;

  template <class... V>
  void set_value(V&&... values) noexcept {
    subset::set_value(std::move(*target), static_cast<V&&>(values)...);
  }
  template <class E>
  void set_error(E&& error) noexcept {
    subset::set_error(std::move(*target), static_cast<E&&>(error));
  }
  void set_stopped() noexcept { subset::set_stopped(std::move(*target)); }
  decltype(auto) get_env() const noexcept { return subset::get_env(*target); }
};

template <class F, class... A>
using let_result_t = std::invoke_result_t<F, std::decay_t<A>&...>;
template <class F, class... A>
inline constexpr bool nothrow_let =
    nothrow_decay_copies<A...>&& std::is_nothrow_invocable_v<F, std::decay_t<A>&...>;

// Completions with Tag become those of the sender that F returns; the others stay.
template <class Tag, class F, class... E>
struct let_signatures {
  template <class Signature>
  struct map {
    using type = completion_signatures<Signature>;
  };
  template <class... A>
  struct map<Tag(A...)> {
    static_assert(sender<let_result_t<F, A...>>,
                  "The callable of let_value or let_error must return a sender.");
    using type = unite_signatures_t<completion_signatures_of_t<let_result_t<F, A...>, E...>,
                                    exception_unless<nothrow_let<F, A...>>>;
  };
  template <class Signature>
  using apply = typename map<Signature>::type;
};

template <class Tag, class S, class F, class R>
class let_operation {
  struct source_receiver {
    using receiver_concept = receiver_t;
    let_operation* owner;

    template <class... V>
    void set_value(V&&... values) noexcept {
      owner->template complete<set_value_t>(static_cast<V&&>(values)...);
    }
    template <class E>
    void set_error(E&& error) noexcept {
      owner->template complete<set_error_t>(static_cast<E&&>(error));
    }
    void set_stopped() noexcept { owner->template complete<set_stopped_t>(); }
    decltype(auto) get_env() const noexcept { return subset::get_env(owner->target_); }
  };

  template <class Arguments>
  struct next_operation;
  template <class... A>
  struct next_operation<std::tuple<A...>> {
    using type = connect_result_t<std::invoke_result_t<F, A&...>, receiver_reference<R>>;
  };
  template <class... Arguments>
  using operations = std::variant<std::monostate, typename next_operation<Arguments>::type...>;

  using signatures = completion_signatures_of_t<S, env_of_t<R>>;

 public:
  using operation_state_concept = operation_state_t;
  let_operation(S&& source, F&& function, R&& target)
      : target_(std::move(target)),
        function_(std::move(function)),
        first_(subset::connect(std::move(source), source_receiver{this})) {}
  let_operation(const let_operation&) = delete;
  void start() noexcept { subset::start(first_); }

 private:
  template <class How, class... A>
  void complete(A&&... arguments) noexcept {
    if constexpr (!std::is_same_v<How, Tag>) {
      How{}(std::move(target_), static_cast<A&&>(arguments)...);
    } else if constexpr (nothrow_let<F, A...>) {
      start_next(static_cast<A&&>(arguments)...);
    } else {
      TERRACE_TRY { start_next(static_cast<A&&>(arguments)...); }
      TERRACE_CATCH_ALL { subset::set_error(std::move(target_), std::current_exception()); }
    }
  }
  // The arguments stay alive until the next operation has completed; F sees them as lvalues.
  template <class... A>
  void start_next(A&&... arguments) noexcept(nothrow_let<F, A...>) {
    using tuple = decayed_tuple<A...>;
    auto& kept = arguments_.template emplace<tuple>(static_cast<A&&>(arguments)...);
    auto& next = next_.template emplace<typename next_operation<tuple>::type>(elide{[&] {
      return subset::connect(std::apply(std::move(function_), kept), receiver_reference<R>{&target_});
    }});
    subset::start(next);
  }

  R target_;
  [[no_unique_address]] F function_;
  gather_t<Tag, signatures, decayed_tuple, optional_variant> arguments_;
  gather_t<Tag, signatures, decayed_tuple, operations> next_;
  connect_result_t<S, source_receiver> first_;
};

template <class Tag, class S, class F>
struct let_sender {
  using sender_concept = sender_t;
  S source;
  [[no_unique_address]] F function;

  template <class Self, class... E>
  static consteval auto get_completion_signatures() {
    return transform_signatures_t<let_signatures<Tag, F, E...>, completion_signatures_of_t<S, E...>>{};
  }
  template <receiver R>
  let_operation<Tag, S, F, R> connect(R target) && {
    return {std::move(source), std::move(function), std::move(target)};
  }
  template <receiver R>
  let_operation<Tag, S, F, R> connect(R target) const& {
    return {S(source), F(function), std::move(target)};
  }
};

template <class Tag>
struct let_algorithm {
  template <sender S, class F>
  constexpr auto operator()(S&& source, F function) const {
    return let_sender<Tag, std::decay_t<S>, F>{static_cast<S&&>(source), std::move(function)};
  }
  template <class F>
  constexpr auto operator()(F function) const {
    return closure<let_algorithm, F>{{std::move(function)}};
  }
};

}  // namespace detail

/// let_value(sender, f): f gets the values as lvalues, which live until the sender that it returns has completed;
/// that sender decides how the whole completes. let_error(sender, f) does the same with an error. The other
/// completions pass through. An exception from f becomes set_error(std::exception_ptr); a noexcept f adds no error.
inline constexpr detail::let_algorithm<set_value_t> let_value{};
inline constexpr detail::let_algorithm<set_error_t> let_error{};

}  // namespace terrace::subset
