#pragma once
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <thread>
#include <utility>
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

/// The run loop that caches and their I/O live on. The thread that constructs it owns it: completions run
/// there, in poll() and wait() and nowhere else, so that what they touch needs no lock. Other threads reach
/// the owner by post().
///
///     context ctx{{.codec_threads = 1}};
///     auto done = ctx.sync_wait(sender);   // or, in an engine's own loop: ctx.poll() once a step
///
/// All members are for the owner thread, unless they say otherwise. Completions may call any of them, poll()
/// and wait() included.
class context {
 public:
  using clock = std::chrono::steady_clock;

  struct options {
    unsigned codec_threads = 1;   ///< threads of pool(); 0 does the pool's work on the owner
    time_source* time = nullptr;  ///< what now() says, for tests; nullptr: the machine's clock
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

  /// Blocks until at least one completion ran (true) or the deadline passed (false). time_point::max() waits
  /// forever. It sleeps on descriptors, and spins only while a source without one has work pending.
  bool wait(clock::time_point deadline) noexcept;

  /// A descriptor for the engine's own loop, readable while poll() has something to run. Call poll() once
  /// before sleeping on it, because that hands queued work over; sources without a descriptor cannot wake it.
  /// -1 where the system gives none. The first call creates it.
  int descriptor() const noexcept;

  /// Queues `work` for the owner. Any thread; lock-free; no allocation. A system call only if the owner may
  /// be asleep. Precondition: `work` stays in place until it has run.
  void post(task& work) noexcept;

  /// Makes `source` part of poll() and wait() until detach(). Precondition: it stays in place until then.
  void attach(event_source& source);
  void detach(event_source& source) noexcept;

  /// Keeps `source` alive as long as the context; it attaches itself. `kind` is the address of any object
  /// that stands for the kind of source, so that owned() finds it again.
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

  /// Where what happens from here on is recorded (observe/trace_log.hpp); nullptr, as at first: nowhere. A log
  /// stays until what was under way has ended, detached or not.
  void trace(trace_log* log) noexcept { trace_ = log; }
  trace_log* trace() const noexcept { return trace_; }

  /// Nothing is posted and nothing is pending at the sources. Work that the pool still runs does not show
  /// here.
  bool idle() const noexcept;

  /// Whether the calling thread is the owner. Any thread.
  bool on_owner_thread() const noexcept { return std::this_thread::get_id() == owner_; }

  /// A scheduler whose schedule() completes on the owner, in poll() or wait(), with set_value() or, where the
  /// receiver was asked to stop, set_stopped(). Defined in "terrace/execution/scheduler.hpp".
  template <class Backend = ex_backend>
  auto get_scheduler() noexcept;

  /// Starts `sender`, drives the context until it completes, and returns basic_result<T, E>. T is void for no
  /// value, the type of a single value, std::tuple of several. E is the sender's only error type, the one
  /// that all others convert to, or terrace::error where it has none. set_stopped() becomes
  /// E{error{errc::stopped, ...}}. An exception of the caller's own callables comes out as it was. Defined in
  /// "terrace/execution/sync_wait.hpp".
  template <class Sender, class Backend = ex_backend>
  auto sync_wait(Sender&& sender);

