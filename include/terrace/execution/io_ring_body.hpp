#pragma once
// The functions of execution/io_ring.hpp.
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <utility>

#include "terrace/core/config.hpp"
#include "terrace/execution/io_ring.hpp"

namespace terrace {
inline namespace TERRACE_EX {

TERRACE_BODY result<std::unique_ptr<io_ring>> io_ring::open(context& owner, options chosen) {
  if (chosen.entries < 1 || chosen.entries > 4096)
    return fail(errc::invalid_argument, "an io_ring has between 1 and 4096 entries");
  return std::unique_ptr<io_ring>(new io_ring(owner, open_backend(chosen)));
}

TERRACE_BODY io_ring& io_ring::of(context& owner) {
  static constexpr char kind = 0;
  if (event_source* const shared = owner.owned(&kind)) return static_cast<io_ring&>(*shared);
  return static_cast<io_ring&>(
      owner.own(std::unique_ptr<event_source>(new io_ring(owner, open_backend(options{}))), &kind));
}

TERRACE_BODY std::unique_ptr<io_backend> io_ring::open_backend(const options& chosen) {
  if (!chosen.force_fallback) {
    int reason = 0;
#if __has_include(<liburing.h>)
    if (std::getenv("TERRACE_NO_IO_URING") ==
        nullptr) {  // set it to see how a machine without io_uring fares
      auto ring = io_uring_backend::open(chosen.entries);
      if (ring) return std::move(*ring);
      reason = ring.error().system;
    }
#endif
    [[maybe_unused]] static const bool said_once =
        std::fprintf(stderr,
                     "terrace: io_uring is not available%s%s, so files are read and written by threads.\n",
                     reason != 0 ? ": " : "", reason != 0 ? std::strerror(reason) : "") > 0;
  }
  return std::make_unique<io_thread_backend>(4);
}

TERRACE_BODY io_ring::~io_ring() {
  closing_ = true;
  backend_->cancel_all();
  while (pending_ != 0 || retry_.queued) context_.wait(context::clock::time_point::max());
  context_.detach(*this);
}

TERRACE_BODY io_sender io_ring::read(int fd, mutable_bytes into, std::uint64_t offset) noexcept {
  return {*this, {io_request::kind::read, fd, into.data(), into.size(), offset}};
}
TERRACE_BODY io_sender io_ring::write(int fd, const_bytes from, std::uint64_t offset) noexcept {
  return {*this, {io_request::kind::write, fd, const_cast<std::byte*>(from.data()), from.size(), offset}};
}
TERRACE_BODY io_sender io_ring::fsync(int fd) noexcept {
  return {*this, {io_request::kind::sync, fd, nullptr, 0, 0}};
}

TERRACE_BODY std::size_t io_ring::poll() noexcept {
  backend_->hand_over();
  backend_->collect(ended_);
  std::size_t delivered = 0;
  while (!ended_.empty()) delivered += settle(ended_.pop_front()) ? 1 : 0;
  if (!backend_->hand_over() && !retry_.queued) {  // hands over what the completions have started
    retry_.queued = true;
    context_.post(retry_);
  }
  return delivered;
}

TERRACE_BODY void io_ring::begin(io_operation& operation) noexcept {
  TERRACE_ASSERT(context_.on_owner_thread(), "I/O was started by a thread that does not own its context");
  ++pending_;
  // io_uring takes an offset of -1 for the file's own position, which nobody has asked for.
  const bool possible =
      operation.request.offset <= INT64_MAX && operation.request.size <= INT64_MAX - operation.request.offset;
  if (possible && !closing_) return backend_->submit(operation);
  operation.result = possible ? -ECANCELED : -EINVAL;
  ended_.push_back(operation);
}

// The stop callback: any thread.
TERRACE_BODY void io_ring::request_stop(io_operation& operation) noexcept {
  if (context_.on_owner_thread()) return stop(operation);
  operation.hop_pending = true;
  context_.post(operation.hop);
}

TERRACE_BODY void io_ring::stop(io_operation& operation) noexcept {
  operation.stop_wanted = true;
  backend_->cancel(operation);
}

TERRACE_BODY void io_ring::stop_arrived(io_operation& operation) noexcept {
  operation.hop_pending = false;
  if (operation.held)
    deliver(operation);
  else
    stop(operation);
}

// Whether the operation was delivered. A short transfer continues instead, and an operation whose stop is still on
// its way from another thread is held until it arrives, because `hop` lives in the operation.
TERRACE_BODY bool io_ring::settle(io_operation& operation) noexcept {
  if (!judge(operation)) {
    backend_->submit(operation);
    return false;
  }
  operation.disarm();
  operation.held = operation.hop_pending;
  if (operation.held) return false;
  deliver(operation);
  return true;
}

// Whether the operation is over; if so, how it ended.
TERRACE_BODY bool io_ring::judge(io_operation& operation) noexcept {
  using outcome = io_operation::outcome;
  const bool stopping = operation.stop_wanted || closing_;
  if (operation.result > 0) operation.transferred += static_cast<std::size_t>(operation.result);
  if (operation.result >= 0 && operation.left() == 0) {
    operation.how = outcome::done;
  } else if (operation.result > 0 || operation.result == -EINTR || operation.result == -ECANCELED) {
    if (!stopping && operation.result != -ECANCELED) return false;
    operation.how = stopping ? outcome::stopped : outcome::failed;
  } else {
    operation.how = outcome::failed;
  }
  return true;
}

TERRACE_BODY error io_ring::failure_of(const io_operation& operation) noexcept {
  const bool too_short = operation.request.what == io_request::kind::read && operation.result == 0;
  return {too_short ? errc::corrupt : errc::io_error, sentence(operation), -operation.result};
}

TERRACE_BODY const char* io_ring::sentence(const io_operation& operation) noexcept {
  if (operation.result == -ECANCELED) return "a transfer was cancelled by the system";
  switch (operation.request.what) {
    case io_request::kind::read:
      return operation.result == 0 ? "the file ends before the bytes that were to be read" : "a read failed";
    case io_request::kind::write:
      return operation.result == 0 ? "the file takes no more bytes" : "a write failed";
    case io_request::kind::sync:
      return "making a file durable failed";
  }
  return "";
}

TERRACE_BODY void io_ring::deliver(io_operation& operation) noexcept {
  --pending_;
  operation.complete();
}

}  // namespace TERRACE_EX
}  // namespace terrace
