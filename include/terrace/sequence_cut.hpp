#pragma once
// Part of sequence.hpp: how a sequence is cut within a sealed block. The block is brought, and what stays of it copied into
// a new open one.
#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "terrace/cache/acquire.hpp"
#include "terrace/cache/room.hpp"
#include "terrace/execution/elide.hpp"
#include "terrace/sequence.hpp"

namespace terrace {
inline namespace TERRACE_EX {

/// A cut that is under way: one row of layers after the other has its block copied. Until its end the sequence is as it
/// was, and counts as reserved.
class sequence_cut {
 public:
  sequence_cut(page_table& pages, std::uint64_t tokens) noexcept : pages_(&pages), tokens_(tokens) {}

  planner& control() noexcept { return *pages_->owner; }
  /// Which blocks have to be copied. All are asked for, so that the later ones come while the first is copied.
  result<void> begin();
  /// The block that is to be copied next; nullptr: there is none.
  const block_id* wanted() const noexcept { return at_ == cuts_.size() ? nullptr : &cuts_[at_].from; }
  /// Copies it. False: a slot will come free when a transfer on its way has ended.
  result<bool> copy(const leased_block& from);
  void finish();
  void give_up();

 private:
  struct cut_block {
    std::size_t row;
    block_id from;
    block_id to{};
  };
  page_table* pages_;
  std::uint64_t tokens_;
  std::vector<cut_block> cuts_;
  std::size_t at_ = 0;
};

/// What one copy takes room for (cache/room.hpp).
class cut_room {
 public:
  using value_type = void;
  cut_room(sequence_cut& cut, const leased_block& from) noexcept : cut_(&cut), from_(from) {}

  planner& control() noexcept { return cut_->control(); }
  result<void> begin() noexcept { return {}; }
  result<bool> take() { return cut_->copy(from_); }
  void finish() noexcept {}
  void give_up() noexcept {}

 private:
  sequence_cut* cut_;
  leased_block from_;
};

/// The sender that `sequence::truncate_async` and `resume` return. Completes on the owner with set_value(),
/// set_error(block_error) or set_stopped(); after both of these the sequence is as it was.
class cut_sender {
 public:
  using sender_concept = ex::sender_t;
  template <class Self, class... E>
  static consteval auto get_completion_signatures() {
    return ex::completion_signatures<ex::set_value_t(), ex::set_error_t(block_error), ex::set_stopped_t()>{};
  }
  cut_sender(page_table& pages, std::uint64_t tokens) noexcept : pages_(&pages), tokens_(tokens) {}

  template <class R>
  class operation {
   public:
    using operation_state_concept = ex::operation_state_t;
    operation(page_table& pages, std::uint64_t tokens, R r) : cut_(pages, tokens), receiver_(std::move(r)) {}
    operation(operation&&) = delete;

    void start() noexcept {
      if (auto begun = cut_.begin(); !begun)
        return ex::set_error(std::move(receiver_), block_error(begun.error()));
      bring_next();
    }

   private:
    struct brought {
      using receiver_concept = ex::receiver_t;
      operation* self;
      void set_value(lease held) noexcept {
        self->held_ = std::move(held);
        self->copy();
      }
      void set_error(block_error e) noexcept { self->fail(std::move(e)); }
      void set_stopped() noexcept { self->stop(); }
      ex::env_of_t<R> get_env() const noexcept { return ex::get_env(self->receiver_); }
    };
    struct copied {
      using receiver_concept = ex::receiver_t;
      operation* self;
      void set_value() noexcept {
        self->held_ = {};
        self->bring_next();
      }
      void set_error(error e) noexcept { self->fail(block_error(e)); }
      void set_stopped() noexcept { self->stop(); }
      ex::env_of_t<R> get_env() const noexcept { return ex::get_env(self->receiver_); }
    };

    // Both are called by the operation before, as the last thing that it does, so that another may take its place.
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
    void copy() noexcept {
      room_.emplace(elide{[&] { return room_sender(cut_room(cut_, held_[0])).connect(copied{this}); }});
      room_->start();
    }
    void fail(block_error e) noexcept {
      held_ = {};
      cut_.give_up();
      ex::set_error(std::move(receiver_), std::move(e));
    }
    void stop() noexcept {
      held_ = {};
      cut_.give_up();
      ex::set_stopped(std::move(receiver_));
    }

    sequence_cut cut_;
    R receiver_;
    lease held_;
    std::optional<acquire_sender::operation<brought>> acquire_;
    std::optional<room_sender<cut_room>::operation<copied>> room_;
  };

  template <class R>
  operation<R> connect(R receiver) const {
    return operation<R>(*pages_, tokens_, std::move(receiver));
  }

 private:
  page_table* pages_;
  std::uint64_t tokens_;
};

inline cut_sender sequence::truncate_async(std::uint64_t tokens) noexcept { return {*pages_, tokens}; }
inline cut_sender sequence::resume() noexcept { return {*pages_, pages_->length}; }

}  // namespace TERRACE_EX
}  // namespace terrace
