#pragma once
#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <queue>
#include <random>
#include <string_view>
#include <utility>
#include <vector>

#include "trace.hpp"

namespace replay {

/// Workloads that `generate` knows.
inline constexpr std::array<std::string_view, 4> workloads{"chat", "agents", "scan", "random"};

namespace detail {

// The same numbers with every standard library: their distributions differ, their engines do not.
class dice {
 public:
  explicit dice(std::uint64_t seed) : engine_(seed) {}
  double unit() { return (static_cast<double>(engine_() >> 11) + 0.5) * 0x1p-53; }
  std::size_t below(std::size_t n) { return static_cast<std::size_t>(unit() * static_cast<double>(n)); }
  double exponential(double mean) { return -mean * std::log(unit()); }
  bool chance(double p) { return unit() < p; }

 private:
  std::mt19937_64 engine_;
};

// What tells chats and agents apart: how long prompts are, how many turns follow, and how soon.
struct conversation_style {
  std::size_t prompts;        // different system prompts
  std::size_t prompt_blocks;  // the longest of them
  double turn_blocks;         // mean of the blocks that a turn adds
  double first_continues;     // probability that the first turn has a successor
  double later_continues;     // and each later one
  double think_time;          // mean time between turns, where that between conversations is 1
};

// Conversations that begin at random times and go on after a pause. The last block of a request is only partly
// filled, so its id does not come back: the next turn has a full block in its place.
inline trace conversations(const conversation_style& style, std::size_t requests, std::uint64_t seed) {
  struct conversation {
    std::vector<std::uint64_t> blocks;
    bool fresh = true;
  };
  dice d(seed);
  std::uint64_t next_id = 0;
  std::vector<std::vector<std::uint64_t>> prompts(style.prompts);
  for (auto& prompt : prompts)
    for (std::size_t n = 1 + d.below(style.prompt_blocks); n != 0; --n) prompt.push_back(next_id++);

  std::vector<conversation> all;
  using turn = std::pair<double, std::size_t>;  // when, whose
  std::priority_queue<turn, std::vector<turn>, std::greater<>> due;
  double arrival = 0;
  trace out;
  while (out.requests() < requests) {
    if (due.empty() || arrival < due.top().first) {
      // A few prompts are popular: the square of a uniform number.
      const double u = d.unit();
      all.push_back({prompts[static_cast<std::size_t>(u * u * static_cast<double>(prompts.size()))]});
      due.push({arrival, all.size() - 1});
      arrival += d.exponential(1);
      continue;
    }
    const auto [now, who] = due.top();
    due.pop();
    conversation& c = all[who];
    for (auto n = static_cast<std::size_t>(d.exponential(style.turn_blocks)); n != 0; --n)
      c.blocks.push_back(next_id++);
    std::vector<std::uint64_t> request = c.blocks;
    request.push_back(next_id++);
    out.add(request);
    if (d.chance(std::exchange(c.fresh, false) ? style.first_continues : style.later_continues))
      due.push({now + style.think_time * (0.2 + d.exponential(0.8)), who});
    else
      c.blocks = {};
  }
  return out;
}

}  // namespace detail

/// A generated workload, the same for the same arguments:
/// - chat: conversations of several turns over a few system prompts, with time to think between turns
/// - agents: loops of many short steps over long system prompts that their kind shares
/// - scan: a cyclic decode; each request streams the same 256 blocks
/// - random: 16 blocks of 16384, drawn uniformly: nothing can be learned
/// Precondition: `kind` is one of `workloads`.
inline trace generate(std::string_view kind, std::size_t requests, std::uint64_t seed) {
  if (kind == "chat")
    return detail::conversations({.prompts = 20,
                                  .prompt_blocks = 4,
                                  .turn_blocks = 8,
                                  .first_continues = 0.45,
                                  .later_continues = 0.75,
                                  .think_time = 300},
                                 requests, seed);
  if (kind == "agents")
    return detail::conversations({.prompts = 12,
                                  .prompt_blocks = 32,
                                  .turn_blocks = 2,
                                  .first_continues = 0.95,
                                  .later_continues = 0.93,
                                  .think_time = 20},
                                 requests, seed);
  trace out;
  detail::dice d(seed);
  std::vector<std::uint64_t> ids(kind == "scan" ? 256 : 16);
  for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = i;
  for (std::size_t n = 0; n < requests; ++n) {
    if (kind == "random")
      for (auto& id : ids) id = d.below(16384);
    out.add(ids);
  }
  return out;
}

}  // namespace replay
