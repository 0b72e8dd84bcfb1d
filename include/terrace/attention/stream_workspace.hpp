#pragma once
#include <cstddef>
#include <cstdint>
#include <forward_list>
#include <utility>
#include <vector>

#include "terrace/attention/mass_tally.hpp"
#include "terrace/attention/partial_state.hpp"
#include "terrace/attention/query_tile.hpp"
#include "terrace/core/block.hpp"

namespace terrace {

/// What a stream computes in: kept from one stream to the next, so that a decode step allocates nothing.
struct stream_workspace {
  query_tile queries;
  partial_state state;
  std::vector<block_id> blocks;          ///< sealed blocks to read, in order
  std::vector<std::uint32_t> positions;  ///< which block of its row each of them is
  std::vector<std::uint32_t> ordinals;   ///< and which of those that the queries see
  mass_tally mass;                       ///< what each of them draws, where a policy wants to know
  std::vector<block_id> wanted;          ///< scratch for prefetches
  std::vector<block_id> seen;            ///< likewise: the blocks of one row
  std::vector<float> shares;             ///< what a prefetcher is told of `mass`
  /// Windows that were here when their turn came, since one was waited for; streams follow one another layer by layer.
  std::size_t since_wait = static_cast<std::size_t>(-1) / 2;
  stream_workspace* next = nullptr;
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

}  // namespace terrace
