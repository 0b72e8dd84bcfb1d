#pragma once
#include <condition_variable>
#include <mutex>
#include <utility>

#include "terrace/execution/subset/concepts.hpp"
#include "terrace/execution/task.hpp"

namespace terrace::subset {

/// A work queue that a thread drains in run(), until finish() was called and nothing is left.
class run_loop {
 public:
  class scheduler;

  run_loop() = default;
  run_loop(const run_loop&) = delete;
  run_loop& operator=(const run_loop&) = delete;

  /// A scheduler whose work runs in run(). Any thread.
  scheduler get_scheduler() noexcept;

  void run() noexcept {
    for (;;) {
      std::unique_lock lock(mutex_);
      ready_.wait(lock, [this] { return head_ != nullptr || finishing_; });
      if (head_ == nullptr) return;
      task& work = *head_;
      head_ = work.next;
      lock.unlock();
      work();
    }
  }

  /// Makes run() return once the queue is empty. Any thread.
  void finish() noexcept {
    const std::lock_guard lock(mutex_);
    finishing_ = true;
    ready_.notify_all();
  }

 private:
  void push(task& work) noexcept {
    const std::lock_guard lock(mutex_);
    work.next = nullptr;
    *(head_ == nullptr ? &head_ : &tail_->next) = &work;
    tail_ = &work;
    ready_.notify_one();
  }

  std::mutex mutex_;
  std::condition_variable ready_;
  task* head_ = nullptr;
  task* tail_ = nullptr;  // meaningful while head_ is set
  bool finishing_ = false;
};

/// Refers to a run_loop, which must outlive it.
class run_loop::scheduler {
 public:
  using scheduler_concept = scheduler_t;
  explicit scheduler(run_loop* loop) noexcept : loop_(loop) {}
  friend bool operator==(scheduler, scheduler) noexcept = default;

  /// Completes in run_loop::run() with set_value(), or with set_stopped() where the receiver was asked to
  /// stop.
  class sender;
  sender schedule() const noexcept;

 private:
  run_loop* loop_;
};

class run_loop::scheduler::sender {
 public:
  using sender_concept = sender_t;
  explicit sender(run_loop* loop) noexcept : loop_(loop) {}

  template <class Self, class... E>
  static consteval auto get_completion_signatures() {
    return completion_signatures<set_value_t(), set_stopped_t()>{};
  }

  template <class R>
  class operation : task {
   public:
    using operation_state_concept = operation_state_t;
    operation(run_loop* loop, R&& target) noexcept
        : task(&complete), loop_(loop), target_(std::move(target)) {}
    void start() noexcept { loop_->push(*this); }

   private:
    static void complete(task* self) noexcept {
      R& target = static_cast<operation*>(self)->target_;
      if (get_stop_token(subset::get_env(target)).stop_requested())
        subset::set_stopped(std::move(target));
      else
        subset::set_value(std::move(target));
    }
    run_loop* loop_;
    R target_;
  };
  template <receiver R>
  operation<R> connect(R target) const noexcept {
    return {loop_, std::move(target)};
  }

  struct attributes {
    run_loop* loop;
    scheduler query(get_completion_scheduler_t<set_value_t>) const noexcept { return scheduler{loop}; }
  };
  attributes get_env() const noexcept { return {loop_}; }

 private:
  run_loop* loop_;
};

inline run_loop::scheduler run_loop::get_scheduler() noexcept { return scheduler{this}; }
inline run_loop::scheduler::sender run_loop::scheduler::schedule() const noexcept { return sender{loop_}; }

static_assert(scheduler<run_loop::scheduler>);

}  // namespace terrace::subset
