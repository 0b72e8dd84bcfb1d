#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "terrace/batch.hpp"
#include "terrace/execution/elide.hpp"
#include "terrace/testing/simulation_model.hpp"

namespace terrace {
inline namespace TERRACE_EX {

/// A batch of a simulated engine, the window that it has out or has asked for, and which pages are still to come.
class simulated_batch {
 public:
  /// A page of the window, as it was when the window came.
  struct page {
    simulated_content content;
    std::uint32_t tokens = 0;
    block_id block;
    const simulated_sequence* of = nullptr;
    bool open = false;
  };
  simulated_batch(kv_store& cache, batch::options o, std::vector<simulated_sequence*> m)
      : pages(cache, o), members(std::move(m)) {}
  simulated_batch(simulated_batch&&) = delete;

  /// Asks for the next window; begins the layer if it is not under way. Precondition: not busy.
  void ask(std::uint32_t l, lease_form form) {
    if (!walking || l != layer) begin(l);
    failure.reset();
    stopped = fresh = false;
    asking = true;
    next_.reset();
    stop_.emplace();
    next_.emplace(elide{[&] { return pages.next(l, form).connect(receiver{this}); }});
    next_->start();
  }
  /// Asks for room for tokens[i] more tokens of member i, without blocking. Precondition: not busy, nothing reserved.
  void ask_room(std::vector<std::uint32_t> tokens) {
    wanted = std::move(tokens);
    room_failure.reset();
    stopped = room_came = false;
    reserving = true;
    room_.reset();
    stop_.emplace();
    room_.emplace(elide{[&] { return pages.reserve_async(wanted).connect(room_receiver{this}); }});
    room_->start();
  }
  void stop() noexcept {
    if (asking || reserving) stop_->request_stop();
  }
  /// Whether this batch has a reservation open on member i.
  bool reserves(std::size_t i) const noexcept { return pages.new_tokens(i) != 0; }
  bool busy() const noexcept { return asking || reserving || window.has_value(); }
  /// Whether a member that takes part in the layer has changed since the layer began.
  bool stale() const noexcept {
    return std::any_of(walks_.begin(), walks_.end(),
                       [](const walk& w) { return w.of != nullptr && w.changed(); });
  }
  void leave_out(std::size_t i) noexcept {
    members[i] = nullptr;
    if (i < walks_.size()) walks_[i] = {};
  }

  batch pages;
  std::vector<simulated_sequence*> members;  ///< nullptr: left out
  bool reserved = false;                     ///< between reserve and commit
  bool streaming = false;                    ///< a stream reads the reservations: they stay
  bool walking = false;                      ///< `layer` has begun
  std::uint32_t layer = 0;
  bool asking = false, reserving = false, stopped = false;
  bool room_came = false;             ///< an answer to `ask_room` that nobody has looked at
  std::vector<std::uint32_t> wanted;  ///< what was asked for
  std::optional<error> room_failure;  ///< why there is none
  bool fresh = false;                 ///< an answer has come that nobody has looked at
  std::optional<batch_window> window;
  std::optional<block_error> failure;
  std::vector<page> held;         ///< pages of the window, in the order of its arrays
  std::vector<block_id> excused;  ///< blocks that may be lost whatever has happened to them since
  const char* wrong = nullptr;    ///< what is wrong with the window that came last

 private:
  // The pages that a member has in a layer, and how many of them have come.
  struct walk {
    const simulated_sequence* of = nullptr;
    std::uint64_t changes = 0;
    std::vector<std::uint32_t> positions{};
    std::size_t come = 0;
    bool changed() const noexcept { return of->tokens.pages().changes != changes; }
  };
  struct receiver {
    using receiver_concept = ex::receiver_t;
    simulated_batch* b;
    void set_value(batch_window w) noexcept { b->come(std::move(w)); }
    void set_error(block_error e) noexcept {
      b->failure.emplace(std::move(e));
      b->asking = false;
      b->fresh = true;
    }
    void set_stopped() noexcept {
      b->stopped = b->fresh = true;
      b->asking = false;
    }
    auto get_env() const noexcept { return ex::prop{ex::get_stop_token, b->stop_->get_token()}; }
  };
  struct room_receiver {
    using receiver_concept = ex::receiver_t;
    simulated_batch* b;
    void set_value() noexcept { ended(); }
    void set_error(error e) noexcept {
      b->room_failure = e;
      ended();
    }
    void set_stopped() noexcept {
      b->stopped = true;
      ended();
    }
    void ended() noexcept {
      b->reserving = false;
      b->room_came = true;
    }
    auto get_env() const noexcept { return ex::prop{ex::get_stop_token, b->stop_->get_token()}; }
  };
  void begin(std::uint32_t l);
  void come(batch_window w) noexcept;

  std::vector<walk> walks_;
  std::optional<ex::inplace_stop_source> stop_;
  std::optional<next_sender::operation<receiver>> next_;
  std::optional<room_sender<batch_room>::operation<room_receiver>> room_;
};

inline void simulated_batch::begin(std::uint32_t l) {
  layer = l;
  walking = true;
  walks_.assign(members.size(), {});
  for (std::size_t i = 0; i < members.size(); ++i) {
    if (members[i] == nullptr || (reserved && !reserves(i))) continue;
    const page_table& table = members[i]->tokens.pages();
    const std::uint32_t row = table.row_of(l).first;
    walk& w = walks_[i];
    w.of = members[i];
    w.changes = table.changes;
    for (std::uint32_t p = 0; p < table.rows[row].size(); ++p)
      if (table.rows[row][p].valid()) w.positions.push_back(p);
  }
}

// Recorded at once: sequences may change before anybody looks.
inline void simulated_batch::come(batch_window w) noexcept {
  asking = false;
  fresh = true;
  wrong = nullptr;
  held.clear();
  if (w.empty()) {
    walking = false;
    for (const walk& each : walks_)
      if (each.of != nullptr && each.come != each.positions.size())
        wrong = "a batch has not given all pages of a layer";
    return;
  }
  if (stale()) wrong = "a batch has given a window though a sequence was changed";
  const page_arrays arrays = w.arrays();
  if (w.sequences() != members.size()) wrong = "a window has not the sequences of its batch";
  for (std::size_t i = 0; wrong == nullptr && i < members.size(); ++i) {
    const auto first = static_cast<std::size_t>(arrays.indptr[i]),
               last = static_cast<std::size_t>(arrays.indptr[i + 1]);
    for (std::size_t p = first; wrong == nullptr && p < last; ++p) {
      walk& each = walks_[i];
      if (each.of == nullptr || each.come == each.positions.size()) {
        wrong = "a window has a page that nobody is to see";
        break;
      }
      const simulated_sequence& s = *each.of;
      const page_table& table = s.tokens.pages();
      const std::uint32_t row = table.row_of(layer).first, at = each.positions[each.come++];
      const std::uint64_t each_tokens = table.group(row).tokens, begin = at * each_tokens;
      const std::uint64_t all = s.stamps.size() + (reserves(i) ? s.writing.size() : 0);
      page now{.content = {row, {}}, .block = table.rows[row][at], .of = &s, .open = at >= table.sealed(row)};
      now.tokens = static_cast<std::uint32_t>(std::min<std::uint64_t>(each_tokens, all - begin));
      for (std::uint32_t t = 0; t < now.tokens; ++t) {
        const std::uint64_t token = begin + t;
        now.content.stamps[t] =
            token < s.stamps.size() ? s.stamps[token] : s.writing[token - s.stamps.size()];
      }
      const block_view seen = w.page(p);
      if (seen.first_position != begin || static_cast<std::uint64_t>(arrays.positions[p]) != begin ||
          seen.tokens != now.tokens ||
          (p + 1 == last && arrays.last_page_len[i] != static_cast<std::int32_t>(now.tokens)))
        wrong = "a page of a window is not the next one of its sequence";
      if (w.base() +
              std::ptrdiff_t{arrays.indices[p]} * static_cast<std::ptrdiff_t>(batch_window::page_stride) !=
          seen.data)
        wrong = "an index of a window does not point at its page";
      held.push_back(now);
    }
  }
  window.emplace(std::move(w));
}

}  // namespace TERRACE_EX
}  // namespace terrace