 private:
  // What stands in posted_ while nothing is posted and the owner may sleep: whoever replaces it must wake the
  // owner.
  task* asleep() const noexcept { return &asleep_; }
  bool fall_asleep() const noexcept;
  void arm() const noexcept;
  void signal() const noexcept;
  void drain_signal() noexcept;
  void take_posted() noexcept;
  void block(clock::time_point deadline) noexcept;
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
  mutable bool armed_ = false;       // posted_ has been asleep() since the last poll()
  mutable bool signal_due_ = false;  // event_ has been written, or is about to be, and not been read since

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

inline context::~context() {
  pool_.finish();  // from here the pool's work runs at once, so nothing arrives from other threads of ours
  while (poll() != 0) {
  }
  while (!owned_.empty()) {
    owned_.back().source.reset();
    owned_.pop_back();
  }
  while (poll() != 0) {
  }
  TERRACE_ASSERT(sources_.empty(), "an event source is still attached to a context that ends");
  if (epoll_ >= 0) ::close(epoll_);
  if (event_ >= 0) ::close(event_);
}

inline std::size_t context::poll() noexcept {
  TERRACE_ASSERT(on_owner_thread(), "a context was polled by a thread that does not own it");
  ++depth_;
  take_posted();
  drain_signal();
  std::size_t ran = 0;
  while (ready_ != nullptr) {
    task& work = *ready_;
    ready_ = work.next;
    work();
    ++ran;
  }
  for (std::size_t i = 0; i < sources_.size(); ++i)  // completions may attach and detach
    if (sources_[i] != nullptr) ran += sources_[i]->poll();
  if (--depth_ == 0) {
    forget_detached();
    if (epoll_ >= 0) arm();
  }
  return ran;
}

inline bool context::wait(clock::time_point deadline) noexcept {
  for (;;) {
    if (poll() != 0) return true;
    if (deadline != clock::time_point::max() && now() >= deadline) return false;
    if (time_ != nullptr)
      time_->sleep_until(next_due(deadline));
    else if (must_spin())
      std::this_thread::yield();
    else
      block(deadline);
  }
}

inline context::clock::time_point context::next_due(clock::time_point at_latest) const noexcept {
  for (const event_source* source : sources_)
    if (source != nullptr) at_latest = std::min(at_latest, source->due());
  return at_latest;
}

inline void context::block(clock::time_point deadline) noexcept {
  using std::chrono::nanoseconds;
  if (!fall_asleep()) return;
  // Without an eventfd a post cannot wake the owner: it looks again every millisecond.
  nanoseconds nap = event_ >= 0 ? nanoseconds::max() : std::chrono::milliseconds(1);
  deadline = next_due(deadline);
  if (deadline != clock::time_point::max()) {
    const auto current = clock::now();
    nap = deadline <= current ? nanoseconds(0) : std::min<nanoseconds>(nap, deadline - current);
  }
  watched_.clear();
  if (event_ >= 0) watched_.push_back({event_, POLLIN, 0});
  for (const event_source* source : sources_)
    if (source != nullptr && source->pending() != 0) watched_.push_back({source->descriptor(), POLLIN, 0});
  const timespec left{static_cast<std::time_t>(nap.count() / 1'000'000'000), nap.count() % 1'000'000'000};
  ::ppoll(watched_.data(), watched_.size(), nap == nanoseconds::max() ? nullptr : &left, nullptr);
}

inline void context::post(task& work) noexcept {
  task* top = posted_.load(std::memory_order_relaxed);
  do work.next = top == asleep() ? nullptr : top;
  while (!posted_.compare_exchange_weak(top, &work, std::memory_order_acq_rel, std::memory_order_relaxed));
  if (top == asleep()) signal();
}

// Says that the owner must be woken. False where something was posted already, and then the owner must not
// sleep.
inline bool context::fall_asleep() const noexcept {
  task* top = nullptr;
  armed_ =
      posted_.compare_exchange_strong(top, asleep(), std::memory_order_acq_rel, std::memory_order_acquire) ||
      top == asleep();
  return armed_;
}

// The engine's loop may sleep on the descriptor from here on, without coming by wait().
inline void context::arm() const noexcept {
  if (fall_asleep()) return;
  signal();
  signal_due_ = true;
}

inline void context::signal() const noexcept {
  const std::uint64_t one = 1;
  [[maybe_unused]] const auto written =
      ::write(event_, &one, sizeof one);  // fails only while it is readable anyway
}

// Makes event_ unreadable again. A poster writes it after it has posted, so the write may still be to come:
// then the next poll() reads it.
inline void context::drain_signal() noexcept {
  std::uint64_t count = 0;
  if (signal_due_ && ::read(event_, &count, sizeof count) == sizeof count) signal_due_ = false;
}

// Moves what was posted to the end of ready_, in the order in which it was posted.
inline void context::take_posted() noexcept {
  if (posted_.load(std::memory_order_relaxed) == nullptr) return;
  task* newest = posted_.exchange(nullptr, std::memory_order_acquire);
  const bool was_armed = std::exchange(armed_, false);
  if (newest == asleep()) return;
  if (was_armed && event_ >= 0) signal_due_ = true;
  task* const last = newest;
  task* first = nullptr;
  while (newest != nullptr) first = std::exchange(newest, std::exchange(newest->next, first));
  *(ready_ == nullptr ? &ready_ : &ready_tail_->next) = first;
  ready_tail_ = last;
}

inline bool context::must_spin() const noexcept {
  for (const event_source* source : sources_)
    if (source != nullptr && source->descriptor() < 0 && source->pending() != 0) return true;
  return false;
}

inline bool context::idle() const noexcept {
  const task* const top = posted_.load(std::memory_order_acquire);
  if (ready_ != nullptr || (top != nullptr && top != asleep())) return false;
  for (const event_source* source : sources_)
    if (source != nullptr && source->pending() != 0) return false;
  return true;
}

inline int context::descriptor() const noexcept {
  if (epoll_ < 0 && (epoll_ = ::epoll_create1(EPOLL_CLOEXEC)) >= 0) {
    watch(event_);
    for (const event_source* source : sources_)
      if (source != nullptr) watch(source->descriptor());
    arm();
  }
  return epoll_;
}

inline void context::watch(int descriptor) const noexcept {
  if (epoll_ < 0 || descriptor < 0) return;
  epoll_event readable{};
  readable.events = EPOLLIN;
  ::epoll_ctl(epoll_, EPOLL_CTL_ADD, descriptor, &readable);
}

inline void context::attach(event_source& source) {
  TERRACE_ASSERT(on_owner_thread(), "an event source was attached by a thread that does not own the context");
  watched_.reserve(sources_.size() + 2);  // block() must not allocate
  sources_.push_back(&source);
  watch(source.descriptor());
}

inline void context::detach(event_source& source) noexcept {
  if (epoll_ >= 0 && source.descriptor() >= 0)
    ::epoll_ctl(epoll_, EPOLL_CTL_DEL, source.descriptor(), nullptr);
  for (event_source*& attached : sources_)
    if (attached == &source) attached = nullptr;
  if (depth_ == 0) forget_detached();
}

inline void context::forget_detached() noexcept {
  std::size_t kept = 0;
  for (event_source* source : sources_)
    if (source != nullptr) sources_[kept++] = source;
  while (sources_.size() > kept) sources_.pop_back();
}

inline event_source& context::own(std::unique_ptr<event_source> source, const void* kind) {
  owned_.push_back({kind, std::move(source)});
  return *owned_.back().source;
}

inline event_source* context::owned(const void* kind) const noexcept {
  for (const owned_source& entry : owned_)
    if (entry.kind == kind) return entry.source.get();
  return nullptr;
}

}  // namespace terrace
