#pragma once
#include <cstddef>
#include <cstdint>
#include <forward_list>
#include <span>
#include <utility>
#include <vector>

#include "terrace/attention/mass_tally.hpp"
#include "terrace/attention/partial_state.hpp"
#include "terrace/attention/query_tile.hpp"
#include "terrace/cache/page_walk.hpp"
#include "terrace/core/block.hpp"

namespace terrace {
inline namespace TERRACE_EX {

/// A sequence in a stream: whose new tokens attend, what they read, and their result so far.
struct stream_member {
  struct page {
    std::uint32_t block;     ///< which of the stream's blocks
    std::uint32_t position;  ///< which block of its row
  };
  walk_member who;
  std::uint64_t changes = 0;  ///< of its page table, as counted when the stream began
  query_tile queries;
  partial_state state;
  mass_tally mass;          ///< what each page draws, if anybody wants to know
  std::vector<page> pages;  ///< the sealed ones to read, in order
  std::size_t folded = 0;   ///< of these
  std::size_t until = 0;    ///< of these, the end of those being folded now
};

/// A stream's working memory, kept from one stream to the next, so that a decode step allocates nothing.
struct stream_workspace {
  std::vector<block_id> blocks;         ///< sealed blocks to read, in order, each once
  std::vector<std::uint32_t> ordinals;  ///< the index of each among those that the queries see
  std::vector<block_id> wanted;         ///< scratch for prefetches
  std::vector<block_id> seen;           ///< likewise: the blocks of one row
  std::vector<float> shares;            ///< of the softmax mass, for each block that the queries see
  std::vector<walk_member> who;         ///< scratch: who attends
  page_walk walk;                       ///< likewise, over a row of several sequences
  std::vector<walked_page> walked;
  /// Queries of one member that are folded as one work item.
  struct query_run {
    std::uint32_t member, first, count;
  };
  std::vector<query_run> runs;  ///< scratch: those of one round
  /// Windows that were here when their turn came, since the last one that was waited for. Counted across streams,
  /// which follow one another layer by layer.
  std::size_t since_wait = static_cast<std::size_t>(-1) / 2;
  stream_workspace* next = nullptr;

  std::span<stream_member> members() noexcept { return std::span(members_).first(who.size()); }
  /// As many members as there are in `who`.
  void make_members() {
    if (members_.size() < who.size()) members_.resize(who.size());
  }

 private:
  std::vector<stream_member> members_;
};

/// Free workspaces of one cache. Owner thread only.
class stream_workspace_pool {
 public:
  stream_workspace* take() {
    if (free_ == nullptr) return &all_.emplace_front();
    return std::exchange(free_, free_->next);
  }
  void give_back(stream_workspace* w) noexcept { w->next = std::exchange(free_, w); }

 private:
  std::forward_list<stream_workspace> all_;
  stream_workspace* free_ = nullptr;
};

}  // namespace TERRACE_EX
}  // namespace terrace
