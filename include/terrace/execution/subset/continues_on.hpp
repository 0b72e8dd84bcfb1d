#pragma once
#include <exception>
#include <tuple>
#include <type_traits>
#include <utility>
#include <variant>

#include "terrace/core/config.hpp"
#include "terrace/execution/subset/closure.hpp"

namespace terrace::subset {

namespace detail {

// Each completion of the source is kept as a tuple of its tag and its decayed arguments.
template <class Signature>
struct kept_completion;
template <class Tag, class... A>
struct kept_completion<Tag(A...)> {
  using type = std::tuple<Tag, std::decay_t<A>...>;
  using signature = completion_signatures<Tag(std::decay_t<A>...)>;
  static constexpr bool nothrow = nothrow_decay_copies<A...>;
};
template <class Signatures>
struct kept_completions;
template <class... Signature>
struct kept_completions<completion_signatures<Signature...>> {
  static constexpr bool nothrow = (kept_completion<Signature>::nothrow && ...);
  using exception =
      std::conditional_t<nothrow, type_list<>, type_list<std::tuple<set_error_t, std::exception_ptr>>>;
  using list = typename unite<type_list<std::monostate>,
                              type_list<typename kept_completion<Signature>::type>..., exception>::type;
  using variant = typename rename<std::variant, list>::type;
  using signatures =
      unite_signatures_t<typename kept_completion<Signature>::signature..., exception_unless<nothrow>>;
};

// What schedule() may complete with besides set_value().
struct schedule_failures {
  template <class Signature>
  struct map {
    using type = completion_signatures<Signature>;
  };
  template <class... V>
  struct map<set_value_t(V...)> {
    using type = completion_signatures<>;
  };
  template <class Signature>
  using apply = typename map<Signature>::type;
};

template <class S, class Sch, class R>
class continues_on_operation {
  struct source_receiver {
    using receiver_concept = receiver_t;
    continues_on_operation* owner;

    template <class... V>
    void set_value(V&&... values) noexcept {
      owner->template hop<set_value_t>(static_cast<V&&>(values)...);
    }
    template <class E>
    void set_error(E&& error) noexcept {
      owner->template hop<set_error_t>(static_cast<E&&>(error));
    }
    void set_stopped() noexcept { owner->template hop<set_stopped_t>(); }
    decltype(auto) get_env() const noexcept { return subset::get_env(owner->target_); }
  };
  struct place_receiver {
    using receiver_concept = receiver_t;
    continues_on_operation* owner;

    void set_value() noexcept { owner->deliver(); }
    template <class E>
    void set_error(E&& error) noexcept {
      subset::set_error(std::move(owner->target_), static_cast<E&&>(error));
    }
    void set_stopped() noexcept { subset::set_stopped(std::move(owner->target_)); }
    decltype(auto) get_env() const noexcept { return subset::get_env(owner->target_); }
  };
  using kept = kept_completions<completion_signatures_of_t<S, env_of_t<R>>>;

 public:
  using operation_state_concept = operation_state_t;
  continues_on_operation(S&& source, Sch place, R&& target)
      : target_(std::move(target)),
        source_(subset::connect(std::move(source), source_receiver{this})),
        place_(subset::connect(subset::schedule(place), place_receiver{this})) {}
  continues_on_operation(const continues_on_operation&) = delete;
  void start() noexcept { subset::start(source_); }

 private:
  template <class Tag, class... A>
  void hop(A&&... arguments) noexcept {
    using tuple = std::tuple<Tag, std::decay_t<A>...>;
    if constexpr (nothrow_decay_copies<A...>) {
      kept_.template emplace<tuple>(Tag{}, static_cast<A&&>(arguments)...);
    } else {
      TERRACE_TRY { kept_.template emplace<tuple>(Tag{}, static_cast<A&&>(arguments)...); }
      TERRACE_CATCH_ALL {
        kept_.template emplace<std::tuple<set_error_t, std::exception_ptr>>(set_error_t{},
                                                                            std::current_exception());
      }
    }
    subset::start(place_);
  }
  void deliver() noexcept {
    std::visit(
        [this](auto& completion) noexcept {
          if constexpr (!std::is_same_v<decltype(completion), std::monostate&>)
            std::apply(
                [this](auto tag, auto&... argument) noexcept {
                  tag(std::move(target_), std::move(argument)...);
                },
                completion);
        },
        kept_);
  }

  R target_;
  typename kept::variant kept_;
  connect_result_t<S, source_receiver> source_;
  connect_result_t<schedule_result_t<Sch&>, place_receiver> place_;
};

template <class S, class Sch>
struct continues_on_sender {
  using sender_concept = sender_t;
  S source;
  Sch place;

  template <class Self, class... E>
  static consteval auto get_completion_signatures() {
    return unite_signatures_t<
        typename kept_completions<completion_signatures_of_t<S, E...>>::signatures,
        transform_signatures_t<schedule_failures,
                               completion_signatures_of_t<schedule_result_t<Sch&>, E...>>>{};
  }
  template <receiver R>
  continues_on_operation<S, Sch, R> connect(R target) && {
    return {std::move(source), place, std::move(target)};
  }
  template <receiver R>
  continues_on_operation<S, Sch, R> connect(R target) const& {
    return {S(source), place, std::move(target)};
  }
};

struct continues_on_algorithm {
  template <sender S, scheduler Sch>
  constexpr auto operator()(S&& source, Sch place) const {
    return continues_on_sender<std::decay_t<S>, Sch>{static_cast<S&&>(source), std::move(place)};
  }
  template <scheduler Sch>
  constexpr auto operator()(Sch place) const {
    return closure<continues_on_algorithm, Sch>{{std::move(place)}};
  }
};

}  // namespace detail

/// continues_on(sender, scheduler): completes as `sender` does, but on the scheduler's resource. The values
/// are kept on the way. Where the scheduler itself fails or is stopped, the whole completes with that
/// instead.
inline constexpr detail::continues_on_algorithm continues_on{};

}  // namespace terrace::subset
