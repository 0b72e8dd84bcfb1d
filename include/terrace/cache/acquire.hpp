#pragma once
#include <span>
#include <utility>

#include "terrace/cache/planner.hpp"
#include "terrace/execution/ex.hpp"
#include "terrace/execution/stop_on_owner.hpp"

namespace terrace {
inline namespace TERRACE_EX {

/// The sender that `tiered_cache::acquire` returns. Completes on the owner with
/// - set_value(lease): every block is in place, checked and pinned,
/// - set_error(block_error): some blocks were lost, or out_of_capacity: tier 0 cannot hold what was asked for,
/// - set_stopped(): asked to stop; nothing is pinned.
/// A stop may be requested from any thread; the cancellation itself runs on the owner.
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
      if (!stop_.arm(planner_->owner(), ex::get_stop_token(ex::get_env(receiver_))))
        return ex::set_stopped(std::move(receiver_));
      planner_->request(*this);
    }

   private:
    using stop_type = stop_on_owner<operation, ex::stop_token_of_t<ex::env_of_t<R>>>;
    friend stop_type;

    void asked_to_stop() noexcept {
      if (now == phase::ended) return deliver();
      planner_->cancel(*this);
      ex::set_stopped(std::move(receiver_));
    }
    static void finish(acquire_request* r) noexcept {
      auto& self = *static_cast<operation*>(r);
      if (self.stop_.disarm()) self.deliver();
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
    stop_type stop_{*this};
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

/// The sender that `tiered_cache::flush` returns: set_value() when every block sealed before it started is in a tier
/// below tier 0, and, if a tier keeps, every named one is durable there; set_error(error) when the tiers have no room
/// or fail, or a named block is lost; set_stopped() when asked to stop: nobody waits for it then, and work under way
/// goes on.
class flush_sender {
 public:
  using sender_concept = ex::sender_t;
  template <class Self, class... E>
  static consteval auto get_completion_signatures() {
    return ex::completion_signatures<ex::set_value_t(), ex::set_error_t(error), ex::set_stopped_t()>{};
  }
  explicit flush_sender(planner& p) noexcept : planner_(&p) {}

  template <class R>
  class operation : flush_request {
   public:
    using operation_state_concept = ex::operation_state_t;
    operation(planner& p, R r) : flush_request(&finish), planner_(&p), receiver_(std::move(r)) {}
    operation(operation&&) = delete;

    void start() noexcept {
      if (!stop_.arm(planner_->owner(), ex::get_stop_token(ex::get_env(receiver_))))
        return ex::set_stopped(std::move(receiver_));
      planner_->flush(*this);
    }

   private:
    using stop_type = stop_on_owner<operation, ex::stop_token_of_t<ex::env_of_t<R>>>;
    friend stop_type;

    void asked_to_stop() noexcept {
      if (answered) return deliver();
      planner_->cancel(*this);
      ex::set_stopped(std::move(receiver_));
    }
    static void finish(flush_request* r) noexcept {
      auto& self = *static_cast<operation*>(r);
      if (self.stop_.disarm()) self.deliver();
    }
    void deliver() noexcept {
      if (failure)
        ex::set_error(std::move(receiver_), *failure);
      else
        ex::set_value(std::move(receiver_));
    }

    planner* planner_;
    R receiver_;
    stop_type stop_{*this};
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
