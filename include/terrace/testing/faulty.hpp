#pragma once
#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "terrace/execution/context.hpp"
#include "terrace/execution/event_source.hpp"
#include "terrace/medium/medium.hpp"
#include "terrace/medium/space.hpp"
#include "terrace/testing/faulty_device.hpp"

namespace terrace {

/// The calls that a `faulty` medium has under way, in the order in which they will end. As an event source it ends
/// them when their time has come; nothing here sleeps.
class faulty_calls : public event_source {
 public:
  using time_point = context::clock::time_point;

  /// One call, from its start to its end.
  struct call {
    device_call what;
    std::uint64_t offset = 0;
    std::byte* data = nullptr;  // of a write, only read
    std::size_t size = 0;
    void (*done)(call&, const result<void>&) noexcept = nullptr;
    faulty_device::verdict verdict{};
    faulty_device::sync_image image{};
    time_point due{};
    call* next = nullptr;
    bool held = false, stopped = false, ending = false;
  };

  faulty_calls(context& ctx, faulty_device& d, bool keeps) : context_(ctx), device_(d), keeps_(keeps) {
    device_.restore_power();
    context_.attach(*this);
  }
  ~faulty_calls() override { context_.detach(*this); }

  void start(call& c) {
    c.verdict = device_.judge(c.what);
    ++device_.in_flight_;
    c.held = device_.hold;
    c.due = c.held ? time_point::max() : context_.now() + device_.takes();
    if (c.verdict.what == fault::stall) {
      ++device_.stalled_;
      device_.tell(c.what, c.offset, fault::stall);
      if (!c.held) c.due += device_.stall;
    }
    // Whoever looks at either side too early sees garbage.
    if (c.what == device_call::read) std::memset(c.data, garbage, c.size);
    if (c.what == device_call::write && device_.powered_) {
      std::memset(device_.bytes_.data() + c.offset, garbage, c.size);
      note_dirty(c);
    }
    if (c.what == device_call::sync) {
      c.image = device_.begin_sync();
      device_.syncing_.push_back(&c.image);
    }
    link(c);
    if (device_.on_progress) device_.on_progress(c.what);
  }
  void stop(call& c) noexcept {
    if (!device_.heeds_stop || c.ending) return;
    unlink(c);
    c.stopped = true;
    c.due = context_.now();
    link(c);
  }
  /// Ends the `nth` of the calls that are held, oldest first, in the next poll(); false where there are fewer.
  bool let_go(std::size_t nth) noexcept {
    call* c = first_;
    while (c != nullptr && (!c->held || nth-- != 0)) c = c->next;
    if (c == nullptr) return false;
    unlink(*c);
    c->held = false;
    c->due = context_.now();
    link(*c);
    return true;
  }

  std::size_t poll() noexcept override {
    std::size_t ended = 0;
    for (; first_ != nullptr && first_->due <= context_.now(); ++ended)
      end(*std::exchange(first_, first_->next));
    return ended;
  }
  std::size_t pending() const noexcept override { return first_ == nullptr ? 0 : 1; }
  int descriptor() const noexcept override { return -1; }
  time_point due() const noexcept override { return first_ == nullptr ? time_point::max() : first_->due; }

  // What the medium has to know of its device.
  std::optional<store_contents>& contents() noexcept { return device_.contents_; }
  std::map<std::uint64_t, extent_header>& headers() noexcept { return device_.headers_; }
  std::uint64_t next_sequence() noexcept { return ++device_.sequence_; }
  void sync_all() {
    if (!device_.powered_) return;
    faulty_device::sync_image all = device_.begin_sync();
    device_.end_sync(all, true);
  }

 private:
  static constexpr int garbage = 0xd5;

  void note_dirty(const call& c) {
    if (keeps_) device_.dirty_.push_back({c.offset, c.size});
  }
  void link(call& c) noexcept {
    call** at = &first_;
    while (*at != nullptr && (*at)->due <= c.due) at = &(*at)->next;
    c.next = std::exchange(*at, &c);
  }
  void unlink(call& c) noexcept {
    call** at = &first_;
    while (*at != &c) at = &(*at)->next;
    *at = c.next;
  }

