#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "terrace/cache/page_table.hpp"
#include "terrace/cache/planner.hpp"

namespace terrace {
inline namespace TERRACE_EX {

/// A sequence that takes part in a walk: its pages, and the queries that will look at them.
struct walk_member {
  const page_table* pages = nullptr;  ///< nullptr: it sits this walk out
  std::uint64_t first_query = 0;      ///< position of its first query; what that query cannot see is left out
  std::uint64_t tokens = 0;           ///< all that it has, including those being written
};

/// A page of a window, before it is in place.
struct walked_page {
  std::uint32_t sequence = 0;  ///< which member of the walk
  std::uint32_t position = 0;  ///< which page of its sequence
  std::uint32_t block = 0;     ///< sealed: index into the window's blocks; open: the block's own index
  std::uint32_t tokens = 0;    ///< tokens in it
  bool open = false;
};

/// The most that a window may have; each at least 1.
struct window_limits {
  lease_form form = lease_form::raw;
  std::size_t slots = 1;   ///< blocks that take a slot of tier 0
  std::size_t blocks = 1;  ///< blocks in all
  std::size_t pages = 1;   ///< pages, where a block of m sequences counts as m; at least one for each member
  std::uint32_t align =
      1;  ///< windows begin at multiples of this many positions, if a window has room for that
};

/// The order in which a batch goes through one row of layers, cut into windows.
///
/// It goes position by position: the first page of every sequence, then the second page of every sequence, and so on.
/// Sequences that share a prefix have its blocks at the same positions, so all of them meet a shared block at once,
/// in one window, and each sequence still sees its pages in ascending order. Pages that are being written come last,
/// all in the last window.
class page_walk {
 public:
  /// Where a walk stands.
  struct place {
    std::uint32_t position = 0;
    std::uint32_t rank = 0;  ///< pages of this position that have already been given
    bool finished = false;
  };

  /// Begins at the start of a row. A member's page table must stay until the walk is over or the member is dropped;
  /// changing it makes the walk stale. O(members).
  void begin(planner& owner, std::span<const walk_member> members, std::uint32_t row) {
    owner_ = &owner;
    at_ = {};
    members_.clear();
    open_pages_ = 0;
    for (const walk_member& m : members) {
      if (m.pages != nullptr) page_tokens_ = m.pages->group(row).tokens;
      members_.push_back(m.pages == nullptr ? stretch{} : stretch_of(m, row));
      open_pages_ += members_.back().pages.size() - members_.back().sealed;
    }
  }

  place where() const noexcept { return at_; }
  void go_back(place to) noexcept { at_ = to; }
  bool finished() const noexcept { return at_.finished; }
  /// A member's pages have changed since the walk began: it cannot go on. O(members).
  bool stale() const noexcept {
    return std::any_of(members_.begin(), members_.end(),
                       [](const stretch& m) { return m.table != nullptr && m.table->changes != m.changes; });
  }
  /// Leaves a member out from here on; the others' pages are given as if nothing had happened. Precondition: the walk
  /// is finished, or not stale. O(members log members).
  void drop(std::uint32_t member);

  /// The next window: its distinct sealed blocks, and its pages, in ascending order for each sequence. Both are empty
  /// once all have been given. Precondition: the walk is not stale. O(members * log members) a position.
  void cut(const window_limits& most, std::vector<block_id>& blocks, std::vector<walked_page>& pages);

 private:
  static constexpr std::uint32_t none = 0xffffffffu;

  // A member's pages in the row. Of those before `sealed`, its first query sees the first `sinks` and those from
  // `oldest` on; those from `sealed` on are being written.
  struct stretch {
    const page_table* table = nullptr;
    std::uint64_t changes = 0;  // the table's count when the span was taken
    std::span<const block_id> pages;
    std::uint32_t sealed = 0;
    std::uint32_t sinks = 0;
    std::uint32_t oldest = 0;
    std::uint64_t tokens = 0;

    // The first page from `position` on that has to be read.
    std::uint32_t next(std::uint32_t position) const noexcept {
      for (;; ++position) {
        if (position >= sinks) position = std::max(position, oldest);
        if (position >= sealed) return none;
        if (pages[position].valid()) return position;
      }
    }
  };
  struct column_page {
    block_id block;
    std::uint32_t sequence;
    friend constexpr auto operator<=>(const column_page&, const column_page&) noexcept = default;
  };

  static stretch stretch_of(const walk_member& m, std::uint32_t row) noexcept {
    const layer_group& g = m.pages->group(row);
    const retention keep = g.keep;
    const std::uint64_t oldest =
        keep.window == 0 || m.first_query + 1 < keep.window ? 0 : m.first_query + 1 - keep.window;
    return {.table = m.pages,
            .changes = m.pages->changes,
            .pages = m.pages->rows[row],
            .sealed = static_cast<std::uint32_t>(m.pages->length / g.tokens),
            .sinks = keep.window == 0 ? 0 : (keep.sinks + g.tokens - 1) / g.tokens,
            .oldest = static_cast<std::uint32_t>(oldest / g.tokens),
            .tokens = m.tokens};
  }
  bool find_column();
  void add_open_pages(std::vector<walked_page>& pages);

  planner* owner_ = nullptr;
  std::vector<stretch> members_;
  std::vector<column_page> column_;  // the pages at one position, those of one block adjacent
  std::size_t open_pages_ = 0;
  std::uint32_t page_tokens_ = 0;
  place at_;
};

}  // namespace TERRACE_EX
}  // namespace terrace

#if !defined(TERRACE_PREBUILT)
#include "terrace/cache/page_walk_body.hpp"  // IWYU pragma: export
#endif
