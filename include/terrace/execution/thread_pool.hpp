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
  explicit thread_pool(unsigned threads);
  thread_pool(const thread_pool&) = delete;
  thread_pool& operator=(const thread_pool&) = delete;
  ~thread_pool() { finish(); }

  /// Queues `work`, from any thread. Precondition: it stays in place until it has run. O(1), no allocation.
  void submit(task& work) noexcept;

  /// Runs what is queued, ends the threads and waits for them. From then on the pool is one of 0 threads.
  /// Called by the pool's owner, never from a task.
  void finish() noexcept;

  /// Threads that the pool has. Constant until finish().
  unsigned size() const noexcept { return static_cast<unsigned>(threads_.size()); }

 private:
  bool start_one() noexcept;

  void run() noexcept;

  std::mutex mutex_;
  std::condition_variable ready_;
  task* head_ = nullptr;
  task* tail_ = nullptr;  // meaningful while head_ is set
  unsigned running_ = 0;  // threads that will still look at the queue
  bool finishing_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace terrace

#if !defined(TERRACE_PREBUILT)
#include "terrace/execution/thread_pool_body.hpp"  // IWYU pragma: export
#endif
