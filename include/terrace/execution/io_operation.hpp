#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "terrace/execution/task.hpp"

namespace terrace {

/// What is asked of a file.
struct io_request {
  enum class kind : std::uint8_t { read, write, sync };
  kind what = kind::sync;
  int fd = -1;
  std::byte* data = nullptr;  ///< a write only reads it
  std::size_t size = 0;
  std::uint64_t offset = 0;
};

class io_list;

/// A request on its way through an io_ring: the part of the operation that the ring and its back ends see. It
/// is in one list at a time, or in none.
class io_operation {
 public:
  enum class outcome : std::uint8_t { done, failed, stopped };

  explicit io_operation(const io_request& asked) noexcept : request(asked), hop(*this) {}
  io_operation(const io_operation&) = delete;  // lists and the kernel hold its address
  io_operation& operator=(const io_operation&) = delete;

  /// Unregisters the stop callback; afterwards it does not run.
  virtual void disarm() noexcept = 0;
  /// Completes the receiver as `how` and `result` say. The operation may be gone afterwards.
  virtual void complete() noexcept = 0;
  /// A stop that was requested on another thread has arrived at the owner.
  virtual void stop_arrived() noexcept = 0;

  /// What is still to be transferred, and the next call's share of it: results have 31 bits, so no call is
  /// for more than 1 GiB.
  std::size_t left() const noexcept { return request.size - transferred; }
  unsigned next_length() const noexcept {
    return static_cast<unsigned>(std::min<std::size_t>(left(), std::size_t{1} << 30));
  }
  std::byte* next_data() const noexcept { return request.data + transferred; }
  std::uint64_t next_offset() const noexcept { return request.offset + transferred; }

  /// Carries a stop from another thread to the owner.
  struct hop_task : task {
    explicit hop_task(io_operation& of) noexcept
        : task([](task* self) noexcept { static_cast<hop_task*>(self)->operation.stop_arrived(); }),
          operation(of) {}
    io_operation& operation;
  };

  io_request request;
  std::size_t transferred = 0;
  int result = 0;  ///< of the last call: bytes, or -errno
  outcome how = outcome::done;

  bool stop_wanted = false;  ///< the owner knows that it should stop
  bool hop_pending = false;  ///< set by the stop callback before it posts `hop`
  bool held = false;         ///< it has ended, and waits for `hop` to arrive before it is delivered
  hop_task hop;

  io_list* in = nullptr;  ///< the list that it is in
  io_operation* previous = nullptr;
  io_operation* next = nullptr;

 protected:
  ~io_operation() = default;
};

/// Operations in order, linked through themselves. Everything is O(1).
class io_list {
 public:
  bool empty() const noexcept { return first_ == nullptr; }
  /// Precondition: not empty.
  io_operation& front() noexcept { return *first_; }

  void push_back(io_operation& operation) noexcept {
    operation.in = this;
    operation.next = nullptr;
    operation.previous = last_;
    (last_ == nullptr ? first_ : last_->next) = &operation;
    last_ = &operation;
  }
  /// Precondition: not empty.
  io_operation& pop_front() noexcept {
    io_operation& operation = *first_;
    remove(operation);
    return operation;
  }
  /// Precondition: `operation` is in this list.
  void remove(io_operation& operation) noexcept {
    (operation.previous == nullptr ? first_ : operation.previous->next) = operation.next;
    (operation.next == nullptr ? last_ : operation.next->previous) = operation.previous;
    operation.in = nullptr;
  }

 private:
  io_operation* first_ = nullptr;
  io_operation* last_ = nullptr;
};

}  // namespace terrace
