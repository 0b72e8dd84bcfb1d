#pragma once
// Included only where <liburing.h> exists; link with -luring.
#include <liburing.h>

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "terrace/core/error.hpp"
#include "terrace/execution/io_backend.hpp"

namespace terrace {

/// The kernel's io_uring, driven by the owner thread. Submissions are batched: one system call hands over everything
/// started since the last one. No more operations are in flight than the completion queue holds.
class io_uring_backend final : public io_backend {
 public:
  /// Opens a ring of `entries` submission entries. Errors: unavailable where the kernel or a container
  /// refuses io_uring, or does not know the operations that are needed.
  static result<std::unique_ptr<io_uring_backend>> open(unsigned entries);
  ~io_uring_backend() override;

  void submit(io_operation& operation) noexcept override { queued_.push_back(operation); }

  void cancel(io_operation& operation) noexcept override;

  void cancel_all() noexcept override;

  bool hand_over() noexcept override;

  void collect(io_list& ended) noexcept override;

  int descriptor() noexcept override;

  // One call waits for completions and for `wake`, which a poll operation of the ring watches.
  bool sleeps() const noexcept override { return sleeps_; }
  bool sleep(std::chrono::steady_clock::time_point until, int wake) noexcept override;

  bool is_io_uring() const noexcept override { return true; }

  bool register_buffer([[maybe_unused]] mutable_bytes memory) noexcept override;
  void unregister_buffer([[maybe_unused]] mutable_bytes memory) noexcept override;

 private:
  io_uring_backend() = default;

  // Completions are processed only when the owner asks for them: nothing interrupts its computing or its system
  // calls. In this mode the kernel does not wake whoever polls the ring's own descriptor, so an eventfd stands in for
  // it. It is silent until somebody asks for the descriptor, because most owners sleep in the ring.
  int setup_deferred([[maybe_unused]] unsigned entries) noexcept;

  int setup(unsigned entries, unsigned flags) noexcept;

#if defined(IORING_RSRC_REGISTER_SPARSE)
  // The kernel's table of registered buffers, empty at first: it can be made only once.
  bool make_table() noexcept;
  bool set_entry(unsigned i, mutable_bytes memory) noexcept;
#endif

  // The entry of the registered buffer that contains these bytes; -1 if none contains all of them. O(registered
  // buffers).
  int registered_as(const std::byte* data, std::size_t bytes) const noexcept;

  bool knows_operations() noexcept;

  bool reap(io_list& ended) noexcept;

  // The poll operation has reported: notes whether it goes on, and whether the kernel supports it at all.
  void woken(const io_uring_cqe& completion) noexcept;

  // Makes the eventfd unreadable; returns whether it was readable. Called only when nothing has ended, so that a busy
  // ring costs no system call here. The kernel may write it shortly after the completion becomes visible: hence the
  // occasional look, without which such a late write would keep the owner from sleeping.
  bool drain_event() noexcept;

  io_uring_sqe* free_entry() noexcept;

  void prepare(io_uring_sqe& entry, io_operation& operation) const noexcept;

  void drop(io_operation& operation) noexcept;
  static void move(io_operation& operation, io_list& from, io_list& to) noexcept;

  static constexpr std::size_t most_registered_bytes = std::size_t{1}
                                                       << 30;  // the kernel's limit for one buffer

  io_uring ring_{};
  std::array<mutable_bytes, 16> registered_{};  // by entry of the kernel's table; empty: free
  unsigned registered_end_ = 0;                 // no entry from here on is in use
  enum class table : std::uint8_t { unknown, made, refused } table_ = table::unknown;
  bool open_ = false;
  int event_ = -1;          // -1: the ring's own descriptor will do
  bool audible_ = false;    // the kernel writes event_
  bool signalled_ = false;  // event_ may have been written since it was last found unreadable
  bool sleeps_ = false;
  bool watching_ = false;  // the kernel has the poll operation
  unsigned empty_looks_ = 0;
  unsigned capacity_ = 0;  // of the completion queue
  unsigned count_ = 0;     // operations that the ring has: in_flight_, to_cancel_ and cancelled_
  io_list queued_;
  io_list in_flight_;
  io_list to_cancel_;  // in flight, and the cancellation is not handed over yet
  io_list cancelled_;  // in flight, and the kernel knows that it should end
  io_list dropped_;    // ended without having been in flight
};

}  // namespace terrace

#if !defined(TERRACE_PREBUILT)
#include "terrace/execution/io_uring_backend_body.hpp"  // IWYU pragma: export
#endif
