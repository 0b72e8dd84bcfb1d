#pragma once
#include <algorithm>
#include <atomic>
#include <cstddef>
#include <forward_list>
#include <memory>

#include "terrace/execution/task.hpp"
#include "terrace/execution/thread_pool.hpp"

namespace terrace {

/// The machinery of context::parallel_for: indices are handed out by a counter, to the caller and to
/// whichever threads of the pool arrive in time. A helper that starts late finds nothing to do, so the state
/// of a round outlives the call; rounds are kept and used again once their last helper has gone.
class fork_join {
 public:
  /// Calls f(i) for each i in [0, n) and returns when all have ended. One thread at a time may call run().
  template <class F>
  void run(thread_pool& pool, std::size_t n, F& f) {
    static_assert(noexcept(f(n)),
                  "parallel_for needs a noexcept callable, as no thread could hand its exception back.");
    const std::size_t helpers = n < 2 ? 0 : std::min<std::size_t>(pool.size(), n - 1);
    if (helpers == 0) {
      for (std::size_t i = 0; i < n; ++i) f(i);
      return;
    }
    round& mine = free_round(pool.size());
    mine.begin(
        n, [](void* callable, std::size_t i) noexcept { (*static_cast<F*>(callable))(i); }, std::addressof(f),
        helpers);
    for (std::size_t i = 0; i < helpers; ++i) pool.submit(mine.helpers_[i]);
    mine.take_part();
    mine.join();
  }

 private:
  using function = void (*)(void*, std::size_t) noexcept;

  class round {
   public:
    explicit round(std::size_t helpers) : helpers_(std::make_unique<helper[]>(helpers)), capacity_(helpers) {
      for (std::size_t i = 0; i < helpers; ++i) helpers_[i].owner = this;
    }
    bool free(std::size_t helpers) const noexcept {
      return !active_ && capacity_ >= helpers && queued_.load(std::memory_order_acquire) == 0;
    }
    void begin(std::size_t n, function call, void* callable, std::size_t helpers) noexcept {
      active_ = true;
      n_ = n;
      call_ = call;
      callable_ = callable;
      next_.store(0, std::memory_order_relaxed);
      ended_.store(0, std::memory_order_relaxed);
      queued_.store(helpers, std::memory_order_relaxed);  // submit() publishes all of this
    }
    // The callable is alive while an index below n is held: join() waits for it. Past n it is not touched.
    void take_part() noexcept {
      std::size_t done = 0;
      for (std::size_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < n_; ++done)
        call_(callable_, i);
      if (done != 0 && ended_.fetch_add(done, std::memory_order_acq_rel) + done == n_) ended_.notify_one();
    }
    void join() noexcept {
      for (std::size_t seen; (seen = ended_.load(std::memory_order_acquire)) != n_;)
        ended_.wait(seen, std::memory_order_acquire);
      active_ = false;
    }

    struct helper : task {
      helper() noexcept : task(&help) {}
      static void help(task* self) noexcept {
        round& mine = *static_cast<helper*>(self)->owner;
        mine.take_part();
        mine.queued_.fetch_sub(1, std::memory_order_release);  // from here the round may be used again
      }
      round* owner = nullptr;
    };
    const std::unique_ptr<helper[]> helpers_;

   private:
    const std::size_t capacity_;
    bool active_ = false;  // only the owner touches it: keeps nested calls from taking this round
    std::size_t n_ = 0;
    function call_ = nullptr;
    void* callable_ = nullptr;
    std::atomic<std::size_t> next_{0};
    std::atomic<std::size_t> ended_{0};
    std::atomic<std::size_t> queued_{0};  // helpers that have not gone yet
  };

  round& free_round(std::size_t helpers) {
    for (round& candidate : rounds_)
      if (candidate.free(helpers)) return candidate;
    return rounds_.emplace_front(helpers);
  }

  std::forward_list<round> rounds_;  // they stay where they are
};

}  // namespace terrace
