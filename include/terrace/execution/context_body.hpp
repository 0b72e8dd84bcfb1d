#pragma once
// The functions of execution/context.hpp.
#include <poll.h>
#include <sys/epoll.h>
#include <unistd.h>
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <thread>
#include <utility>

#include "terrace/core/config.hpp"
#include "terrace/execution/context.hpp"

namespace terrace {

TERRACE_BODY context::~context() {
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

TERRACE_BODY std::size_t context::poll() noexcept {
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
  std::size_t completed = 0;
  for (std::size_t i = 0; i < sources_.size(); ++i)  // completions may attach and detach
    if (sources_[i] != nullptr) completed += sources_[i]->poll();
  if (--depth_ == 0) {
    forget_detached();
    if (epoll_ >= 0) completed == 0 ? arm() : stay_awake();
  }
  return ran + completed;
}

TERRACE_BODY bool context::wait(clock::time_point deadline) noexcept {
  for (;;) {
    if (poll() != 0) return true;
    if (deadline != clock::time_point::max() && now() >= deadline) return false;
    if (time_ != nullptr)
      time_->sleep_until(next_due(deadline));
    else if (event_source* const device = sleeper(); device == nullptr && must_spin())
      std::this_thread::yield();
    else
      block(deadline, device);
  }
}

// The source in which the owner can wait for everything: the only one with work pending, which also watches event_.
TERRACE_BODY event_source* context::sleeper() const noexcept {
  if (event_ < 0) return nullptr;
  event_source* found = nullptr;
  for (event_source* source : sources_) {
    if (source == nullptr || source->pending() == 0) continue;
    if (found != nullptr || !source->sleeps()) return nullptr;
    found = source;
  }
  return found;
}

TERRACE_BODY context::clock::time_point context::next_due(clock::time_point at_latest) const noexcept {
  for (const event_source* source : sources_)
    if (source != nullptr) at_latest = std::min(at_latest, source->due());
  return at_latest;
}

// Sleeps in `device`, or on descriptors where it is nullptr.
TERRACE_BODY void context::block(clock::time_point deadline, event_source* device) noexcept {
  using std::chrono::nanoseconds;
  if (!fall_asleep()) return;
  deadline = next_due(deadline);
  if (device != nullptr && device->sleep(deadline, event_)) return;
  // Without an eventfd a post cannot wake the owner: it looks again every millisecond.
  nanoseconds nap = event_ >= 0 ? nanoseconds::max() : std::chrono::milliseconds(1);
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

TERRACE_BODY void context::post(task& work) noexcept {
  task* top = posted_.load(std::memory_order_relaxed);
  do work.next = top == asleep() ? nullptr : top;
  while (!posted_.compare_exchange_weak(top, &work, std::memory_order_acq_rel, std::memory_order_relaxed));
  if (top == asleep()) signal();
}

// Arranges that the owner is woken. False if something is already posted; then the owner must not sleep.
TERRACE_BODY bool context::fall_asleep() const noexcept {
  task* top = nullptr;
  const bool arranged =
      posted_.compare_exchange_strong(top, asleep(), std::memory_order_acq_rel, std::memory_order_acquire) ||
      top == asleep();
  armed_ |= arranged;  // if not, it may have been until somebody posted, who then writes to event_
  return arranged;
}

// The engine's loop may sleep on the descriptor from here on, without going through wait().
TERRACE_BODY void context::arm() const noexcept {
  if (!fall_asleep()) stay_awake();
}

// What completes in a source may have queued work in one that had been polled before: it takes another poll().
TERRACE_BODY void context::stay_awake() const noexcept {
  signal();
  ++signals_due_;
}

TERRACE_BODY void context::signal() const noexcept {
  const std::uint64_t one = 1;
  [[maybe_unused]] const auto written =
      ::write(event_, &one, sizeof one);  // fails only while it is readable anyway
}

// Makes event_ unreadable again. A poster writes it after posting, so writes may still be to come: a later poll() then
// reads them. Reading tells how many there were.
TERRACE_BODY void context::drain_signal() noexcept {
  std::uint64_t count = 0;
  if (signals_due_ != 0 && ::read(event_, &count, sizeof count) == sizeof count) signals_due_ -= count;
}

// Moves what was posted to the end of ready_, in the order in which it was posted.
TERRACE_BODY void context::take_posted() noexcept {
  if (posted_.load(std::memory_order_relaxed) == nullptr) return;
  task* newest = posted_.exchange(nullptr, std::memory_order_acquire);
  const bool was_armed = std::exchange(armed_, false);
  if (newest == asleep()) return;
  if (was_armed && event_ >= 0) ++signals_due_;
  task* const last = newest;
  task* first = nullptr;
  while (newest != nullptr) first = std::exchange(newest, std::exchange(newest->next, first));
  *(ready_ == nullptr ? &ready_ : &ready_tail_->next) = first;
  ready_tail_ = last;
}

TERRACE_BODY bool context::must_spin() const noexcept {
  for (const event_source* source : sources_)
    if (source != nullptr && source->pending() != 0 && source->descriptor() < 0) return true;
  return false;
}

TERRACE_BODY bool context::idle() const noexcept {
  const task* const top = posted_.load(std::memory_order_acquire);
  if (ready_ != nullptr || (top != nullptr && top != asleep())) return false;
  for (const event_source* source : sources_)
    if (source != nullptr && source->pending() != 0) return false;
  return true;
}

TERRACE_BODY int context::descriptor() const noexcept {
  if (epoll_ < 0 && (epoll_ = ::epoll_create1(EPOLL_CLOEXEC)) >= 0) {
    watch(event_);
    for (const event_source* source : sources_)
      if (source != nullptr) watch(source->descriptor());
    arm();
  }
  return epoll_;
}

TERRACE_BODY void context::watch(int descriptor) const noexcept {
  if (descriptor < 0) return;
  epoll_event readable{};
  readable.events = EPOLLIN;
  ::epoll_ctl(epoll_, EPOLL_CTL_ADD, descriptor, &readable);
}

TERRACE_BODY void context::attach(event_source& source) {
  TERRACE_ASSERT(on_owner_thread(), "an event source was attached by a thread that does not own the context");
  watched_.reserve(sources_.size() + 2);  // block() must not allocate
  sources_.push_back(&source);
  if (epoll_ >= 0) watch(source.descriptor());
}

TERRACE_BODY void context::detach(event_source& source) noexcept {
  if (epoll_ >= 0 && source.descriptor() >= 0)
    ::epoll_ctl(epoll_, EPOLL_CTL_DEL, source.descriptor(), nullptr);
  for (event_source*& attached : sources_)
    if (attached == &source) attached = nullptr;
  if (depth_ == 0) forget_detached();
}

TERRACE_BODY void context::forget_detached() noexcept {
  std::size_t kept = 0;
  for (event_source* source : sources_)
    if (source != nullptr) sources_[kept++] = source;
  while (sources_.size() > kept) sources_.pop_back();
}

TERRACE_BODY event_source& context::own(std::unique_ptr<event_source> source, const void* kind) {
  owned_.push_back({kind, std::move(source)});
  return *owned_.back().source;
}

TERRACE_BODY event_source* context::owned(const void* kind) const noexcept {
  for (const owned_source& entry : owned_)
    if (entry.kind == kind) return entry.source.get();
  return nullptr;
}

}  // namespace terrace