  void end(call& c) noexcept {
    const fault what = c.verdict.what;
    c.ending = true;  // before anybody is told: they may stop it
    if (device_.on_progress) device_.on_progress(c.what);
    --device_.in_flight_;
    if (what == fault::stall) --device_.stalled_;
    if (c.what == device_call::sync) std::erase(device_.syncing_, &c.image);
    const bool carried_out = device_.powered_ && !c.stopped;
    result<void> outcome = carried_out ? perform(c) : fail(errc::io_error, "a device has no power", EIO);
    if (c.stopped) outcome = fail(errc::stopped, "a transfer of a faulty device was stopped");
    if (carried_out && what != fault::none && what != fault::stall) device_.tell(c.what, c.offset, what);
    auto& seen = device_.seen_[faulty_device::index(c.what)];
    ++(outcome ? seen.succeeded : seen.failed);
    c.done(c, outcome);
  }

  result<void> perform(call& c) {
    const fault what = c.verdict.what;
    const bool failing = what == fault::io_error || what == fault::no_space;
    const bool partial = what == fault::short_transfer || what == fault::torn;
    if (c.what == device_call::sync)
      device_.end_sync(c.image, !failing);
    else if (!failing)
      move(c, partial ? c.size * c.verdict.part / 256 : c.size);
    if (what == fault::no_space) return fail(errc::io_error, "a faulty device has no space left", ENOSPC);
    if (failing) return fail(errc::io_error, "a faulty device has failed", EIO);
    if (what == fault::short_transfer)
      return fail(errc::io_error, "a faulty device has moved a part of what it should", EIO);
    return {};
  }
  void move(const call& c, std::size_t bytes) {
    std::byte* const stored = device_.bytes_.data() + c.offset;
    std::byte* const to = c.what == device_call::read ? c.data : stored;
    if (bytes != 0) std::memcpy(to, c.what == device_call::read ? stored : c.data, bytes);
    if (c.what == device_call::write) note_dirty(c);
    if (c.verdict.what != fault::bit_flip) return;
    const std::size_t bit = c.verdict.part * std::size_t{2654435761u} % (c.size * 8);
    to[bit / 8] ^= std::byte{1} << bit % 8;
  }

