#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "terrace/cache/lease.hpp"
#include "terrace/core/block.hpp"
#include "terrace/core/error.hpp"

namespace terrace {

/// An acquire as the planner sees it: what is asked for, and whom to tell. The sender around it is in
/// cache/acquire.hpp. It must stay in place from `planner::request` until `done` was called or `planner::cancel`
/// returned.
class acquire_request {
 public:
  using function = void (*)(acquire_request*) noexcept;

  acquire_request(std::span<const block_id> ids, function call) noexcept : wanted(ids), done(call) {}

  std::span<const block_id> wanted;
  lease_form form = lease_form::raw;
  function done;                   ///< called once, on the owner, when nothing is left to wait for
  lease_record* record = nullptr;  ///< what is pinned
  std::optional<error> refusal;    ///< the whole request was refused; nothing is pinned
  std::size_t waiting = 0;         ///< entries whose block is on its way
  std::size_t lost = 0;            ///< entries that no tier could give
  enum class phase : std::uint8_t { idle, queued, loading, ready, ended } now = phase::idle;
  acquire_request* next = nullptr;
};

/// A caller that wants slots of tier 0 to write into, and does not block meanwhile (cache/room.hpp). It must stay in
/// place from `planner::request` until `done` was called or `planner::cancel` returned.
class room_request {
 public:
  using look = bool (*)(room_request*) noexcept;
  using function = void (*)(room_request*) noexcept;
  room_request(look try_now, function call) noexcept : take(try_now), done(call) {}

  look take;                     ///< takes what can be had now. True: it has all that it wants, or has failed
  function done;                 ///< called once, on the owner, after that
  std::optional<error> failure;  ///< why it did not get all that it wants
  room_request* next = nullptr;
};

/// Requests in line, first come first served. Owns none of them.
template <class Request>
struct request_queue {
  Request* head = nullptr;
  Request* tail = nullptr;

  void push(Request& r) noexcept {
    r.next = nullptr;
    (head == nullptr ? head : tail->next) = &r;
    tail = &r;
  }
  Request* pop() noexcept {
    Request* r = head;
    if (r != nullptr) head = r->next;
    return r;
  }
  /// Removes it wherever it is. O(requests in line).
  void erase(Request& r) noexcept {
    Request* before = nullptr;
    for (Request* at = head; at != nullptr; before = at, at = at->next) {
      if (at != &r) continue;
      (before == nullptr ? head : before->next) = r.next;
      if (tail == &r) tail = before;
      return;
    }
  }
};

/// Waits for write-behind to catch up. It must stay in place from `planner::flush` until `done` was called or
/// `planner::cancel` returned.
class flush_request {
 public:
  using function = void (*)(flush_request*) noexcept;
  explicit flush_request(function call) noexcept : done(call) {}

  function done;                 ///< called once, on the owner, when the flush is over
  bool answered = false;         ///< `done` has been called
  std::optional<error> failure;  ///< why the flush could not save all
  flush_request* next = nullptr;
};

/// The flushes that are answered together, and what they wait for. There are two rounds: blocks that become unsaved
/// enter one, while the other, with the blocks from before, can only drain. So later blocks delay no flush.
struct flush_round {
  flush_request* first = nullptr;  ///< nullptr: no flush is under way
  bool turned = false;             ///< blocks sealed from now on belong to the other round
  bool synced = false;             ///< its sync has begun
  bool synced_stuck = false;       ///< likewise a sync of what was stored, though not all could be
  bool marked = false;             ///< it has marked the stores of named blocks under way
  bool stuck = false;              ///< likewise the stores that may still make room
  unsigned stores = 0;             ///< awaited stores, not yet ended
  std::uint64_t names = 0;         ///< how many named blocks, ever, must have been looked at (planner::kept_)
  std::uint64_t naming = 0;        ///< the last name that was given before it
  std::optional<error> left_out = {};  ///< why it goes on without some named block
};

}  // namespace terrace
