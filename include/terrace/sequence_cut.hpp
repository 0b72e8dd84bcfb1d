#pragma once
// Part of sequence.hpp: how a sequence is cut within a sealed block. The block is brought back, and what stays of it
// is copied into a new open one.
#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "terrace/cache/acquire.hpp"
#include "terrace/cache/page_table.hpp"
#include "terrace/cache/planner.hpp"
#include "terrace/cache/room.hpp"
#include "terrace/execution/elide.hpp"

namespace terrace {
inline namespace TERRACE_EX {

/// A cut under way. It takes room for all copies first, then brings and copies one row of layers after another. Until
/// it ends, the sequence is as it was and counts as reserved.
class sequence_cut {
 public:
  /// Cuts to `tokens` tokens; nullopt: to as many as there are.
  sequence_cut(page_table& pages, std::optional<std::uint64_t> tokens) noexcept
      : pages_(&pages), tokens_(tokens) {}

  planner& control() const noexcept { return *pages_->owner; }
  /// Finds the blocks to copy and prefetches them all, so that they come while there is no room yet.
  result<void> begin();
  bool copies() const noexcept { return !cuts_.empty(); }
  /// Takes room for the copies. False: a slot will come free when a transfer under way has ended.
  result<bool> take();
  /// The next block to copy, once there is room; nullptr: there is none.
  const block_id* wanted() const noexcept { return copied_ == cuts_.size() ? nullptr : &cuts_[copied_].from; }
  result<void> copy(const leased_block& from);
  /// Cuts the sequence. Other completions may run within this call.
  void finish();
  /// Instead of `finish`: leaves the sequence as it was. Other completions may run within this call too.
  void give_up();
  /// Frees the room that was taken.
  void drop_copies();

 private:
  struct cut_block {
    std::size_t row;
    block_id from;
    block_id to{};
  };
  page_table* pages_;
  std::optional<std::uint64_t> tokens_;
  std::vector<cut_block> cuts_;
  std::size_t opened_ = 0, copied_ = 0;  // of these
};

/// How a cut takes room for its copies (cache/room.hpp).
class cut_room {
 public:
  using value_type = void;
  explicit cut_room(sequence_cut& cut) noexcept : cut_(&cut) {}

  planner& control() noexcept { return cut_->control(); }
  result<void> begin() noexcept { return {}; }
  result<bool> take() { return cut_->take(); }
  void finish() noexcept {}
  void give_up() { cut_->drop_copies(); }

 private:
  sequence_cut* cut_;
};

/// The sender that `sequence::truncate_async` and `resume` return. Completes on the owner with set_value(),
/// set_error(block_error) or set_stopped(); after either of the latter two the sequence is as it was.
class cut_sender {
 public:
  using sender_concept = ex::sender_t;
  template <class Self, class... E>
  static consteval auto get_completion_signatures() {
    return ex::completion_signatures<ex::set_value_t(), ex::set_error_t(block_error), ex::set_stopped_t()>{};
  }
  explicit cut_sender(sequence_cut cut) noexcept : cut_(std::move(cut)) {}

  template <class R>
  class operation {
   public:
    using operation_state_concept = ex::operation_state_t;
    operation(sequence_cut cut, R r)
        : cut_(std::move(cut)),
          receiver_(std::move(r)),
          room_(room_sender(cut_room(cut_)).connect(granted{this})) {}
    operation(operation&&) = delete;

    void start() noexcept {
      if (auto begun = cut_.begin(); !begun)
        return ex::set_error(std::move(receiver_), block_error(begun.error()));
      if (cut_.copies()) return room_.start();
      cut_.finish();
      ex::set_value(std::move(receiver_));
    }

   private:
    struct granted {
      using receiver_concept = ex::receiver_t;
      operation* self;
      void set_value() noexcept { self->bring_next(); }
      void set_error(error e) noexcept { self->fail(block_error(e)); }
      void set_stopped() noexcept { self->stop(); }
      ex::env_of_t<R> get_env() const noexcept { return ex::get_env(self->receiver_); }
    };
    struct brought {
      using receiver_concept = ex::receiver_t;
      operation* self;
      void set_value(lease held) noexcept { self->copy(std::move(held)); }
      void set_error(block_error e) noexcept { self->fail(std::move(e)); }
      void set_stopped() noexcept { self->stop(); }
      ex::env_of_t<R> get_env() const noexcept { return ex::get_env(self->receiver_); }
    };

    // The previous acquire calls this as its very last action, so a new one may take its place.
    void bring_next() noexcept {
      const block_id* const next = cut_.wanted();
      if (next == nullptr) {
        cut_.finish();
        return ex::set_value(std::move(receiver_));
      }
      acquire_.emplace(elide{[&] {
        return acquire_sender(cut_.control(), {next, 1}).connect(brought{this});
      }});
      acquire_->start();
    }
    void copy(lease held) noexcept {
      const auto copied = cut_.copy(held[0]);
      held.release();
      if (!copied) return fail(block_error(copied.error()));
      bring_next();
    }
    void fail(block_error e) noexcept {
      cut_.give_up();
      ex::set_error(std::move(receiver_), std::move(e));
    }
    void stop() noexcept {
      cut_.give_up();
      ex::set_stopped(std::move(receiver_));
    }

    sequence_cut cut_;
    R receiver_;
    room_sender<cut_room>::operation<granted> room_;
    std::optional<acquire_sender::operation<brought>> acquire_;
  };

  template <class R>
  operation<R> connect(R receiver) const {
    return operation<R>(cut_, std::move(receiver));
  }

 private:
  sequence_cut cut_;
};

}  // namespace TERRACE_EX
}  // namespace terrace
