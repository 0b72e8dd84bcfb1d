#pragma once
// How a batch's next window is asked for. Part of batch.hpp.
#include <cstdint>
#include <optional>
#include <utility>

#include "terrace/batch.hpp"
#include "terrace/cache/acquire.hpp"
#include "terrace/execution/elide.hpp"

namespace terrace {
inline namespace TERRACE_EX {

/// The sender that `batch::next` returns.
class next_sender {
 public:
  using sender_concept = ex::sender_t;
  template <class Self, class... E>
  static consteval auto get_completion_signatures() {
    return ex::completion_signatures<ex::set_value_t(batch_window), ex::set_error_t(block_error),
                                     ex::set_stopped_t()>{};
  }
  next_sender(batch& b, std::uint32_t layer, lease_form form) noexcept
      : batch_(&b), layer_(layer), form_(form) {}

  template <class R>
  class operation {
   public:
    using operation_state_concept = ex::operation_state_t;
    operation(batch& b, std::uint32_t layer, lease_form form, R r)
        : batch_(&b), layer_(layer), form_(form), receiver_(std::move(r)) {}
    operation(operation&&) = delete;

    void start() noexcept {
      if (auto asked = batch_->ask(layer_, form_); !asked)
        return ex::set_error(std::move(receiver_), block_error(asked.error()));
      try_now();
    }

   private:
    struct inner {
      using receiver_concept = ex::receiver_t;
      operation* self;
      void set_value(lease held) noexcept { self->arrived(std::move(held)); }
      void set_error(block_error e) noexcept { self->refused(std::move(e)); }
      void set_stopped() noexcept {
        self->batch_->give_up();
        ex::set_stopped(std::move(self->receiver_));
      }
      ex::env_of_t<R> get_env() const noexcept { return ex::get_env(self->receiver_); }
    };

    void try_now() noexcept {
      batch_->cut();
      if (batch_->blocks_.empty()) return arrived(lease());
      const acquire_sender blocks(*batch_->owner_, batch_->blocks_, batch_->form_);
      acquire_.emplace(elide{[&] { return blocks.connect(inner{this}); }});
      acquire_->start();
    }
    void arrived(lease held) noexcept {
      auto window = batch_->give(std::move(held));
      if (!window) return ex::set_error(std::move(receiver_), block_error(window.error()));
      ex::set_value(std::move(receiver_), std::move(*window));
    }
    // The acquire calls this as its very last action, so a new one may take its place.
    void refused(block_error e) noexcept {
      if (e.code == errc::out_of_capacity && batch_->shrink()) return try_now();
      batch_->give_up();
      ex::set_error(std::move(receiver_), std::move(e));
    }

    batch* batch_;
    std::uint32_t layer_;
    lease_form form_;
    R receiver_;
    std::optional<acquire_sender::operation<inner>> acquire_;
  };

  template <class R>
  operation<R> connect(R receiver) const {
    return operation<R>(*batch_, layer_, form_, std::move(receiver));
  }

 private:
  batch* batch_;
  std::uint32_t layer_;
  lease_form form_;
};

inline next_sender batch::next(std::uint32_t layer, lease_form form) noexcept { return {*this, layer, form}; }

}  // namespace TERRACE_EX
}  // namespace terrace
