#pragma once
#include <cstddef>
#include <cstring>
#include <memory>
#include <optional>
#include <string_view>
#include <utility>

#include "terrace/execution/context.hpp"
#include "terrace/medium/medium.hpp"
#include "terrace/medium/space.hpp"

namespace terrace {
inline namespace TERRACE_EX {

/// What a `scripted` medium is told to do, and what it saw. The test owns it; it outlives the medium.
struct medium_script {
  bool hold = false;         ///< keep transfers in flight until `release_all`
  unsigned fail_reads = 0;   ///< this many of the next reads fail with EIO
  unsigned fail_writes = 0;  ///< this many of the next writes fail with ENOSPC
  unsigned flip_reads = 0;   ///< this many of the next reads succeed with one bit flipped
  unsigned reads = 0, writes = 0;
  unsigned in_flight = 0, most_in_flight = 0;

  struct held {
    void (*finish)(held*) noexcept;
    held* next = nullptr;
  };
  held* waiting = nullptr;

  /// Completes what is held, oldest first. Returns how many there were.
  unsigned release_all() {
    held* all = nullptr;
    for (held* h = std::exchange(waiting, nullptr); h != nullptr;)
      all = std::exchange(h, std::exchange(h->next, all));
    unsigned count = 0;
    for (; all != nullptr; ++count) {
      held* const h = std::exchange(all, all->next);
      h->finish(h);
    }
    return count;
  }
};

/// A medium for tests: memory without an address, whose transfers complete later, on the owner, and fail or
/// hang when the script says so.
class scripted {
 public:
  static constexpr std::string_view name = "scripted";
  static constexpr reach addressable = reach::nobody;
  static constexpr bool persistent = false;
  static constexpr std::size_t alignment = 512;
  static constexpr std::size_t granularity = 512;

  struct options {
    std::size_t capacity = 0;
    medium_script* script = nullptr;
  };
  static result<std::unique_ptr<scripted>> open(context& ctx, options o) {
    if (o.script == nullptr) return fail(errc::invalid_argument, "a scripted medium needs a script");
    return std::make_unique<scripted>(ctx, o);
  }
  scripted(context& ctx, options o)
      : context_(ctx), script_(o.script), space_(o.capacity, alignment), bytes_(new std::byte[o.capacity]) {}
  scripted(scripted&&) = delete;

  std::optional<extent> reserve(std::size_t bytes) { return space_.reserve(bytes); }
  void release(extent e) noexcept { space_.release(e); }
  std::size_t capacity() const noexcept { return space_.capacity(); }
  std::size_t used() const noexcept { return space_.used(); }

  auto read(extent e, mutable_bytes into) noexcept {
    return transfer{{this, bytes_.get() + e.offset, into.data(), into.size(), true}};
  }
  auto write(extent e, const_bytes from) noexcept {
    return transfer{{this, from.data(), bytes_.get() + e.offset, from.size(), false}};
  }

 private:
  struct plan {
    scripted* medium;
    const std::byte* from;
    std::byte* to;
    std::size_t bytes;
    bool reading;
  };
  template <class R>
  struct operation : task, medium_script::held {
    using operation_state_concept = ex::operation_state_t;
    operation(plan p, R r) : task(&arrive), held{&let_go}, what(p), receiver(std::move(r)) {}
    operation(operation&&) = delete;

    void start() noexcept {
      medium_script& s = *what.medium->script_;
      ++(what.reading ? s.reads : s.writes);
      s.most_in_flight = ++s.in_flight > s.most_in_flight ? s.in_flight : s.most_in_flight;
      unsigned& failures = what.reading ? s.fail_reads : s.fail_writes;
      fails = failures != 0;
      if (fails) --failures;
      if (s.hold)
        held::next = std::exchange(s.waiting, this);
      else
        what.medium->context_.post(*this);
    }
    static void let_go(held* h) noexcept {
      auto& self = *static_cast<operation*>(h);
      self.what.medium->context_.post(self);
    }
    static void arrive(task* t) noexcept {
      auto& self = *static_cast<operation*>(t);
      --self.what.medium->script_->in_flight;
      if (self.fails && self.what.reading)
        return ex::set_error(std::move(self.receiver), error{errc::io_error, "a scripted read failed", EIO});
      if (self.fails)
        return ex::set_error(std::move(self.receiver),
                             error{errc::io_error, "a scripted write failed", ENOSPC});
      std::memcpy(self.what.to, self.what.from, self.what.bytes);
      if (unsigned& flips = self.what.medium->script_->flip_reads; self.what.reading && flips != 0) {
        --flips;
        self.what.to[self.what.bytes / 3] ^= std::byte{4};
      }
      ex::set_value(std::move(self.receiver));
    }
    plan what;
    R receiver;
    bool fails = false;
  };
  struct transfer {
    using sender_concept = ex::sender_t;
    template <class Self, class... E>
    static consteval auto get_completion_signatures() {
      return ex::completion_signatures<ex::set_value_t(), ex::set_error_t(error)>{};
    }
    template <class R>
    operation<R> connect(R receiver) const {
      return operation<R>(what, std::move(receiver));
    }
    plan what;
  };

  context& context_;
  medium_script* script_;
  space space_;
  std::unique_ptr<std::byte[]> bytes_;
};
static_assert(medium<scripted>);

}  // namespace TERRACE_EX
}  // namespace terrace
