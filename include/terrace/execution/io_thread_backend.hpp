#pragma once
#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#include "terrace/core/config.hpp"
#include "terrace/execution/io_backend.hpp"

namespace terrace {

/// pread, pwrite and fdatasync on a few threads: what an io_ring uses where there is no io_uring. An
/// operation that waits for a thread can be cancelled, one that a thread is at cannot.
class io_thread_backend final : public io_backend {
 public:
  /// Starts `threads` threads, or as many as the system gives; without any the owner does the work in
  /// submit().
  explicit io_thread_backend(unsigned threads) {
    threads_.reserve(threads);
    for (unsigned i = 0; i < threads; ++i) {
      TERRACE_TRY {
        threads_.push_back(std::thread([this]() noexcept { run(); }));
      }
      TERRACE_CATCH_ALL { break; }
    }
  }
  ~io_thread_backend() override {
    {
      const std::lock_guard lock(mutex_);
      finishing_ = true;
      work_.notify_all();
    }
    for (auto& thread : threads_) thread.join();
    if (event_ >= 0) ::close(event_);
  }

  void submit(io_operation& operation) noexcept override {
    if (threads_.empty()) operation.result = perform(operation);
    const std::lock_guard lock(mutex_);
    if (threads_.empty()) {
      end(operation);
    } else {
      waiting_.push_back(operation);
      work_.notify_one();
    }
  }

  void cancel(io_operation& operation) noexcept override {
    const std::lock_guard lock(mutex_);
    if (operation.in == &waiting_) drop(operation);
  }

  void cancel_all() noexcept override {
    const std::lock_guard lock(mutex_);
    while (!waiting_.empty()) drop(waiting_.front());
  }

  bool hand_over() noexcept override { return true; }

  void collect(io_list& ended) noexcept override {
    const std::lock_guard lock(mutex_);
    if (ended_.empty()) return;
    std::uint64_t count = 0;
    if (event_ >= 0) [[maybe_unused]]
      const auto size = ::read(event_, &count, sizeof count);
    while (!ended_.empty()) ended.push_back(ended_.pop_front());
  }

  int descriptor() const noexcept override { return event_; }
  bool is_io_uring() const noexcept override { return false; }

 private:
  void run() noexcept {
    std::unique_lock lock(mutex_);
    for (;;) {
      work_.wait(lock, [this] { return !waiting_.empty() || finishing_; });
      if (waiting_.empty()) return;
      io_operation& operation = waiting_.pop_front();
      lock.unlock();
      const int result = perform(operation);
      lock.lock();
      operation.result = result;
      end(operation);
    }
  }

  static int perform(const io_operation& operation) noexcept {
    const io_request& request = operation.request;
    const std::size_t length = operation.next_length();
    const auto offset = static_cast<::off_t>(operation.next_offset());
    ::ssize_t status = 0;
    switch (request.what) {
      case io_request::kind::read:
        status = ::pread(request.fd, operation.next_data(), length, offset);
        break;
      case io_request::kind::write:
        status = ::pwrite(request.fd, operation.next_data(), length, offset);
        break;
      case io_request::kind::sync:
        status = ::fdatasync(request.fd);
        break;
    }
    return status < 0 ? -errno : static_cast<int>(status);
  }

  // Both with the mutex held. The descriptor is readable exactly while ended_ is not empty.
  void end(io_operation& operation) noexcept {
    const std::uint64_t one = 1;
    if (ended_.empty() && event_ >= 0) [[maybe_unused]]
      const auto size = ::write(event_, &one, sizeof one);
    ended_.push_back(operation);
  }
  void drop(io_operation& operation) noexcept {
    waiting_.remove(operation);
    operation.result = -ECANCELED;
    end(operation);
  }

  const int event_ = ::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  std::mutex mutex_;
  std::condition_variable work_;
  io_list waiting_;
  io_list ended_;
  bool finishing_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace terrace
