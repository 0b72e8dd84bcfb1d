#pragma once
// How room in tier 0 is taken for writing: one slot at a time, blocking or not.
#include <concepts>
#include <type_traits>
#include <utility>

#include "terrace/cache/planner.hpp"
#include "terrace/cache/requests.hpp"
#include "terrace/core/error.hpp"
#include "terrace/execution/ex.hpp"
#include "terrace/execution/stop_on_owner.hpp"

namespace terrace {
inline namespace TERRACE_EX {

/// Work that takes slots of tier 0 one after another and can pause between two: for the tokens of a sequence, those
/// of a batch, or a block that is recomputed.
template <class W>
concept room_taker = requires(W& w) {
  typename W::value_type;
  { w.control() } -> std::same_as<planner&>;
  /// Checks, and marks what takes part. If it fails, nothing has changed, and none of the others is called.
  { w.begin() } -> std::same_as<result<void>>;
  /// Takes what can be had now. False: a slot will come free when a transfer under way has ended.
  { w.take() } -> std::same_as<result<bool>>;
  /// After `take` returned true: what the caller asked for.
  { w.finish() } -> std::same_as<typename W::value_type>;
  /// Instead of `finish`: gives everything back.
  { w.give_up() } -> std::same_as<void>;
};

/// Takes room, and blocks until it has it all. Meanwhile it drives the owner's context, so other completions run
/// within this call.
template <room_taker W>
result<typename W::value_type> take_room(W work) {
  if (auto begun = work.begin(); !begun) return propagate(begun.error());
  for (;;) {
    const auto whole = work.take();
    if (!whole) {
      work.give_up();
      return propagate(whole.error());
    }
    if (*whole) break;
    work.control().wait_for_transfer();
  }
  if constexpr (std::is_void_v<typename W::value_type>)
    return work.finish(), result<void>{};
  else
    return work.finish();
}

/// The same as a sender, which never blocks. Completes on the owner with set_value(what was asked for),
/// set_error(error) or set_stopped(); after either of the latter two everything is as it was. Waiting senders are
/// served first come, first served, and only the first in line holds anything; callers that block (take_room) bypass
/// the line. The operation allocates nothing.
template <room_taker W>
class room_sender {
  using value_type = typename W::value_type;
  template <class V>
  struct value_signature {
    using type = ex::set_value_t(V);
  };
  template <std::same_as<void> V>
  struct value_signature<V> {
    using type = ex::set_value_t();
  };

 public:
  using sender_concept = ex::sender_t;
  template <class Self, class... E>
  static consteval auto get_completion_signatures() {
    return ex::completion_signatures<typename value_signature<value_type>::type, ex::set_error_t(error),
                                     ex::set_stopped_t()>{};
  }
  explicit room_sender(W work) noexcept : work_(std::move(work)) {}

  template <class R>
  class operation : room_request {
   public:
    using operation_state_concept = ex::operation_state_t;
    operation(W work, R r) : room_request(&look, &finish), work_(std::move(work)), receiver_(std::move(r)) {}
    operation(operation&&) = delete;

    void start() noexcept {
      if (!stop_.arm(work_.control().owner(), ex::get_stop_token(ex::get_env(receiver_))))
        return ex::set_stopped(std::move(receiver_));
      if (auto begun = work_.begin(); !begun) {
        failure = begun.error();
        return finish(this);
      }
      begun_ = true;
      work_.control().request(*this);
    }

   private:
    using stop_type = stop_on_owner<operation, ex::stop_token_of_t<ex::env_of_t<R>>>;
    friend stop_type;

    static bool look(room_request* r) noexcept {
      auto& self = *static_cast<operation*>(r);
      const auto whole = self.work_.take();
      if (!whole) self.failure = whole.error();
      return !whole || *whole;
    }
    static void finish(room_request* r) noexcept {
      auto& self = *static_cast<operation*>(r);
      self.ended_ = true;
      // Frees what it holds for the next in line at once, even if a stop request is on its way.
      if (self.failure && std::exchange(self.begun_, false)) self.work_.give_up();
      if (self.stop_.disarm()) self.deliver();
    }
    void asked_to_stop() noexcept {
      if (ended_) return deliver();
      work_.control().cancel(*this, [this] { work_.give_up(); });
      ex::set_stopped(std::move(receiver_));
    }
    void deliver() noexcept {
      if (failure) return ex::set_error(std::move(receiver_), *failure);
      if constexpr (std::is_void_v<value_type>)
        work_.finish(), ex::set_value(std::move(receiver_));
      else
        ex::set_value(std::move(receiver_), work_.finish());
    }

    W work_;
    R receiver_;
    bool begun_ = false, ended_ = false;
    stop_type stop_{*this};
  };

  template <class R>
  operation<R> connect(R receiver) const {
    return operation<R>(work_, std::move(receiver));
  }

 private:
  W work_;
};

}  // namespace TERRACE_EX
}  // namespace terrace
