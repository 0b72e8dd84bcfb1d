#pragma once

namespace terrace {

/// An intrusive unit of work: a function and the link that queues it. The deriving class owns the memory and keeps it
/// in place from the moment it is queued until it runs, so queueing needs no allocation. It runs once each time it is
/// queued, and its own function may destroy it.
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
