#pragma once
#include <cstddef>
#include <functional>
#include <memory>
#include <string_view>
#include <utility>

#include "catch.hpp"
#include "terrace/execution/context.hpp"
#include "terrace/execution/ex.hpp"
#include "terrace/medium/disk_format.hpp"
#include "terrace/medium/medium.hpp"
#include "terrace/testing/scripted.hpp"

namespace terrace {

/// What syncs of a `keeper` do, and how many there were.
struct sync_script {
  bool hold = false;
  unsigned fail = 0;
  bool for_good = false;  ///< those that fail say that all later ones will
  unsigned syncs = 0;
  std::function<void()> waiting;  // ends the sync that is held

  void release() {
    hold = false;
    if (auto end = std::exchange(waiting, nullptr)) end();
  }
};

/// A scripted medium that keeps, as far as a cache can tell.
class keeper : public scripted {
 public:
  static constexpr std::string_view name = "keeper";
  static constexpr bool persistent = true;
  struct options {
    std::size_t capacity = 0;
    medium_script* script = nullptr;
    sync_script* syncs = nullptr;
    store_contents contents = {};
  };
  static result<std::unique_ptr<keeper>> open(context& ctx, options o) {
    return std::make_unique<keeper>(ctx, o);
  }
  keeper(context& ctx, const options& o)
      : scripted(ctx, {.capacity = o.capacity, .script = o.script}), ctx_(ctx), syncs_(o.syncs) {}

  bool keeps() const noexcept { return true; }
  bool label(extent, const extent_header&) noexcept { return true; }
  void unlabel(extent) noexcept {}
  template <class Visitor>
  void scan(Visitor) {}

  template <class R>
  struct operation : task {
    using operation_state_concept = ex::operation_state_t;
    operation(keeper& k, R r) : task(&end), medium(k), receiver(std::move(r)) {}
    void start() noexcept {
      sync_script& s = *medium.syncs_;
      ++s.syncs;
      fails = s.fail != 0;
      if (fails) --s.fail;
      if (!s.hold) return medium.ctx_.post(*this);
      REQUIRE_FALSE(s.waiting);
      s.waiting = [this] { medium.ctx_.post(*this); };
    }
    static void end(task* t) noexcept {
      auto& o = *static_cast<operation*>(t);
      if (o.fails && o.medium.syncs_->for_good)
        return ex::set_error(std::move(o.receiver), error{errc::unavailable, "a scripted sync", EIO});
      if (o.fails) return ex::set_error(std::move(o.receiver), error{errc::io_error, "a scripted sync", EIO});
      ex::set_value(std::move(o.receiver));
    }
    keeper& medium;
    R receiver;
    bool fails = false;
  };
  struct sender {
    using sender_concept = ex::sender_t;
    template <class Self, class... E>
    static consteval auto get_completion_signatures() {
      return ex::completion_signatures<ex::set_value_t(), ex::set_error_t(error)>{};
    }
    template <class R>
    operation<R> connect(R r) const {
      return {*medium, std::move(r)};
    }
    keeper* medium;
  };
  sender sync() noexcept { return {this}; }

 private:
  context& ctx_;
  sync_script* syncs_;
};
static_assert(persistent_medium<keeper>);

}  // namespace terrace
