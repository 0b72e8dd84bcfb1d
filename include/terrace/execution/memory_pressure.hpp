#pragma once
#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "terrace/core/config.hpp"
#include "terrace/core/error.hpp"
#include "terrace/execution/available_memory.hpp"
#include "terrace/execution/context.hpp"

namespace terrace {

/// Tells the owner of a context that memory is running short, so that tiers in RAM can be made smaller before the
/// system swaps or kills:
///
///     auto watch = memory_pressure::open(ctx, [&](memory_pressure::level how) {
///       (void)cache.resize(0, how == memory_pressure::level::full ? 1_GiB : 2_GiB);
///     });
///
/// Where the kernel allows it (PSI triggers on the control group's memory.pressure and on /proc/pressure/memory;
/// Linux Documentation/accounting/psi.rst), a thread sleeps until tasks have stalled on memory, and a report wakes
/// the owner. Elsewhere the available memory is read periodically, but only while the context is polled. Nothing
/// reports that the pressure is over: raise a capacity again when there has been no report for a while.
class memory_pressure final : public event_source {
 public:
  /// Named as in PSI.
  enum class level : std::uint8_t {
    some,  ///< some task stalled for 15% of the last second or two; or less than 10% is available
    full,  ///< all tasks stalled at once for 10% of it; or less than 5% is available
  };
  /// A descriptor on which poll() reports POLLPRI when there is pressure of that level.
  struct trigger {
    int descriptor;
    level how;
  };

  struct options {
    std::string root = {};  ///< prefixed to /proc and /sys, where they are mounted elsewhere
    std::vector<trigger> triggers =
        {};  ///< made by the caller, say for another control group; closed at the end
    std::function<std::optional<level>()> reading = {};  ///< asked periodically, instead of the system
    std::chrono::milliseconds interval{1000};            ///< between readings, where there are no triggers
  };

  /// `on_pressure` is called by the owner, in poll() or wait() of `ctx`; reports that arrive before then are merged.
  /// It must not destroy the watch. Call on the owner. Errors: unavailable where the kernel neither reports pressure
  /// nor says how much memory is available.
  static result<std::unique_ptr<memory_pressure>> open(context& ctx, std::function<void(level)> on_pressure,
                                                       options chosen) {
    auto watch =
        std::unique_ptr<memory_pressure>(new memory_pressure(ctx, std::move(on_pressure), std::move(chosen)));
    if (watch->reading_ == nullptr && !watch->start_thread()) {
      const memory_readings system(watch->root_);
      if (auto readable = system.read(); !readable) return propagate(readable.error());
      watch->reading_ = [system] { return judge(system.read()); };
    }
    if (watch->reading_ != nullptr) ctx.attach(*watch);
    return watch;
  }
  static result<std::unique_ptr<memory_pressure>> open(context& ctx, std::function<void(level)> on_pressure) {
    return open(ctx, std::move(on_pressure), options{});
  }

  /// Call on the owner.
  ~memory_pressure() override {
    finishing_ = true;
    if (thread_.joinable()) {
      const std::uint64_t one = 1;
      [[maybe_unused]] const auto written = ::write(stop_, &one, sizeof one);
      waiting_ = false;
      waiting_.notify_one();
      thread_.join();
    }
    while (posted_.load()) context_.poll();  // the report lives in here
    for (const trigger& t : triggers_) ::close(t.descriptor);
    if (stop_ >= 0) ::close(stop_);
    if (reading_ != nullptr) context_.detach(*this);
  }

  /// Whether the kernel reports by itself, rather than being asked while the context is polled.
  bool uses_triggers() const noexcept { return reading_ == nullptr; }

  std::size_t poll() noexcept override {
    const auto now = context::clock::now();
    if (now < next_reading_) return 0;
    next_reading_ = now + interval_;
    const auto how = reading_();
    if (!how) return 0;
    on_pressure_(*how);
    return 1;
  }
  // Nobody waits for a watch.
  std::size_t pending() const noexcept override { return 0; }
  int descriptor() const noexcept override { return -1; }