  context& context_;
  faulty_device& device_;
  bool keeps_;
  call* first_ = nullptr;
};

inline namespace TERRACE_EX {

/// A medium for tests: memory without addresses, over a `faulty_device`, which decides when its transfers end and
/// which faults they suffer. As a store (`keep`) it finds its extents again when it is reopened over the same device,
/// even after that has lost its power. On a virtual clock it takes no time.
///
/// While a transfer is on its way, its target is filled with garbage; bytes are moved at the very end. So reusing a
/// buffer too early, or reading it too early, is found out.
class faulty {
 public:
  static constexpr std::string_view name = "faulty";
  static constexpr reach addressable = reach::nobody;
  static constexpr bool persistent = true;
  static constexpr std::size_t alignment = 64;
  static constexpr std::size_t granularity = 64;

  struct options {
    std::size_t capacity = 0;         ///< bytes; at most the device's. 0: no such tier
    faulty_device* device = nullptr;  ///< outlives the medium
    bool keep = false;                ///< extents with a header are there when the device is opened again
    std::size_t most_headers = 1u << 20;
    store_contents contents = {};  ///< of the store; tiered_cache::open fills it in
  };
  static result<std::unique_ptr<faulty>> open(context& ctx, options o) {
    if (o.device == nullptr) return fail(errc::invalid_argument, "a faulty medium needs a device");
    if (o.capacity > o.device->capacity())
      return fail(errc::invalid_argument, "a faulty medium cannot have more capacity than its device");
    auto medium = std::make_unique<faulty>(ctx, o);
    if (auto& held = medium->calls_.contents(); o.keep && held && *held != o.contents)
      return fail(errc::invalid_argument, "a faulty device holds something else than is asked for");
    else if (o.keep)
      held = o.contents;
    return medium;
  }
  faulty(context& ctx, const options& o)
      : calls_(ctx, *o.device, o.keep), device_(*o.device), options_(o), space_(o.capacity, alignment) {}
  faulty(faulty&&) = delete;
  ~faulty() {
    if (keeps()) calls_.sync_all();  // what was released must not come back
  }

  std::optional<extent> reserve(std::size_t bytes) { return space_.reserve(bytes); }
  void release(extent e) noexcept {
    calls_.headers().erase(e.offset);
    space_.release(e);
  }
  std::size_t capacity() const noexcept { return space_.capacity(); }
  std::size_t used() const noexcept { return space_.used(); }
  /// At most the device's capacity.
  result<void> resize(std::size_t bytes) {
    if (bytes > device_.capacity())
      return fail(errc::out_of_memory, "a faulty medium cannot have more capacity than its device");
    space_.resize(bytes);
    return {};
  }

  auto read(extent e, mutable_bytes into) noexcept {
    return call_sender{{device_call::read, e.offset, into.data(), into.size()}, &calls_};
  }
  auto write(extent e, const_bytes from) noexcept {
    return call_sender{{device_call::write, e.offset, const_cast<std::byte*>(from.data()), from.size()},
                       &calls_};
  }
  /// See faulty_calls::let_go.
  bool let_go(std::size_t nth = 0) noexcept { return calls_.let_go(nth); }

  // --- As a store; see persistent_medium.

  bool keeps() const noexcept { return options_.keep; }
  auto sync() noexcept { return call_sender{{device_call::sync}, &calls_}; }
  bool label(extent e, extent_header h) {
    auto& headers = calls_.headers();
    if (headers.size() >= options_.most_headers && !headers.contains(e.offset)) return false;
    h.place = e.offset;
    h.sequence = calls_.next_sequence();
    headers.insert_or_assign(e.offset, h);
    return true;
  }
  void unlabel(extent e) noexcept { calls_.headers().erase(e.offset); }
  template <class Visitor>
  void scan(Visitor visitor) {
    std::vector<extent_header> found;
    for (const auto& [offset, header] : calls_.headers()) found.push_back(header);
    std::sort(found.begin(), found.end(),
              [](const auto& a, const auto& b) { return a.sequence > b.sequence; });
    for (const extent_header& h : found) {  // of those that overlap, the latest is right
      const auto at = space_.reserve_at(h.place, h.encoded);
      if (!at)
        calls_.headers().erase(h.place);
      else if (!visitor(*at, h))
        release(*at);
    }
  }

 private:
  struct asked {
    device_call what;
    std::uint64_t offset = 0;
    std::byte* data = nullptr;
    std::size_t size = 0;
  };
  template <class R>
  struct operation : private faulty_calls::call {
    using operation_state_concept = ex::operation_state_t;
    using token_type = ex::stop_token_of_t<ex::env_of_t<R>>;
    struct on_stop {
      operation* self;
      void operator()() noexcept { self->calls->stop(*self); }
    };
    operation(const asked& a, faulty_calls* c, R r)
        : call{a.what, a.offset, a.data, a.size, &ended}, calls(c), receiver(std::move(r)) {}
    operation(operation&&) = delete;

    void start() noexcept {
      calls->start(*this);
      stop.emplace(ex::get_stop_token(ex::get_env(receiver)), on_stop{this});
    }
    static void ended(faulty_calls::call& c, const result<void>& outcome) noexcept {
      auto& self = static_cast<operation&>(c);
      self.stop.reset();
      if (outcome) return ex::set_value(std::move(self.receiver));
      if (outcome.error().code == errc::stopped) return ex::set_stopped(std::move(self.receiver));
      ex::set_error(std::move(self.receiver), error(outcome.error()));
    }
    faulty_calls* calls;
    R receiver;
    std::optional<ex::stop_callback_for_t<token_type, on_stop>> stop;
  };
  struct call_sender {
    using sender_concept = ex::sender_t;
    template <class Self, class... E>
    static consteval auto get_completion_signatures() {
      return ex::completion_signatures<ex::set_value_t(), ex::set_error_t(error), ex::set_stopped_t()>{};
    }
    template <class R>
    operation<R> connect(R receiver) const {
      return operation<R>(what, calls, std::move(receiver));
    }
    asked what;
    faulty_calls* calls;
  };

  faulty_calls calls_;
  faulty_device& device_;
  options options_;
  space space_;
};
static_assert(persistent_medium<faulty> && resizable_medium<faulty>);

}  // namespace TERRACE_EX
}  // namespace terrace
