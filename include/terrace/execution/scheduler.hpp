#pragma once
#include <type_traits>
#include <utility>

#include "terrace/execution/context.hpp"
#include "terrace/execution/ex.hpp"
#include "terrace/execution/task.hpp"
#include "terrace/execution/thread_pool.hpp"

namespace terrace {
inline namespace TERRACE_EX {

/// A scheduler for anything that takes tasks: on a context its work runs on the owner, in poll() or wait(); on a
/// thread_pool it runs on one of the threads. It refers to the resource, which must outlive it.
template <class Resource>
class task_scheduler {
 public:
  using scheduler_concept = ex::scheduler_t;

  explicit task_scheduler(Resource& resource) noexcept : resource_(&resource) {}
  friend bool operator==(task_scheduler, task_scheduler) noexcept = default;

  /// Completes on the resource with set_value(), or with set_stopped() where the receiver was asked to stop
  /// by then. No allocation: the operation is the task.
  class sender;
  sender schedule() const noexcept { return sender(*resource_); }

 private:
  Resource* resource_;
};

template <class Resource>
class task_scheduler<Resource>::sender {
 public:
  using sender_concept = ex::sender_t;
  explicit sender(Resource& resource) noexcept : resource_(&resource) {}

  template <class Self, class... E>
  static consteval auto get_completion_signatures() {
    return ex::completion_signatures<ex::set_value_t(), ex::set_stopped_t()>{};
  }

  template <class R>
  class operation : task {
   public:
    using operation_state_concept = ex::operation_state_t;
    operation(Resource& resource, R&& target) noexcept
        : task(&complete), resource_(&resource), target_(std::move(target)) {}
    void start() noexcept {
      if constexpr (std::is_same_v<Resource, context>)
        resource_->post(*this);
      else
        resource_->submit(*this);
    }

   private:
    static void complete(task* self) noexcept {
      R& target = static_cast<operation*>(self)->target_;
      if (ex::get_stop_token(ex::get_env(target)).stop_requested())
        ex::set_stopped(std::move(target));
      else
        ex::set_value(std::move(target));
    }
    Resource* resource_;
    R target_;
  };
  template <class R>
  operation<R> connect(R target) const noexcept {
    return {*resource_, std::move(target)};
  }

  /// Says where the operation completes.
  struct attributes {
    Resource* resource;
    task_scheduler query(ex::get_completion_scheduler_t<ex::set_value_t>) const noexcept {
      return task_scheduler(*resource);
    }
  };
  attributes get_env() const noexcept { return {resource_}; }

 private:
  Resource* resource_;
};

/// The scheduler of a pool, the counterpart of context::get_scheduler().
inline task_scheduler<thread_pool> get_scheduler(thread_pool& pool) noexcept {
  return task_scheduler<thread_pool>(pool);
}

static_assert(ex::scheduler<task_scheduler<context>> && ex::scheduler<task_scheduler<thread_pool>>);

}  // namespace TERRACE_EX

template <class Backend>
auto context::get_scheduler() noexcept {
  return task_scheduler<context>(*this);
}

}  // namespace terrace