 private:
  memory_pressure(context& ctx, std::function<void(level)> on_pressure, options chosen)
      : context_(ctx),
        on_pressure_(std::move(on_pressure)),
        root_(std::move(chosen.root)),
        triggers_(std::move(chosen.triggers)),
        reading_(std::move(chosen.reading)),
        interval_(chosen.interval),
        report_(*this) {}

  static std::optional<level> judge(const result<available_memory>& m) noexcept {
    if (!m || m->share() >= 0.10) return std::nullopt;
    return m->share() < 0.05 ? level::full : level::some;
  }

  // Thresholds and windows in microseconds. Without privileges windows have to be multiples of 2 s.
  void add_triggers() {
    for (const std::string& file : memory_readings(root_).pressure_files()) {
      add_trigger(file, level::some, "some 150000 1000000", "some 300000 2000000");
      add_trigger(file, level::full, "full 100000 1000000", "full 200000 2000000");
    }
  }
  void add_trigger(const std::string& file, level how, std::string_view wanted, std::string_view modest) {
    const int descriptor = ::open(file.c_str(), O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (descriptor < 0) return;
    for (const std::string_view text : {wanted, modest})
      if (::write(descriptor, text.data(), text.size() + 1) >= 0)
        return triggers_.push_back({descriptor, how});
    ::close(descriptor);
  }

  bool start_thread() {
    if (triggers_.empty()) add_triggers();
    if (triggers_.empty() || (stop_ = ::eventfd(0, EFD_CLOEXEC)) < 0) return false;
    TERRACE_TRY {
      thread_ = std::thread([this]() noexcept { run(); });
    }
    TERRACE_CATCH_ALL { return false; }  // the system has no thread to give
    return true;
  }

  // On the thread. It looks again only after a report has been delivered: the kernel remembers what happens in
  // between.
  void run() noexcept {
    std::vector<pollfd> watched{{stop_, POLLIN, 0}};
    for (const trigger& t : triggers_) watched.push_back({t.descriptor, POLLPRI, 0});
    while (!finishing_) {
      if (::poll(watched.data(), watched.size(), -1) < 0 && errno != EINTR) return;
      std::optional<level> worst;
      for (std::size_t i = 1; i < watched.size(); ++i) {
        if ((watched[i].revents & (POLLERR | POLLHUP | POLLNVAL)) != 0)
          watched[i].fd = -1;  // its group is gone; POLLPRI beside it means no pressure
        else if ((watched[i].revents & POLLPRI) != 0)
          worst = std::max(worst, std::optional(triggers_[i - 1].how));
      }
      if (!worst) continue;
      waiting_ = true;
      if (finishing_) return;  // looked at after waiting_ was set, so that the end cannot be missed
      seen_ = *worst;
      posted_ = true;
      context_.post(report_);
      waiting_.wait(true);
    }
  }

  struct report_task : task {
    explicit report_task(memory_pressure& of) noexcept
        : task([](task* self) noexcept { static_cast<report_task*>(self)->watch.report(); }), watch(of) {}
    memory_pressure& watch;
  };
  void report() noexcept {
    if (!finishing_) on_pressure_(seen_);
    posted_ = false;
    waiting_ = false;
    waiting_.notify_one();
  }

  context& context_;
  std::function<void(level)> on_pressure_;
  std::string root_;
  std::vector<trigger> triggers_;
  std::function<std::optional<level>()> reading_;  // empty: the thread does it
  std::chrono::milliseconds interval_;
  context::clock::time_point next_reading_{};
  std::atomic<bool> finishing_{false};
  std::atomic<bool> posted_{false};   // a report is on its way to the owner
  std::atomic<bool> waiting_{false};  // the thread waits until it has been delivered
  std::atomic<level> seen_{level::some};
  int stop_ = -1;
  report_task report_;
  std::thread thread_;
};

}  // namespace terrace
