#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <utility>

#include "terrace/core/bytes.hpp"
#include "terrace/core/error.hpp"
#include "terrace/execution/context.hpp"
#include "terrace/execution/ex.hpp"
#include "terrace/execution/io_operation.hpp"
#include "terrace/execution/io_thread_backend.hpp"
#if __has_include(<liburing.h>)
#include "terrace/execution/io_uring_backend.hpp"
#endif

namespace terrace {
inline namespace TERRACE_EX {

class io_sender;

/// File I/O of one context: io_uring, or a few threads that call pread and pwrite if liburing is absent, the kernel
/// or a container refuses io_uring, or the environment has TERRACE_NO_IO_URING. The difference shows only in speed.
/// Link with -luring where <liburing.h> exists.
///
/// The senders complete on the owner thread, in poll() or wait(), with
///  - set_value() once all bytes are transferred; short transfers are continued inside;
///  - set_error(terrace::error{errc::io_error, ..., errno}); or errc::corrupt, where the file ends inside a read's
///  range: what was written there is gone;
///  - set_stopped() where the receiver's stop token asked for it and the transfer was not over yet.
/// Whatever the completion, the device has let go of the buffer by then. Start senders on the owner thread; stop them
/// from any. Operations that the device has no room for wait in a list of the ring: none is ever refused.
class io_ring final : public event_source {
 public:
  struct options {
    unsigned entries =
        256;  ///< submission queue entries; at most twice as many operations are with the kernel
    bool force_fallback = false;  ///< use the threads even where io_uring works
  };

  /// Opens a ring on `owner` and attaches it there. Call on the owner thread. Errors: invalid_argument for
  /// entries outside [1, 4096].
  static result<std::unique_ptr<io_ring>> open(context& owner, options chosen);
  static result<std::unique_ptr<io_ring>> open(context& owner) { return open(owner, options{}); }

  /// The ring that everything on `owner` shares: opened by the first call, owned by the context.
  static io_ring& of(context& owner);

  /// Stops what is in flight, waits until the device has let go of it, and detaches the ring.
  ~io_ring() override;

  /// Reads into.size() bytes of `fd` from `offset` on.
  io_sender read(int fd, mutable_bytes into, std::uint64_t offset) noexcept;
  /// Writes from.size() bytes to `fd` from `offset` on.
  io_sender write(int fd, const_bytes from, std::uint64_t offset) noexcept;
  /// Makes what was written to `fd` durable (fdatasync): all writes that completed before it was started.
  io_sender fsync(int fd) noexcept;

  /// Announces that transfers will often use `memory`: its pages are mapped and pinned once, instead of in each
  /// transfer. This helps every buffer that lies inside it. False if the kernel does not support it or may not pin so
  /// much (RLIMIT_MEMLOCK), or `memory` is larger than 1 GiB: transfers work all the same. Precondition: until
  /// unregister_buffer(), `memory` is not unmapped, and its pages are not given back by madvise() while transfers use
  /// it: the transfers would go to pages that nobody sees any more.
  bool register_buffer(mutable_bytes memory) noexcept { return backend_->register_buffer(memory); }
  /// Undoes register_buffer(memory); no effect if it was not registered. Transfers in flight end as they began.
  void unregister_buffer(mutable_bytes memory) noexcept { backend_->unregister_buffer(memory); }

  /// Whether the kernel's io_uring does the work, rather than the threads.
  bool uses_io_uring() const noexcept { return backend_->is_io_uring(); }

  std::size_t poll() noexcept override;
  std::size_t pending() const noexcept override { return pending_; }
  int descriptor() const noexcept override { return backend_->descriptor(); }
  bool sleeps() const noexcept override { return backend_->sleeps(); }
  bool sleep(context::clock::time_point until, int wake) noexcept override {
    return backend_->sleep(until, wake);
  }

 private:
  template <class R>
  friend class io_transfer;

  io_ring(context& owner, std::unique_ptr<io_backend> backend)
      : context_(owner), backend_(std::move(backend)) {
    context_.attach(*this);
  }
  static std::unique_ptr<io_backend> open_backend(const options& chosen);

  void begin(io_operation& operation) noexcept;
  void request_stop(io_operation& operation) noexcept;
  void stop(io_operation& operation) noexcept;
  void stop_arrived(io_operation& operation) noexcept;
  bool settle(io_operation& operation) noexcept;
  bool judge(io_operation& operation) noexcept;
  static error failure_of(const io_operation& operation) noexcept;
  static const char* sentence(const io_operation& operation) noexcept;
  void deliver(io_operation& operation) noexcept;

  context& context_;
  std::unique_ptr<io_backend> backend_;
  std::size_t pending_ = 0;  // started and not delivered
  io_list ended_;            // a member, so that a nested poll() goes on with it
  bool closing_ = false;
  // Keeps the context from sleeping while the device takes nothing and has nothing that could wake it.
  struct retry_task : task {
    retry_task() noexcept
        : task([](task* self) noexcept { static_cast<retry_task*>(self)->queued = false; }) {}
    bool queued = false;
  };
  retry_task retry_;
};

/// The operation state of io_ring's senders. Immovable; it holds the request's state and does not allocate.
template <class R>
class io_transfer final : public io_operation {
 public:
  using operation_state_concept = ex::operation_state_t;
  io_transfer(io_ring& ring, const io_request& asked, R&& target) noexcept
      : io_operation(asked), ring_(ring), target_(std::move(target)) {}

  /// Precondition: on the owner thread.
  void start() noexcept {
    const auto token = ex::get_stop_token(ex::get_env(target_));
    if (token.stop_requested()) return ex::set_stopped(std::move(target_));
    ring_.begin(*this);
    on_stop_.emplace(token,
                     forward_stop{this});  // may call back at once, but nothing completes before poll()
  }

 private:
  struct forward_stop {
    io_transfer* operation;
    void operator()() const noexcept { operation->ring_.request_stop(*operation); }
  };

  void disarm() noexcept override { on_stop_.reset(); }
  void stop_arrived() noexcept override { ring_.stop_arrived(*this); }
  void complete() noexcept override {
    switch (how) {
      case outcome::done:
        return ex::set_value(std::move(target_));
      case outcome::failed:
        return ex::set_error(std::move(target_), io_ring::failure_of(*this));
      case outcome::stopped:
        return ex::set_stopped(std::move(target_));
    }
  }

  io_ring& ring_;
  R target_;
  std::optional<ex::stop_callback_for_t<ex::stop_token_of_t<ex::env_of_t<R>>, forward_stop>> on_stop_;
};

/// A transfer that has not begun: set_value(), set_error(terrace::error) or set_stopped(), as io_ring says.
class io_sender {
 public:
  using sender_concept = ex::sender_t;
  static constexpr bool completes_after_start = true;  ///< see sender_traits.hpp
  io_sender(io_ring& ring, const io_request& asked) noexcept : ring_(&ring), request_(asked) {}

  template <class Self, class... E>
  static consteval auto get_completion_signatures() {
    return ex::completion_signatures<ex::set_value_t(), ex::set_error_t(error), ex::set_stopped_t()>{};
  }
  template <class R>
  io_transfer<R> connect(R target) const noexcept {
    return {*ring_, request_, std::move(target)};
  }

 private:
  io_ring* ring_;
  io_request request_;
};

}  // namespace TERRACE_EX
}  // namespace terrace

#if !defined(TERRACE_PREBUILT)
#include "terrace/execution/io_ring_body.hpp"  // IWYU pragma: export
#endif
