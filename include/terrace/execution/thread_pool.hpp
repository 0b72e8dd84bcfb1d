#pragma once
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "terrace/core/config.hpp"
#include "terrace/execution/task.hpp"

namespace terrace {

/// A few threads that run tasks in the order in which they were submitted: codecs, host copies, blocking I/O.
/// A pool of 0 threads is allowed: it runs each task at once on the thread that submits it.
class thread_pool {
 public:
  /// Starts `threads` threads. Where the system gives fewer, the pool is smaller: size() says how many there
  /// are.
  explicit thread_pool(unsigned threads) {
    threads_.reserve(threads);
    for (unsigned i = 0; i < threads && start_one(); ++i) {
    }
  }
  thread_pool(const thread_pool&) = delete;
  thread_pool& operator=(const thread_pool&) = delete;
  ~thread_pool() { finish(); }

  /// Queues `work`, from any thread. Precondition: it stays in place until it has run. O(1), no allocation.
  void submit(task& work) noexcept {
    {
      const std::lock_guard lock(mutex_);
      if (running_ != 0) {
        work.next = nullptr;
        *(head_ == nullptr ? &head_ : &tail_->next) = &work;
        tail_ = &work;
        ready_.notify_one();
        return;
      }
    }
    work();
  }

  /// Runs what is queued, ends the threads and waits for them. From then on the pool is one of 0 threads.
  /// Called by the pool's owner, never from a task.
  void finish() noexcept {
    {
      const std::lock_guard lock(mutex_);
      finishing_ = true;
      ready_.notify_all();
    }
    for (auto& thread : threads_) thread.join();
    threads_.clear();
  }

  /// Threads that the pool has. Constant until finish().
  unsigned size() const noexcept { return static_cast<unsigned>(threads_.size()); }

 private:
  bool start_one() noexcept {
    TERRACE_TRY {
      const std::lock_guard lock(mutex_);
      threads_.push_back(std::thread([this]() noexcept { run(); }));
      ++running_;
      return true;
    }
    TERRACE_CATCH_ALL { return false; }  // the system has no thread to give
  }

  void run() noexcept {
    std::unique_lock lock(mutex_);
    for (;;) {
      ready_.wait(lock, [this] { return head_ != nullptr || finishing_; });
      if (head_ == nullptr) break;
      task& work = *head_;
      head_ = work.next;
      lock.unlock();
      work();
      lock.lock();
    }
    --running_;
  }

  std::mutex mutex_;
  std::condition_variable ready_;
  task* head_ = nullptr;
  task* tail_ = nullptr;  // meaningful while head_ is set
  unsigned running_ = 0;  // threads that will still look at the queue
  bool finishing_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace terrace
