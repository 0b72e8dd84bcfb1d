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
/// cache/acquire.hpp. It stays in place from `planner::request` until `done` was called or `planner::cancel`
/// returned.
class acquire_request {
 public:
  using function = void (*)(acquire_request*) noexcept;

  acquire_request(std::span<const block_id> ids, function call) noexcept : wanted(ids), done(call) {}

  std::span<const block_id> wanted;
  lease_form form = lease_form::raw;
  function done;                   ///< called once, on the owner, when nothing is waited for any more
  lease_record* record = nullptr;  ///< what is pinned
  std::optional<error> refusal;    ///< the whole request was refused; nothing is pinned
  std::size_t waiting = 0;         ///< entries whose block is on its way
  std::size_t lost = 0;            ///< entries that no tier could give
  enum class phase : std::uint8_t { idle, queued, loading, ready, ended } now = phase::idle;
  acquire_request* next = nullptr;
};

/// Waits for write-behind to catch up; see `planner::flush`.
struct flush_request {
  void (*done)(flush_request*) noexcept;
  std::optional<error> failure;
  flush_request* next = nullptr;
};

}  // namespace terrace
