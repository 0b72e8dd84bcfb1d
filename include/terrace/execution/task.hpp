#pragma once

namespace terrace {

/// An intrusive unit of work: a function and the link that queues it. Whoever derives from it owns the memory
/// and keeps it in place from the moment it is queued until it runs, so that queueing costs no allocation. It
/// runs once for each time that it is queued, and may be destroyed by its own function.
class task {
 public:
  using function = void (*)(task*) noexcept;

  explicit task(function run) noexcept : run_(run) {}
  task(const task&) = delete;  // queues hold its address
  task& operator=(const task&) = delete;

  void operator()() noexcept { run_(this); }

  task* next = nullptr;  ///< belongs to the queue that holds the task

 private:
  function run_;
};

}  // namespace terrace
