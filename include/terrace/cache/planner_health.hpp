#pragma once
// Which tiers work: what is reported to their breakers, what these allow, and when they try again. Part of
// cache/planner.hpp; the rules are in cache/tier_health.hpp.
#include <algorithm>

#include "terrace/cache/planner.hpp"
#include "terrace/core/config.hpp"

namespace terrace {

TERRACE_BODY bool planner::open(std::size_t tier) const noexcept { return tiers_[tier]->capacity() != 0; }

TERRACE_BODY bool planner::takes_blocks(std::size_t tier) const noexcept {
  const circuit_breaker& breaker = tiers_[tier]->breaker;
  // While hung transfers have not ended, a probe would only hang too.
  const bool probe = breaker.health().now != tier_health::state::working;
  return open(tier) && breaker.admits_store(context_.now()) && !(probe && hung_[tier] != 0);
}
TERRACE_BODY bool planner::admits_load(std::size_t tier) const noexcept {
  const circuit_breaker& breaker = tiers_[tier]->breaker;
  return breaker.health().answers || (breaker.admits_load(context_.now()) && hung_[tier] == 0);
}

// Where a block goes from `from`: the next open tier that takes blocks. tiers() if there is none.
TERRACE_BODY std::size_t planner::next_tier(std::size_t from) const noexcept {
  std::size_t t = from + 1;
  while (t < tiers() && !takes_blocks(t)) ++t;
  return t;
}

// The tier of the best copy below tier 0 that may be read now, as for residency::best_copy. tiers() if there is none.
TERRACE_BODY std::size_t planner::load_source(std::uint32_t block, unsigned tried) const noexcept {
  std::size_t best = tiers();
  for (std::size_t t = 1; t < tiers(); ++t)
    if ((tried >> t & 1) == 0 && blocks_.copy(block, t).readable() && admits_load(t) &&
        (best == tiers() || blocks_.copy(block, t).better_source_than(blocks_.copy(block, best))))
      best = t;
  return best;
}

TERRACE_BODY bool planner::note_begin(std::size_t tier, circuit_breaker::work w) noexcept {
  return tiers_[tier]->breaker.begun(w, context_.now());
}

TERRACE_BODY void planner::note_failure(std::size_t tier, circuit_breaker::work w, const error& cause,
                                        bool probe) noexcept {
  if (w != circuit_breaker::work::read) ++tiers_[tier]->stats.failed_stores;
  circuit_breaker& breaker = tiers_[tier]->breaker;
  breaker.failed(w, cause, context_.now(), probe);
  if (breaker.health().now == tier_health::state::set_aside) alarm_.call_by(breaker.health().next_retry);
}

// A pause may be over, or a sync overdue. Nothing else need happen meanwhile, so the timer has to report it.
TERRACE_BODY void planner::ring() noexcept {
  const auto now = context_.now();
  give_up_syncs(now);
  for (std::size_t t = 0; t < tiers(); ++t)  // as a probe, so that it heals without a flush
    sync_wanted_ = sync_wanted_ || (tiers_[t]->breaker.sync_failed() && may_sync(t));
  for (const tier_control* tier : tiers_) {
    const tier_health& health = tier->breaker.health();
    if (health.now == tier_health::state::set_aside && health.next_retry > now)
      alarm_.call_by(health.next_retry);
  }
  release_held(now);
  pump();
}

TERRACE_BODY cache_health planner::health() const {
  cache_health all;
  bool takes = false, any_below = false;
  for (std::size_t t = 0; t < tiers(); ++t) {
    all.tiers.push_back(health(t));
    if (!all.tiers.back().healthy) all.now = cache_health::verdict::degraded;
    if (t == 0 || !open(t)) continue;
    any_below = true;
    takes = takes || all.tiers.back().now == tier_health::state::working;
  }
  if (any_below && !takes) all.now = cache_health::verdict::failing;
  return all;
}

}  // namespace terrace
