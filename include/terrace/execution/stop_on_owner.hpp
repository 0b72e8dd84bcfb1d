#pragma once
#include <atomic>
#include <optional>
#include <utility>

#include "terrace/execution/context.hpp"
#include "terrace/execution/ex.hpp"
#include "terrace/execution/task.hpp"

namespace terrace {
inline namespace TERRACE_EX {

/// A part of an operation state that forwards a stop request, which may come from any thread at any time, to the
/// owner of a context. There it calls `operation.asked_to_stop()`, at most once.
///
/// The operation arms it when it starts and disarms it when it ends. A request may be on its way by then; if so, the
/// operation must stay, and completes in `asked_to_stop`, even if it had already ended in another way.
template <class Operation, class Token>
class stop_on_owner {
 public:
  explicit stop_on_owner(Operation& o) noexcept : task_(this), operation_(&o) {}
  stop_on_owner(stop_on_owner&&) = delete;

  /// False if a stop was already requested. From now on `asked_to_stop` may be called, but not from inside this call.
  bool arm(context& owner, Token token) {
    if (token.stop_requested()) return false;
    owner_ = &owner;
    callback_.emplace(std::move(token), on_stop{this});
    return true;
  }
  /// On the owner. False: `asked_to_stop` will still be called. True: it will not.
  bool disarm() noexcept {
    callback_.reset();
    return !posted_.load(std::memory_order_acquire);
  }

 private:
  struct on_stop {
    stop_on_owner* self;
    void operator()() noexcept {
      self->posted_.store(true, std::memory_order_release);
      self->owner_->post(self->task_);
    }
  };
  struct stop_task : task {
    explicit stop_task(stop_on_owner* s) noexcept : task(&run), self(s) {}
    static void run(task* t) noexcept {
      stop_on_owner& s = *static_cast<stop_task*>(t)->self;
      s.callback_.reset();
      s.operation_->asked_to_stop();
    }
    stop_on_owner* self;
  };

  stop_task task_;
  Operation* operation_;
  context* owner_ = nullptr;
  std::atomic<bool> posted_{false};
  std::optional<ex::stop_callback_for_t<Token, on_stop>> callback_;
};

}  // namespace TERRACE_EX
}  // namespace terrace
