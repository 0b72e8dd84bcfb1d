#pragma once
// The functions of execution/io_uring_backend.hpp.
#include <liburing.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <utility>

#include "terrace/core/config.hpp"
#include "terrace/execution/io_uring_backend.hpp"

namespace terrace {

TERRACE_BODY result<std::unique_ptr<io_uring_backend>> io_uring_backend::open(unsigned entries) {
  std::unique_ptr<io_uring_backend> backend(new (std::nothrow) io_uring_backend);
  if (backend == nullptr) return fail(errc::out_of_memory, "no memory for an io_uring");
  int status = backend->setup_deferred(entries);
  if (status < 0) status = backend->setup(entries, 0);
  if (status < 0) return fail(errc::unavailable, "io_uring is not available", -status);
  if (!backend->knows_operations())
    return fail(errc::unavailable, "the kernel's io_uring lacks operations that are needed");
  return result<std::unique_ptr<io_uring_backend>>(std::move(backend));
}

TERRACE_BODY io_uring_backend::~io_uring_backend() {
  if (open_) ::io_uring_queue_exit(&ring_);
  if (event_ >= 0) ::close(event_);
}

TERRACE_BODY void io_uring_backend::cancel(io_operation& operation) noexcept {
  if (operation.in == &queued_)
    drop(operation);
  else if (operation.in == &in_flight_)
    move(operation, in_flight_, to_cancel_);
}

TERRACE_BODY void io_uring_backend::cancel_all() noexcept {
  while (!queued_.empty()) drop(queued_.front());
  while (!in_flight_.empty()) move(in_flight_.front(), in_flight_, to_cancel_);
}

TERRACE_BODY bool io_uring_backend::hand_over() noexcept {
  io_uring_sqe* entry = nullptr;
  while (!to_cancel_.empty() && (entry = free_entry()) != nullptr) {
    // The kernel takes entries in order, so this can only meet the operation itself, never one that has
    // come to lie at its address after it ended.
    ::io_uring_prep_cancel(entry, &to_cancel_.front(), 0);
    ::io_uring_sqe_set_data(entry, nullptr);
    move(to_cancel_.front(), to_cancel_, cancelled_);
  }
  while (!queued_.empty() && count_ < capacity_ && (entry = free_entry()) != nullptr) {
    io_operation& operation = queued_.pop_front();
    prepare(*entry, operation);
    in_flight_.push_back(operation);
    ++count_;
  }
  if (::io_uring_sq_ready(&ring_) != 0) ::io_uring_submit(&ring_);
  return ::io_uring_sq_ready(&ring_) == 0 || count_ > ::io_uring_sq_ready(&ring_);
}

TERRACE_BODY void io_uring_backend::collect(io_list& ended) noexcept {
  while (!dropped_.empty()) ended.push_back(dropped_.pop_front());
  if (reap(ended))
    signalled_ = true;
  else if (drain_event())
    reap(ended);  // an operation that ended after the first look may have made that write
}

TERRACE_BODY bool io_uring_backend::register_buffer([[maybe_unused]] mutable_bytes memory) noexcept {
#if defined(IORING_RSRC_REGISTER_SPARSE)
  if (memory.empty() || memory.size() > most_registered_bytes || !make_table()) return false;
  for (unsigned i = 0; i < registered_.size(); ++i)
    if (registered_[i].empty()) {
      if (!set_entry(i, memory)) return false;
      registered_[i] = memory;
      registered_end_ = std::max(registered_end_, i + 1);
      return true;
    }
#endif
  return false;
}

TERRACE_BODY void io_uring_backend::unregister_buffer([[maybe_unused]] mutable_bytes memory) noexcept {
#if defined(IORING_RSRC_REGISTER_SPARSE)
  for (unsigned i = 0; i < registered_.size(); ++i)
    if (!registered_[i].empty() && registered_[i].data() == memory.data() &&
        registered_[i].size() == memory.size()) {
      set_entry(i, {});
      registered_[i] = {};
      while (registered_end_ != 0 && registered_[registered_end_ - 1].empty()) --registered_end_;
      return;
    }
#endif
}

TERRACE_BODY int io_uring_backend::setup_deferred([[maybe_unused]] unsigned entries) noexcept {
#if defined(IORING_SETUP_DEFER_TASKRUN) && defined(IORING_SETUP_SINGLE_ISSUER)
  int status =
      setup(entries, IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG);
  if (status < 0) return status;
  event_ = ::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  status = event_ < 0 ? -errno : ::io_uring_register_eventfd(&ring_, event_);
  if (status >= 0) {
    audible_ = ::io_uring_cq_eventfd_toggle(&ring_, false) < 0;
  } else {
    if (event_ >= 0) ::close(event_);
    event_ = -1;
    ::io_uring_queue_exit(&ring_);
    open_ = false;
  }
  return status;
#else
  return -EINVAL;
#endif
}

TERRACE_BODY int io_uring_backend::setup(unsigned entries, unsigned flags) noexcept {
  io_uring_params parameters{};
  parameters.flags = flags;
  const int status = ::io_uring_queue_init_params(entries, &ring_, &parameters);
  open_ = status >= 0;
  capacity_ = parameters.cq_entries;
#if defined(IORING_POLL_ADD_MULTI)
  sleeps_ = (parameters.features & IORING_FEAT_EXT_ARG) != 0;  // waiting with a timeout takes no operation
#endif
  return status;
}

TERRACE_BODY int io_uring_backend::descriptor() noexcept {
  if (event_ < 0) return ring_.ring_fd;
  if (!audible_) {
    ::io_uring_cq_eventfd_toggle(&ring_, true);
    const std::uint64_t one = 1;  // for what has ended in silence
    [[maybe_unused]] const auto written = ::write(event_, &one, sizeof one);
    audible_ = signalled_ = true;
  }
  return event_;
}

TERRACE_BODY bool io_uring_backend::sleep([[maybe_unused]] std::chrono::steady_clock::time_point until,
                                          [[maybe_unused]] int wake) noexcept {
#if defined(IORING_POLL_ADD_MULTI)
  using std::chrono::steady_clock;
  if (io_uring_sqe* const entry = watching_ ? nullptr : ::io_uring_get_sqe(&ring_)) {
    ::io_uring_prep_poll_multishot(entry, wake, POLLIN);
    ::io_uring_sqe_set_data(entry, this);
    ::io_uring_submit(&ring_);
    watching_ = true;
  }
  if (!watching_ || ::io_uring_sq_ready(&ring_) != 0) return false;  // the kernel takes nothing now
  __kernel_timespec left{};
  if (until != steady_clock::time_point::max()) {
    const auto now = steady_clock::now();
    const std::int64_t nanoseconds = until <= now ? 0 : std::chrono::nanoseconds(until - now).count();
    left.tv_sec = nanoseconds / 1'000'000'000;
    left.tv_nsec = nanoseconds % 1'000'000'000;
  }
  io_uring_cqe* first = nullptr;
  ::io_uring_wait_cqes(&ring_, &first, 1, until == steady_clock::time_point::max() ? nullptr : &left,
                       nullptr);
  return true;
#else
  return false;
#endif
}

TERRACE_BODY bool io_uring_backend::make_table() noexcept {
  if (table_ == table::unknown)
    table_ = ::io_uring_register_buffers_sparse(&ring_, static_cast<unsigned>(registered_.size())) == 0
                 ? table::made
                 : table::refused;
  return table_ == table::made;
}

TERRACE_BODY bool io_uring_backend::set_entry(unsigned i, mutable_bytes memory) noexcept {
  const iovec range{memory.data(), memory.size()};
  const __u64 tag = 0;
  return ::io_uring_register_buffers_update_tag(&ring_, i, &range, &tag, 1) == 1;
}

TERRACE_BODY int io_uring_backend::registered_as(const std::byte* data, std::size_t bytes) const noexcept {
  for (unsigned i = 0; i < registered_end_; ++i) {
    const mutable_bytes memory = registered_[i];
    if (data >= memory.data() && bytes <= memory.size() &&
        static_cast<std::size_t>(data - memory.data()) <= memory.size() - bytes && !memory.empty())
      return static_cast<int>(i);
  }
  return -1;
}

TERRACE_BODY bool io_uring_backend::knows_operations() noexcept {
  io_uring_probe* const probe = ::io_uring_get_probe_ring(&ring_);
  if (probe == nullptr) return false;
  bool all = true;
  for (const int operation : {IORING_OP_READ, IORING_OP_WRITE, IORING_OP_READ_FIXED, IORING_OP_WRITE_FIXED,
                              IORING_OP_FSYNC, IORING_OP_ASYNC_CANCEL})
    all = all && ::io_uring_opcode_supported(probe, operation) != 0;
  ::io_uring_free_probe(probe);
  return all;
}

TERRACE_BODY bool io_uring_backend::reap(io_list& ended) noexcept {
  bool any = false;
  io_uring_cqe* batch[64];
  while (const unsigned n = ::io_uring_peek_batch_cqe(&ring_, batch, 64)) {
    any = true;
    for (unsigned i = 0; i < n; ++i) {
      void* const whose = ::io_uring_cqe_get_data(batch[i]);
      if (whose == this) woken(*batch[i]);
      if (whose == this || whose == nullptr)
        continue;  // nullptr: a cancellation; what it ends says so itself
      auto* const operation = static_cast<io_operation*>(whose);
      operation->result = batch[i]->res;
      operation->in->remove(*operation);
      ended.push_back(*operation);
      --count_;
    }
    ::io_uring_cq_advance(&ring_, n);
  }
  return any;
}

TERRACE_BODY void io_uring_backend::woken(const io_uring_cqe& completion) noexcept {
#if defined(IORING_POLL_ADD_MULTI)
  watching_ = (completion.flags & IORING_CQE_F_MORE) != 0;
#endif
  if (completion.res < 0) sleeps_ = false;  // a kernel without multishot polls
}

TERRACE_BODY bool io_uring_backend::drain_event() noexcept {
  if (!audible_ || (!signalled_ && ++empty_looks_ % 64 != 0)) return false;
  std::uint64_t count = 0;
  signalled_ = ::read(event_, &count, sizeof count) == sizeof count;
  return signalled_;
}

TERRACE_BODY io_uring_sqe* io_uring_backend::free_entry() noexcept {
  if (io_uring_sqe* const entry = ::io_uring_get_sqe(&ring_)) return entry;
  ::io_uring_submit(&ring_);
  return ::io_uring_get_sqe(&ring_);
}

TERRACE_BODY void io_uring_backend::prepare(io_uring_sqe& entry, io_operation& operation) const noexcept {
  const int fd = operation.request.fd;
  std::byte* const data = operation.next_data();
  const unsigned length = operation.next_length();
  const std::uint64_t offset = operation.next_offset();
  const int known = registered_as(data, length);
  switch (operation.request.what) {
    case io_request::kind::read:
      if (known >= 0)
        ::io_uring_prep_read_fixed(&entry, fd, data, length, offset, known);
      else
        ::io_uring_prep_read(&entry, fd, data, length, offset);
      break;
    case io_request::kind::write:
      if (known >= 0)
        ::io_uring_prep_write_fixed(&entry, fd, data, length, offset, known);
      else
        ::io_uring_prep_write(&entry, fd, data, length, offset);
      break;
    case io_request::kind::sync:
      ::io_uring_prep_fsync(&entry, fd, IORING_FSYNC_DATASYNC);
      break;
  }
  ::io_uring_sqe_set_data(&entry, &operation);
}

TERRACE_BODY void io_uring_backend::drop(io_operation& operation) noexcept {
  operation.result = -ECANCELED;
  move(operation, queued_, dropped_);
}

TERRACE_BODY void io_uring_backend::move(io_operation& operation, io_list& from, io_list& to) noexcept {
  from.remove(operation);
  to.push_back(operation);
}

}  // namespace terrace
