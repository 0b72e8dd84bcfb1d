#pragma once
#include <atomic>
#include <optional>
#include <span>
#include <utility>

#include "terrace/cache/planner.hpp"
#include "terrace/execution/ex.hpp"

namespace terrace {
inline namespace TERRACE_EX {

/// The sender that `tiered_cache::acquire` returns. Completes on the owner with
/// - set_value(lease): every block is in place, checked and pinned,
/// - set_error(block_error): some block was lost, or out_of_capacity: tier 0 cannot hold what is asked for,
/// - set_stopped(): asked to stop; nothing is pinned.
/// Stopping may come from any thread; what it cancels is given up on the owner.
class acquire_sender {
 public:
  using sender_concept = ex::sender_t;
  template <class Self, class... E>
  static consteval auto get_completion_signatures() {
    return ex::completion_signatures<ex::set_value_t(lease), ex::set_error_t(block_error),
                                     ex::set_stopped_t()>{};
  }

  acquire_sender(planner& p, std::span<const block_id> ids, lease_form form = lease_form::raw) noexcept
      : planner_(&p), wanted_(ids), form_(form) {}

  template <class R>
  class operation : acquire_request {
   public:
    using operation_state_concept = ex::operation_state_t;
    operation(planner& p, std::span<const block_id> ids, lease_form wanted_form, R r)
        : acquire_request(ids, &finish), planner_(&p), receiver_(std::move(r)) {
      this->form = wanted_form;
    }
    operation(operation&&) = delete;

    void start() noexcept {
      const auto token = ex::get_stop_token(ex::get_env(receiver_));
      if (token.stop_requested()) return ex::set_stopped(std::move(receiver_));
      stop_.emplace(token, on_stop{this});
      planner_->request(*this);
    }

   private:
    using token_type = ex::stop_token_of_t<ex::env_of_t<R>>;
    struct on_stop {
      operation* self;
      void operator()() noexcept { self->stop_requested(); }
    };
    struct stop_task : task {
      explicit stop_task(operation* o) noexcept : task(&run), self(o) {}
      static void run(task* t) noexcept { static_cast<stop_task*>(t)->self->give_up(); }
      operation* self;
    };

    // May run on any thread, and before start() has come to the end: so the owner does it later.
    void stop_requested() noexcept {
      posted_.store(true, std::memory_order_release);
      planner_->owner().post(stop_task_);
    }
    void give_up() noexcept {
      const bool over = now == phase::ended;
      if (!over) planner_->cancel(*this);
      stop_.reset();
      if (over)
        deliver();
      else
        ex::set_stopped(std::move(receiver_));
    }
    static void finish(acquire_request* r) noexcept {
      auto& self = *static_cast<operation*>(r);
      self.stop_
          .reset();  // from here no stop request arrives; one that did has posted its task, which delivers
      if (!self.posted_.load(std::memory_order_acquire)) self.deliver();
    }
    void deliver() noexcept {
      if (refusal) return ex::set_error(std::move(receiver_), block_error(*refusal));
      if (lost == 0) return ex::set_value(std::move(receiver_), lease(std::exchange(record, nullptr)));
      block_error e(error{errc::lost, "blocks could not be had from any tier"});
      for (const lease_entry& entry : record->entries)
        if (entry.now == lease_entry::state::lost) e.lost.push_back({entry.id, entry.cause});
      e.rest = lease(std::exchange(record, nullptr));
      ex::set_error(std::move(receiver_), std::move(e));
    }

    planner* planner_;
    R receiver_;
    stop_task stop_task_{this};
    std::atomic<bool> posted_{false};
    std::optional<ex::stop_callback_for_t<token_type, on_stop>> stop_;
  };

  template <class R>
  operation<R> connect(R receiver) const {
    return operation<R>(*planner_, wanted_, form_, std::move(receiver));
  }

 private:
  planner* planner_;
  std::span<const block_id> wanted_;
  lease_form form_;
};

/// The sender that `tiered_cache::flush` returns: set_value() when every block sealed before is in a tier
/// below tier 0, and every one that has a name is durable where a tier keeps; set_error(error) when the tiers have no
/// room or fail.
class flush_sender {
 public:
  using sender_concept = ex::sender_t;
  template <class Self, class... E>
  static consteval auto get_completion_signatures() {
    return ex::completion_signatures<ex::set_value_t(), ex::set_error_t(error)>{};
  }
  explicit flush_sender(planner& p) noexcept : planner_(&p) {}

  template <class R>
  class operation : flush_request {
   public:
    using operation_state_concept = ex::operation_state_t;
    operation(planner& p, R r) : flush_request{&finish, {}, nullptr}, planner_(&p), receiver_(std::move(r)) {}
    operation(operation&&) = delete;
    void start() noexcept { planner_->flush(*this); }

   private:
    static void finish(flush_request* r) noexcept {
      auto& self = *static_cast<operation*>(r);
      if (self.failure)
        ex::set_error(std::move(self.receiver_), *self.failure);
      else
        ex::set_value(std::move(self.receiver_));
    }
    planner* planner_;
    R receiver_;
  };
  template <class R>
  operation<R> connect(R receiver) const {
    return operation<R>(*planner_, std::move(receiver));
  }

 private:
  planner* planner_;
};

}  // namespace TERRACE_EX
}  // namespace terrace
