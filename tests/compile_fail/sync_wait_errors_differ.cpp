// expect: The errors of a sender that is waited for must convert to one of them: map them by upon_error.
#include "terrace/execution/context.hpp"
#include "terrace/execution/sync_wait.hpp"

using namespace terrace;

struct quota_exceeded {};

// Completes with an error of its own, or with Terrace's.
struct upload {
  using sender_concept = ex::sender_t;
  template <class Self, class... E>
  static consteval auto get_completion_signatures() {
    return ex::completion_signatures<ex::set_value_t(), ex::set_error_t(error),
                                     ex::set_error_t(quota_exceeded)>{};
  }
  template <class R>
  struct operation {
    using operation_state_concept = ex::operation_state_t;
    R receiver;
    void start() noexcept { ex::set_value(std::move(receiver)); }
  };
  template <class R>
  operation<R> connect(R receiver) const {
    return {std::move(receiver)};
  }
};

bool wait(context& ctx) {
#if defined(TERRACE_CONTROL)
  return ctx.sync_wait(ex::upon_error(upload{}, [](auto) noexcept {})).has_value();
#else
  return ctx.sync_wait(upload{}).has_value();
#endif
}
