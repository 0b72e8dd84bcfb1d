#pragma once
#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <optional>
#include <type_traits>
#include <utility>
#include <variant>

#include "terrace/core/config.hpp"
#include "terrace/execution/elide.hpp"
#include "terrace/execution/ex.hpp"
#include "terrace/execution/sender_traits.hpp"

namespace terrace {
inline namespace TERRACE_EX {

/// How for_each completes, and where its operation keeps an error. E are the errors of the elements;
/// std::exception_ptr is added, once, if the callable may throw.
template <bool Nothrow, class... E>
struct for_each_completions {
  static constexpr bool complete = Nothrow || (std::is_same_v<E, std::exception_ptr> || ...);
  using signatures = std::conditional_t<
      complete, ex::completion_signatures<ex::set_value_t(), ex::set_error_t(E)..., ex::set_stopped_t()>,
      ex::completion_signatures<ex::set_value_t(), ex::set_error_t(E)..., ex::set_error_t(std::exception_ptr),
                                ex::set_stopped_t()>>;
  using kept_error = std::conditional_t<complete, std::variant<std::monostate, E...>,
                                        std::variant<std::monostate, E..., std::exception_ptr>>;

  template <class... Errors>
  using with = for_each_completions<Nothrow, Errors...>;
};
/// The same for a callable F in an environment.
template <class F, class... Env>
using for_each_completions_of_t =
    ex::error_types_of_t<std::invoke_result_t<F&, std::size_t>, ex::env<Env...>,
                         for_each_completions<std::is_nothrow_invocable_v<F&, std::size_t>>::template with>;

/// for_each(n, in_flight, f) connected to a receiver. Each of the slots runs one element after the other.
template <class F, class R>
class for_each_operation {
 public:
  using operation_state_concept = ex::operation_state_t;

  for_each_operation(std::size_t n, std::size_t in_flight, F&& f, R&& target)
      : target_(std::move(target)),
        function_(std::move(f)),
        elements_(n),
        width_(std::min(n, std::max<std::size_t>(in_flight, 1))),
        slots_(std::make_unique<slot[]>(width_)) {
    for (std::size_t i = 0; i < width_; ++i) slots_[i].owner = this;
  }
  for_each_operation(const for_each_operation&) = delete;
  for_each_operation& operator=(const for_each_operation&) = delete;

  void start() noexcept {
    if (width_ == 0) return ex::set_value(std::move(target_));
    slot* const slots = slots_.get();
    for (std::size_t i = 0, width = width_; i < width; ++i)
      slots[i].run();  // the last may destroy this operation
  }

 private:
  static_assert(sends_nothing<std::invoke_result_t<F&, std::size_t>, ex::env_of_t<R>>,
                "An element of for_each must complete with set_value() and no value: drop it by then.");

  struct slot;
  struct element_receiver {
    using receiver_concept = ex::receiver_t;
    slot* place;

    void set_value() noexcept { place->ended(); }
    template <class E>
    void set_error(E&& error) noexcept {
      place->owner->fail(static_cast<E&&>(error));
      place->ended();
    }
    void set_stopped() noexcept {
      place->owner->stopped_.store(true, std::memory_order_relaxed);
      place->ended();
    }
    ex::env_of_t<R> get_env() const noexcept { return ex::get_env(place->owner->target_); }
  };
  static constexpr bool ends_later =
      completes_after_start<std::remove_cvref_t<std::invoke_result_t<F&, std::size_t>>>;
  using element = ex::connect_result_t<std::invoke_result_t<F&, std::size_t>, element_receiver>;

  struct slot {
    for_each_operation* owner = nullptr;
    std::optional<element> current;
    // The start and the completion of an element meet here, and whichever comes second continues: elements that
    // complete inside start() run in a loop instead of recursing. Unused if elements cannot complete inside start():
    // one that is stopped there is the last of its slot.
    std::atomic<bool> met{false};

    // Whether the other of the two was here before. Loading first spares the second its locked instruction.
    bool second() noexcept {
      if constexpr (ends_later) return true;
      return met.load(std::memory_order_acquire) || met.exchange(true, std::memory_order_acq_rel);
    }

    void run() noexcept {
      do {
        current.reset();
        do {
          const std::size_t index = owner->next_element();
          if (index == none) return owner->retire();
          met.store(false, std::memory_order_relaxed);
          connect(index);
        } while (!current);
        ex::start(*current);
      } while (!ends_later && second());
    }
    void ended() noexcept {
      if (second()) run();
    }
    void connect(std::size_t index) noexcept {
      auto make = elide{[&] { return ex::connect(owner->function_(index), element_receiver{this}); }};
      if constexpr (std::is_nothrow_invocable_v<F&, std::size_t>) {
        current.emplace(make);
      } else {
        TERRACE_TRY { current.emplace(make); }
        TERRACE_CATCH_ALL { owner->fail(std::current_exception()); }
      }
    }
  };

  static constexpr std::size_t none = ~std::size_t{0};

  std::size_t next_element() noexcept {
    if (failed_.load(std::memory_order_relaxed) || stopped_.load(std::memory_order_relaxed)) return none;
    if (ex::get_stop_token(ex::get_env(target_)).stop_requested()) {
      if (next_.load(std::memory_order_relaxed) < elements_) stopped_.store(true, std::memory_order_relaxed);
      return none;
    }
    const std::size_t index = take_index();
    return index < elements_ ? index : none;
  }
  // A single slot shares the count with nobody and runs its elements one after the other, so it needs no locked
  // instruction.
  std::size_t take_index() noexcept {
    if (width_ != 1) return next_.fetch_add(1, std::memory_order_relaxed);
    const std::size_t index = next_.load(std::memory_order_relaxed);
    next_.store(index + 1, std::memory_order_relaxed);
    return index;
  }
  template <class E>
  void fail(E&& error) noexcept {
    if (!failed_.exchange(true, std::memory_order_acq_rel))
      error_.template emplace<std::decay_t<E>>(static_cast<E&&>(error));
  }
  void retire() noexcept {
    const std::size_t all =
        width_;  // read first: once this slot is counted, the last one may destroy the operation
    if (retired_.fetch_add(1, std::memory_order_acq_rel) + 1 != all) return;
    if (failed_.load(std::memory_order_relaxed)) {
      std::visit(
          [this](auto& error) noexcept {
            if constexpr (!std::is_same_v<decltype(error), std::monostate&>)
              ex::set_error(std::move(target_), std::move(error));
          },
          error_);
    } else if (stopped_.load(std::memory_order_relaxed)) {
      ex::set_stopped(std::move(target_));
    } else {
      ex::set_value(std::move(target_));
    }
  }

  R target_;
  [[no_unique_address]] F function_;
  const std::size_t elements_;
  const std::size_t width_;
  std::atomic<std::size_t> next_{0};
  std::atomic<std::size_t> retired_{0};
  std::atomic<bool> failed_{false};
  std::atomic<bool> stopped_{false};
  typename for_each_completions_of_t<F, ex::env_of_t<R>>::kept_error error_;
  std::unique_ptr<slot[]> slots_;
};

/// The sender that for_each returns.
template <class F>
class for_each_sender {
 public:
  using sender_concept = ex::sender_t;
  for_each_sender(std::size_t n, std::size_t in_flight, F f)
      : elements_(n), in_flight_(in_flight), function_(std::move(f)) {}

  template <class Self, class... E>
  static consteval auto get_completion_signatures() {
    return typename for_each_completions_of_t<F, E...>::signatures{};
  }
  template <class R>
  for_each_operation<F, R> connect(R target) && {
    return {elements_, in_flight_, std::move(function_), std::move(target)};
  }
  template <class R>
  for_each_operation<F, R> connect(R target) const& {
    return {elements_, in_flight_, F(function_), std::move(target)};
  }

 private:
  std::size_t elements_;
  std::size_t in_flight_;
  [[no_unique_address]] F function_;
};

/// Runs the senders f(0), ..., f(n - 1), at most `in_flight` of them at once (0 counts as 1), and completes
/// with set_value() when all have ended. Each completes with set_value(), an error, or stopped. The first
/// error keeps further elements from starting, and is delivered after those in flight have ended; being
/// stopped, from within or by the receiver's token, does the same and ends in set_stopped(). f is called
/// where an element ended: by several threads at once, if the elements end on several threads. One
/// allocation, in connect(); none for an element.
template <class F>
for_each_sender<F> for_each(std::size_t n, std::size_t in_flight, F f) {
  static_assert(ex::sender<std::invoke_result_t<F&, std::size_t>>,
                "The callable of for_each must return a sender.");
  return {n, in_flight, std::move(f)};
}

}  // namespace TERRACE_EX
}  // namespace terrace
