#pragma once
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <memory>
#include <thread>
#include <vector>

#include "terrace/core/config.hpp"
#include "terrace/execution/backend.hpp"
#include "terrace/execution/event_source.hpp"
#include "terrace/execution/fork_join.hpp"
#include "terrace/execution/task.hpp"
#include "terrace/execution/thread_pool.hpp"
#include "terrace/execution/time_source.hpp"

namespace terrace {

class trace_log;

/// The run loop of caches and their I/O. The thread that constructs it owns it: completions run only there, in poll()
/// and wait(), so what they touch needs no lock. Other threads reach the owner with post().
///
///     context ctx{{.codec_threads = 1}};
///     auto done = ctx.sync_wait(sender);   // or, in an engine's own loop: ctx.poll() once a step
///
/// All members are for the owner thread unless they say otherwise. Completions may call any of them, including poll()
/// and wait().
class context {
 public:
  using clock = std::chrono::steady_clock;

  struct options {
    unsigned codec_threads = 1;   ///< threads of pool(); 0 does the pool's work on the owner
    time_source* time = nullptr;  ///< where now() gets the time, for tests; nullptr: the machine's clock
  };

  context() : context(options{}) {}
  explicit context(options chosen) : time_(chosen.time), pool_(chosen.codec_threads) {}
  context(const context&) = delete;  // tasks and sources hold its address
  context& operator=(const context&) = delete;

  /// Finishes the pool's work, runs what was posted, then destroys the sources that it owns, newest first.
  /// Precondition: sources that it does not own are detached.
  ~context();

  /// The time that deadlines are compared with.
  clock::time_point now() const noexcept { return time_ == nullptr ? clock::now() : time_->now(); }

  /// Runs what was posted and polls the sources, which also hands their queued work to the devices. Never
  /// blocks. Returns how many completions ran. O(sources + completions).
  std::size_t poll() noexcept;

  /// Blocks until at least one completion ran (true) or the deadline passed (false). time_point::max() waits forever.
  /// Sleeps in the source that has work pending, or on descriptors; spins only while a source without a descriptor
  /// has work pending.
  bool wait(clock::time_point deadline) noexcept;

  /// A descriptor for the engine's own loop, readable while poll() has something to run or to hand over. Call poll()
  /// once before sleeping on it, to hand over queued work. Sources without a descriptor cannot make it readable. -1
  /// where the system provides none. The first call creates it.
  int descriptor() const noexcept;

  /// Queues `work` for the owner. Any thread; lock-free; no allocation. A system call only if the owner may
  /// be asleep. Precondition: `work` stays in place until it has run.
  void post(task& work) noexcept;

  /// Makes `source` part of poll() and wait() until detach(). Precondition: it stays in place until then.
  void attach(event_source& source);
  void detach(event_source& source) noexcept;

  /// Keeps `source` alive as long as the context; it attaches itself. `kind` is the address of any object that
  /// identifies the kind of source; owned() finds the source by it.
  event_source& own(std::unique_ptr<event_source> source, const void* kind);
  /// The source that was owned as `kind`, or nullptr. O(owned sources).
  event_source* owned(const void* kind) const noexcept;

  /// The threads for codecs and host copies.
  thread_pool& pool() noexcept { return pool_; }

  /// Calls f(i) for each i in [0, n), each once, on the owner and on threads of the pool, and returns when
  /// all have ended. The owner takes part, and never waits for a thread that has not begun: a busy pool costs
  /// parallelism, not progress. Precondition: f is noexcept and may run on several threads at once. No
  /// allocation in steady state.
  template <class F>
  void parallel_for(std::size_t n, F f) {
    forks_.run(pool_, n, f);
  }

  /// Records what happens from here on in `log` (observe/trace_log.hpp); nullptr, the initial value: nothing is
  /// recorded. A log must stay until what was under way has ended, even after it is detached.
  void trace(trace_log* log) noexcept { trace_ = log; }
  trace_log* trace() const noexcept { return trace_; }

  /// Whether nothing is posted and no source has anything pending. Work that the pool still runs does not count.
  bool idle() const noexcept;

  /// Whether the calling thread is the owner. Any thread.
  bool on_owner_thread() const noexcept { return std::this_thread::get_id() == owner_; }

  /// A scheduler whose schedule() completes on the owner, in poll() or wait(), with set_value() or, where the
  /// receiver was asked to stop, set_stopped(). Defined in "terrace/execution/scheduler.hpp".
  template <class Backend = ex_backend>
  auto get_scheduler() noexcept;

  /// Starts `sender`, drives the context until it completes, and returns basic_result<T, E>. T is void for no value,
  /// the type of a single value, or a std::tuple of several. E is the sender's only error type, the one that all
  /// others convert to, or terrace::error if it has no error. set_stopped() becomes E{error{errc::stopped, ...}}.
  /// Exceptions from the caller's own callables are rethrown. Defined in "terrace/execution/sync_wait.hpp".
  template <class Sender, class Backend = ex_backend>
  auto sync_wait(Sender&& sender);

 private:
  // The value of posted_ while nothing is posted and the owner may sleep: whoever replaces it must wake the owner.
  task* asleep() const noexcept { return &asleep_; }
  bool fall_asleep() const noexcept;
  void arm() const noexcept;
  void stay_awake() const noexcept;
  void signal() const noexcept;
  void drain_signal() noexcept;
  void take_posted() noexcept;
  event_source* sleeper() const noexcept;
  void block(clock::time_point deadline, event_source* device) noexcept;
  clock::time_point next_due(clock::time_point at_latest) const noexcept;
  bool must_spin() const noexcept;
  void watch(int descriptor) const noexcept;
  void forget_detached() noexcept;

  time_source* const time_;
  const std::thread::id owner_ = std::this_thread::get_id();
  const int event_ = ::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);  // -1: nobody can wake the owner, so it naps
  mutable int epoll_ = -1;                      // the descriptor of the engine's loop, once asked for
  mutable std::atomic<task*> posted_{nullptr};  // a stack, newest first
  mutable task asleep_{[](task*) noexcept {}};
  mutable bool armed_ = false;             // posted_ has been asleep() since the last poll()
  mutable std::uint64_t signals_due_ = 0;  // writes to event_, done or about to be, that have not been read

  task* ready_ = nullptr;  // posted tasks in order; a member, so that a nested poll() goes on with them
  task* ready_tail_ = nullptr;
  unsigned depth_ = 0;                  // nested calls of poll()
  std::vector<event_source*> sources_;  // nullptr: detached while poll() goes over them
  std::vector<pollfd> watched_;         // scratch of block()
  struct owned_source {
    const void* kind;
    std::unique_ptr<event_source> source;
  };
  std::vector<owned_source> owned_;
  trace_log* trace_ = nullptr;
  fork_join forks_;
  thread_pool pool_;
};

}  // namespace terrace

#if !defined(TERRACE_PREBUILT)
#include "terrace/execution/context_body.hpp"  // IWYU pragma: export
#endif
