#pragma once
#include <chrono>

#include "terrace/core/bytes.hpp"
#include "terrace/execution/io_operation.hpp"

namespace terrace {

/// What does the work of an io_ring. Called by the owner thread only. Each operation that is submitted comes
/// back through collect() exactly once, with `result` set; until then the device may use its buffer.
class io_backend {
 public:
  io_backend() = default;
  io_backend(const io_backend&) = delete;
  io_backend& operator=(const io_backend&) = delete;
  virtual ~io_backend() = default;

  /// Takes `operation`. The device gets it in hand_over() at the latest, or once it has room.
  virtual void submit(io_operation& operation) noexcept = 0;
  /// Asks the device to let go of `operation`: it ends with -ECANCELED, or as if nothing had been asked. No effect if
  /// it has ended already.
  virtual void cancel(io_operation& operation) noexcept = 0;
  /// cancel() for everything that has not ended.
  virtual void cancel_all() noexcept = 0;
  /// Gives the device what it has room for. False if it took nothing and nothing is in flight that could wake the
  /// owner: then the owner must call again by itself.
  virtual bool hand_over() noexcept = 0;
  /// Moves what has ended to the end of `ended`.
  virtual void collect(io_list& ended) noexcept = 0;
  /// Readable while collect() would find something; -1 where it must be polled.
  virtual int descriptor() noexcept = 0;
  /// As in event_source.
  virtual bool sleeps() const noexcept { return false; }
  virtual bool sleep([[maybe_unused]] std::chrono::steady_clock::time_point until,
                     [[maybe_unused]] int wake) noexcept {
    return false;
  }
  virtual bool is_io_uring() const noexcept = 0;
  /// See io_ring::register_buffer and unregister_buffer.
  virtual bool register_buffer(mutable_bytes) noexcept { return false; }
  virtual void unregister_buffer(mutable_bytes) noexcept {}
};

}  // namespace terrace
