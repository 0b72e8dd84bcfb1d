#pragma once
#include <atomic>
#include <optional>
#include <utility>

#include "terrace/execution/context.hpp"
#include "terrace/execution/ex.hpp"
#include "terrace/execution/task.hpp"

namespace terrace {
inline namespace TERRACE_EX {

/// Brings a request to stop, which may come from any thread and at any time, to the owner of a context: a part of an
/// operation state. There it calls `operation.asked_to_stop()`, once at most.
///
/// The operation arms it when it starts, and disarms it when it has come to its end. Between the two a request may be
/// on its way; then the operation must stay, and completes in `asked_to_stop`, even if it had ended otherwise before.
template <class Operation, class Token>
class stop_on_owner {
 public:
  explicit stop_on_owner(Operation& o) noexcept : task_(this), operation_(&o) {}
  stop_on_owner(stop_on_owner&&) = delete;

  /// False where stopping was requested already. From now on `asked_to_stop` may come, but not from within.
  bool arm(context& owner, Token token) {
    if (token.stop_requested()) return false;
    owner_ = &owner;
    callback_.emplace(std::move(token), on_stop{this});
    return true;
  }
  /// On the owner. False: `asked_to_stop` is still to come. Otherwise it does not come any more.
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
