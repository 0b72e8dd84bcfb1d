#pragma once
// The functions of execution/thread_pool.hpp.
#include <mutex>
#include <thread>

#include "terrace/core/config.hpp"
#include "terrace/execution/thread_pool.hpp"

namespace terrace {

TERRACE_BODY thread_pool::thread_pool(unsigned threads) {
  threads_.reserve(threads);
  for (unsigned i = 0; i < threads && start_one(); ++i) {
  }
}

TERRACE_BODY void thread_pool::submit(task& work) noexcept {
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

TERRACE_BODY void thread_pool::finish() noexcept {
  {
    const std::lock_guard lock(mutex_);
    finishing_ = true;
    ready_.notify_all();
  }
  for (auto& thread : threads_) thread.join();
  threads_.clear();
}

TERRACE_BODY bool thread_pool::start_one() noexcept {
  TERRACE_TRY {
    const std::lock_guard lock(mutex_);
    threads_.push_back(std::thread([this]() noexcept { run(); }));
    ++running_;
    return true;
  }
  TERRACE_CATCH_ALL { return false; }  // the system has no thread to give
}

TERRACE_BODY void thread_pool::run() noexcept {
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

}  // namespace terrace
