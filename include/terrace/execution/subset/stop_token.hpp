#pragma once
#include <atomic>
#include <concepts>
#include <cstdint>
#include <thread>
#include <type_traits>
#include <utility>

#include "terrace/core/config.hpp"

namespace terrace::subset {

/// The token of an operation that nobody can stop. All of it is known at compile time and costs nothing.
class never_stop_token {
  struct no_callback {
    explicit no_callback(never_stop_token, auto&&) noexcept {}
  };

 public:
  template <class>
  using callback_type = no_callback;
  static constexpr bool stop_requested() noexcept { return false; }
  static constexpr bool stop_possible() noexcept { return false; }
  friend constexpr bool operator==(never_stop_token, never_stop_token) noexcept = default;
};

/// A token through which an operation learns whether it should stop. It may be copied and asked on any thread.
template <class T>
concept stoppable_token = std::copyable<T> && std::equality_comparable<T> && requires(const T& token) {
  { token.stop_requested() }
  noexcept->std::convertible_to<bool>;
  { token.stop_possible() }
  noexcept->std::convertible_to<bool>;
};

/// A token that never asks to stop, and whose type says so.
template <class T>
concept unstoppable_token = stoppable_token<T> && requires {
  requires std::bool_constant<(!T::stop_possible())>::value;
};

/// The type that calls F once when a token of type T asks to stop.
template <class T, class F>
using stop_callback_for_t = typename T::template callback_type<F>;

class inplace_stop_source;
template <class F>
class inplace_stop_callback;

/// Refers to an inplace_stop_source, which must outlive it; default-constructed it refers to none and never stops.
class inplace_stop_token {
 public:
  template <class F>
  using callback_type = inplace_stop_callback<F>;

  inplace_stop_token() = default;
  bool stop_requested() const noexcept;
  bool stop_possible() const noexcept { return source_ != nullptr; }
  friend bool operator==(inplace_stop_token, inplace_stop_token) noexcept = default;

 private:
  friend class inplace_stop_source;
  template <class F>
  friend class inplace_stop_callback;
  explicit inplace_stop_token(const inplace_stop_source* source) noexcept : source_(source) {}
  const inplace_stop_source* source_ = nullptr;
};

namespace detail {

struct stop_callback_base {
  using entry = void (*)(stop_callback_base*) noexcept;
  explicit stop_callback_base(entry run) noexcept : call(run) {}

  entry call;
  stop_callback_base* next = nullptr;
  stop_callback_base** link = nullptr;  // what points here; nullptr while not registered
  bool* destroyed = nullptr;            // set while the callback runs, for a callback that destroys itself
  std::atomic<bool> finished{false};
};

}  // namespace detail

/// The stop state itself, without allocation: it holds a list of the callbacks, which live in the operations.
/// All members may be called on any thread.
class inplace_stop_source {
 public:
  inplace_stop_source() = default;
  inplace_stop_source(const inplace_stop_source&) = delete;  // tokens hold its address
  inplace_stop_source& operator=(const inplace_stop_source&) = delete;
  ~inplace_stop_source() { TERRACE_ASSERT(callbacks_ == nullptr, "a stop source ends before its callbacks"); }

  inplace_stop_token get_token() const noexcept { return inplace_stop_token{this}; }
  bool stop_requested() const noexcept { return (state_.load(std::memory_order_acquire) & stopped) != 0; }

  /// Calls the registered callbacks, here and now. Returns false, and does nothing, from the second call on.
  bool request_stop() noexcept {
    if (!lock_unless_stopped(stopped)) return false;
    notifier_ = std::this_thread::get_id();
    while (callbacks_ != nullptr) {
      detail::stop_callback_base& callback = *callbacks_;
      unlink(callback);
      bool destroyed = false;
      callback.destroyed = &destroyed;
      unlock();
      callback.call(&callback);
      if (!destroyed) {
        callback.destroyed = nullptr;
        callback.finished.store(true, std::memory_order_release);
      }
      lock();
    }
    unlock();
    return true;
  }

