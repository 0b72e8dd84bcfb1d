#pragma once
#include <cstddef>
#include <mutex>
#include <new>
#include <type_traits>
#include <utility>

#include "terrace/core/config.hpp"
#include "terrace/execution/ex.hpp"
#include "terrace/execution/sender_traits.hpp"

namespace terrace {
inline namespace TERRACE_EX {

/// Holds work that nobody waits for individually, so that it can be stopped and waited for together:
///
///     scope.spawn(write_behind(block));
///     ...
///     scope.request_stop();
///     ctx.sync_wait(scope.join());
///
/// All members may be called on any thread.
class counting_scope {
 public:
  /// The environment of spawned senders: the scope's stop token.
  using env_type = ex::prop<ex::get_stop_token_t, ex::inplace_stop_token>;

  counting_scope() = default;
  counting_scope(const counting_scope&) = delete;  // what was spawned holds its address
  counting_scope& operator=(const counting_scope&) = delete;
  ~counting_scope() { TERRACE_ASSERT(running_ == 0, "a counting_scope ends before its work: join it first"); }

  /// Starts `sender` here and now. Its stop token is the scope's. It completes with set_value() or set_stopped()
  /// only, as there is nobody to take a value or an error. Returns false, and starts nothing, if the scope is closed
  /// or memory runs out. One allocation.
  template <ex::sender S>
  bool spawn(S&& sender) {
    static_assert(
        sends_nothing<S, env_type> && never_fails<S, env_type>,
        "What is spawned must complete with set_value() or set_stopped() only: use then and upon_error.");
    using operation = spawned<std::decay_t<S>>;
    if (!try_enter()) return false;
    ticket held{this};
    auto* const started = new (std::nothrow) operation(static_cast<S&&>(sender), held);
    if (started == nullptr) return false;
    ex::start(started->child);
    return true;
  }

  /// Asks everything spawned so far, and everything spawned later, to stop.
  void request_stop() noexcept {
    enter();  // what stops at once may end the last wait for this scope
    const ticket held{this};
    stop_.request_stop();
  }
  ex::inplace_stop_token get_stop_token() const noexcept { return stop_.get_token(); }

  /// From here on spawn() refuses.
  void close() noexcept {
    const std::lock_guard lock(mutex_);
    closed_ = true;
  }

  /// A sender that closes the scope and completes with set_value() once nothing runs in it: inside start()
  /// where that is so already, otherwise on the thread where the last work ends.
  class join_sender;
  join_sender join() noexcept;

 private:
  // One place in the count, given back on every way out.
  struct ticket {
    counting_scope* scope;
    explicit ticket(counting_scope* of) noexcept : scope(of) {}
    ticket(ticket& other) noexcept : scope(std::exchange(other.scope, nullptr)) {}
    ~ticket() {
      if (scope != nullptr) scope->leave();
    }
  };

  template <class S>
  struct spawned {
    struct end_receiver {
      using receiver_concept = ex::receiver_t;
      spawned* owner;
      void set_value() noexcept { owner->end(); }
      void set_stopped() noexcept { owner->end(); }
      env_type get_env() const noexcept { return {ex::get_stop_token, owner->held.scope->get_stop_token()}; }
    };
    template <class Sender>
    spawned(Sender&& sender, ticket& from)
        : held(from), child(ex::connect(static_cast<Sender&&>(sender), end_receiver{this})) {}
    void end() noexcept { delete this; }

    ticket held;  // destroyed after the operation, so that the scope outlives it
    ex::connect_result_t<S, end_receiver> child;
  };

  struct waiter {
    void (*complete)(waiter*) noexcept;
    waiter* next = nullptr;
  };

  void enter() noexcept {
    const std::lock_guard lock(mutex_);
    ++running_;
  }
  bool try_enter() noexcept {
    const std::lock_guard lock(mutex_);
    if (!closed_) ++running_;
    return !closed_;
  }
  void leave() noexcept {
    waiter* waiting = nullptr;
    {
      const std::lock_guard lock(mutex_);
      if (--running_ == 0) waiting = std::exchange(waiters_, nullptr);
    }
    while (waiting != nullptr) {  // the last of them may destroy the scope
      waiter* const next = waiting->next;
      waiting->complete(waiting);
      waiting = next;
    }
  }
  // False where nothing runs any more.
  bool close_and_wait(waiter& last) noexcept {
    const std::lock_guard lock(mutex_);
    closed_ = true;
    if (running_ == 0) return false;
    last.next = std::exchange(waiters_, &last);
    return true;
  }

  std::mutex mutex_;
  std::size_t running_ = 0;
  bool closed_ = false;
  waiter* waiters_ = nullptr;
  ex::inplace_stop_source stop_;
};

class counting_scope::join_sender {
 public:
  using sender_concept = ex::sender_t;
  explicit join_sender(counting_scope& scope) noexcept : scope_(&scope) {}

  template <class Self, class... E>
  static consteval auto get_completion_signatures() {
    return ex::completion_signatures<ex::set_value_t()>{};
  }

  template <class R>
  class operation : waiter {
   public:
    using operation_state_concept = ex::operation_state_t;
    operation(counting_scope& scope, R&& target) noexcept
        : waiter{&complete_from}, scope_(&scope), target_(std::move(target)) {}
    operation(const operation&) = delete;
    void start() noexcept {
      if (!scope_->close_and_wait(*this)) ex::set_value(std::move(target_));
    }

   private:
    static void complete_from(waiter* self) noexcept {
      ex::set_value(std::move(static_cast<operation*>(self)->target_));
    }
    counting_scope* scope_;
    R target_;
  };
  template <class R>
  operation<R> connect(R target) const noexcept {
    return {*scope_, std::move(target)};
  }

 private:
  counting_scope* scope_;
};

inline counting_scope::join_sender counting_scope::join() noexcept { return join_sender(*this); }

}  // namespace TERRACE_EX
}  // namespace terrace
