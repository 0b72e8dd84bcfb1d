#pragma once
#include <unistd.h>

#include <cerrno>
#include <optional>
#include <utility>

#include "terrace/core/error.hpp"
#include "terrace/execution/context.hpp"
#include "terrace/execution/ex.hpp"
#include "terrace/execution/thread_pool.hpp"
#include "terrace/medium/extent_table.hpp"

namespace terrace {
inline namespace TERRACE_EX {

/// Makes a medium's extents durable, and then the headers of those that have one: the order that
/// docs/on-disk-format.md promises. A thread of its own makes the calls, which block. Owner thread only.
class store_sync {
 public:
  /// `data` is a descriptor whose fdatasync (or, for a folder, fsync) makes extents durable. It and `table` must
  /// outlive this.
  store_sync(context& ctx, extent_table& table, int data) : context_(ctx), table_(table), data_(data) {}
  store_sync(const store_sync&) = delete;

  template <class R>
  struct operation : task {
    using operation_state_concept = ex::operation_state_t;
    operation(store_sync& s, R r) noexcept : task(&step), sync(s), receiver(std::move(r)) {}
    void start() noexcept {
      changes = sync.table_.take_changes();
      sync.pool_.submit(*this);
    }
    static void step(task* self) noexcept {
      auto& o = *static_cast<operation*>(self);
      if (!std::exchange(o.performed, true)) {
        o.outcome = o.sync.perform(o.changes);
        return o.sync.send_home(o);
      }
      if (o.outcome) return ex::set_value(std::move(o.receiver));
      o.sync.table_.put_back(o.changes);
      ex::set_error(std::move(o.receiver), error(o.outcome.error()));
    }
    store_sync& sync;
    R receiver;
    extent_table::changes changes;
    result<void> outcome;
    bool performed = false;
  };
  /// set_value() when all extents whose write has completed, and all headers put so far, survive a crash of the
  /// machine; set_error(error) when they may not. After an error every later sync fails, with errc::unavailable and
  /// the number of that error: the kernel may have forgotten what it could not write. Reopening the store finds what
  /// is there.
  struct sender {
    using sender_concept = ex::sender_t;
    template <class Self, class... E>
    static consteval auto get_completion_signatures() {
      return ex::completion_signatures<ex::set_value_t(), ex::set_error_t(error)>{};
    }
    template <class R>
    operation<R> connect(R receiver) const noexcept {
      return {*sync, std::move(receiver)};
    }
    store_sync* sync;
  };
  sender start() noexcept { return {this}; }

  /// The same, synchronously, on the calling thread: for shutdown. Nothing else may be under way.
  result<void> run() noexcept {
    pool_.finish();
    return perform(table_.take_changes());
  }

 private:
  void send_home(task& performed) noexcept { context_.post(performed); }

  // On the thread: one at a time.
  result<void> perform(const extent_table::changes& changes) noexcept {
    if (failed_)
      return fail(errc::unavailable,
                  "a store of KV blocks makes nothing durable, since a sync has failed, until it is "
                  "opened anew",
                  failed_->system);
    if (::fsync(data_) != 0)
      failed_ = fail(errc::io_error, "extents cannot be made durable", errno).value;
    else if (const auto written = table_.commit(changes); !written)
      failed_ = written.error();
    if (failed_) return propagate(*failed_);
    return {};
  }

  context& context_;
  extent_table& table_;
  int data_;
  std::optional<error> failed_;
  thread_pool pool_{1};  // the last member: its thread uses the others
};

}  // namespace TERRACE_EX
}  // namespace terrace