 private:
  template <class F>
  friend class inplace_stop_callback;
  static constexpr std::uint8_t stopped = 1, locked = 2;

  // False where the stop was requested before, and then the caller runs the callback itself.
  bool add(detail::stop_callback_base& callback) const noexcept {
    if (!lock_unless_stopped(0)) return false;
    callback.next = callbacks_;
    callback.link = &callbacks_;
    if (callbacks_ != nullptr) callbacks_->link = &callback.next;
    callbacks_ = &callback;
    unlock();
    return true;
  }

  // Afterwards the callback does not run and will not run, unless it is the caller.
  void remove(detail::stop_callback_base& callback) const noexcept {
    lock();
    const bool waiting = callback.link != nullptr;
    if (waiting) unlink(callback);
    const bool on_notifier = notifier_ == std::this_thread::get_id();
    unlock();
    if (waiting) return;
    if (!on_notifier) {
      while (!callback.finished.load(std::memory_order_acquire)) std::this_thread::yield();
    } else if (callback.destroyed != nullptr) {
      *callback.destroyed = true;
    }
  }

  static void unlink(detail::stop_callback_base& callback) noexcept {
    *callback.link = callback.next;
    if (callback.next != nullptr) callback.next->link = callback.link;
    callback.link = nullptr;
  }

  // A lock of one bit beside the flag: it is held for a few instructions, never while a callback runs.
  bool lock_unless_stopped(std::uint8_t also) const noexcept {
    std::uint8_t seen = state_.load(std::memory_order_acquire);
    for (;;) {
      if ((seen & stopped) != 0) return false;
      if ((seen & locked) != 0) {
        std::this_thread::yield();
        seen = state_.load(std::memory_order_acquire);
      } else if (state_.compare_exchange_weak(seen, static_cast<std::uint8_t>(seen | locked | also),
                                              std::memory_order_acq_rel, std::memory_order_acquire)) {
        return true;
      }
    }
  }
  void lock() const noexcept {
    while ((state_.fetch_or(locked, std::memory_order_acq_rel) & locked) != 0) std::this_thread::yield();
  }
  void unlock() const noexcept {
    state_.fetch_and(static_cast<std::uint8_t>(~locked), std::memory_order_release);
  }

  mutable std::atomic<std::uint8_t> state_{0};
  std::thread::id notifier_;
  mutable detail::stop_callback_base* callbacks_ = nullptr;
};

inline bool inplace_stop_token::stop_requested() const noexcept {
  return source_ != nullptr && source_->stop_requested();
}

/// Calls `F` once when the token asks to stop: on the thread that requests it, or in the constructor where
/// the request came before. The destructor waits for a call that runs on another thread.
template <class F>
class inplace_stop_callback : detail::stop_callback_base {
 public:
  template <class G>
  requires std::constructible_from<F, G>
  explicit inplace_stop_callback(inplace_stop_token token,
                                 G&& function) noexcept(std::is_nothrow_constructible_v<F, G>)
      : stop_callback_base(&run), source_(token.source_), function_(static_cast<G&&>(function)) {
    if (source_ != nullptr && !source_->add(*this)) {
      source_ = nullptr;
      std::move(function_)();
    }
  }
  inplace_stop_callback(const inplace_stop_callback&) = delete;  // the source holds its address
  inplace_stop_callback& operator=(const inplace_stop_callback&) = delete;
  ~inplace_stop_callback() {
    if (source_ != nullptr) source_->remove(*this);
  }

 private:
  static void run(stop_callback_base* self) noexcept {
    std::move(static_cast<inplace_stop_callback*>(self)->function_)();
  }
  const inplace_stop_source* source_;
  F function_;
};
template <class F>
inplace_stop_callback(inplace_stop_token, F) -> inplace_stop_callback<F>;

static_assert(unstoppable_token<never_stop_token> && stoppable_token<inplace_stop_token>);
static_assert(!unstoppable_token<inplace_stop_token>);

}  // namespace terrace::subset
