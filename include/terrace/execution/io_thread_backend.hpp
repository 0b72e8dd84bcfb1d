#pragma once
#include <sys/eventfd.h>

#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "terrace/core/config.hpp"
#include "terrace/execution/io_backend.hpp"

namespace terrace {

/// pread, pwrite and fdatasync on a few threads: what an io_ring uses where there is no io_uring. An operation that
/// waits for a thread can be cancelled; one that a thread is performing cannot.
class io_thread_backend final : public io_backend {
 public:
  /// Starts `threads` threads, or as many as the system gives; without any the owner does the work in
  /// submit().
  explicit io_thread_backend(unsigned threads);
  ~io_thread_backend() override;

  void submit(io_operation& operation) noexcept override;

  void cancel(io_operation& operation) noexcept override;

  void cancel_all() noexcept override;

  bool hand_over() noexcept override { return true; }

  void collect(io_list& ended) noexcept override;

  int descriptor() noexcept override { return event_; }
  bool is_io_uring() const noexcept override { return false; }

 private:
  void run() noexcept;

  static int perform(const io_operation& operation) noexcept;

  // Both with the mutex held. The descriptor is readable exactly while ended_ is not empty.
  void end(io_operation& operation) noexcept;
  void drop(io_operation& operation) noexcept;

  const int event_ = ::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  std::mutex mutex_;
  std::condition_variable work_;
  io_list waiting_;
  io_list ended_;
  bool finishing_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace terrace

#if !defined(TERRACE_PREBUILT)
#include "terrace/execution/io_thread_backend_body.hpp"  // IWYU pragma: export
#endif
