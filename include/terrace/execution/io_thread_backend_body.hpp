#pragma once
// The functions of execution/io_thread_backend.hpp.
#include <unistd.h>
#include <cerrno>
#include <cstdint>
#include <mutex>
#include <thread>

#include "terrace/core/config.hpp"
#include "terrace/execution/io_thread_backend.hpp"

namespace terrace {

TERRACE_BODY io_thread_backend::io_thread_backend(unsigned threads) {
  threads_.reserve(threads);
  for (unsigned i = 0; i < threads; ++i) {
    TERRACE_TRY {
      threads_.push_back(std::thread([this]() noexcept { run(); }));
    }
    TERRACE_CATCH_ALL { break; }
  }
}

TERRACE_BODY io_thread_backend::~io_thread_backend() {
  {
    const std::lock_guard lock(mutex_);
    finishing_ = true;
    work_.notify_all();
  }
  for (auto& thread : threads_) thread.join();
  if (event_ >= 0) ::close(event_);
}

TERRACE_BODY void io_thread_backend::submit(io_operation& operation) noexcept {
  if (threads_.empty()) operation.result = perform(operation);
  const std::lock_guard lock(mutex_);
  if (threads_.empty()) {
    end(operation);
  } else {
    waiting_.push_back(operation);
    work_.notify_one();
  }
}

TERRACE_BODY void io_thread_backend::cancel(io_operation& operation) noexcept {
  const std::lock_guard lock(mutex_);
  if (operation.in == &waiting_) drop(operation);
}

TERRACE_BODY void io_thread_backend::cancel_all() noexcept {
  const std::lock_guard lock(mutex_);
  while (!waiting_.empty()) drop(waiting_.front());
}

TERRACE_BODY void io_thread_backend::collect(io_list& ended) noexcept {
  const std::lock_guard lock(mutex_);
  if (ended_.empty()) return;
  std::uint64_t count = 0;
  if (event_ >= 0) [[maybe_unused]]
    const auto size = ::read(event_, &count, sizeof count);
  while (!ended_.empty()) ended.push_back(ended_.pop_front());
}

TERRACE_BODY void io_thread_backend::run() noexcept {
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

TERRACE_BODY int io_thread_backend::perform(const io_operation& operation) noexcept {
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

TERRACE_BODY void io_thread_backend::end(io_operation& operation) noexcept {
  const std::uint64_t one = 1;
  if (ended_.empty() && event_ >= 0) [[maybe_unused]]
    const auto size = ::write(event_, &one, sizeof one);
  ended_.push_back(operation);
}

TERRACE_BODY void io_thread_backend::drop(io_operation& operation) noexcept {
  waiting_.remove(operation);
  operation.result = -ECANCELED;
  end(operation);
}

}  // namespace terrace
