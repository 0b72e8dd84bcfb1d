#pragma once
#include <algorithm>
#include <utility>

#include "terrace/execution/context.hpp"
#include "terrace/execution/event_source.hpp"

namespace terrace {

/// Calls a function on the owner of a context, in poll() or wait(), once a given time has come: for retries that must
/// happen even if nothing else does. Attached to its context from construction to destruction; holds one time. It
/// does not show on the context's descriptor. Owner thread only.
class timer final : event_source {
 public:
  using time_point = context::clock::time_point;
  using function = void (*)(void* argument) noexcept;

  timer(context& ctx, function call, void* argument) : context_(ctx), call_(call), argument_(argument) {
    context_.attach(*this);
  }
  ~timer() override { context_.detach(*this); }

  /// Calls the function at `when` or at the time asked for before, whichever is sooner; once for both. The function
  /// may call this again.
  void call_by(time_point when) noexcept { due_ = std::min(due_, when); }

 private:
  std::size_t poll() noexcept override {
    if (due_ == time_point::max() || due_ > context_.now()) return 0;
    due_ = time_point::max();
    call_(argument_);
    return 1;
  }
  std::size_t pending() const noexcept override { return 0; }
  int descriptor() const noexcept override { return -1; }
  time_point due() const noexcept override { return due_; }

  context& context_;
  function call_;
  void* argument_;
  time_point due_ = time_point::max();
};

}  // namespace terrace
