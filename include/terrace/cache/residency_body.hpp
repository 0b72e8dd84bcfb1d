#pragma once
// The functions of cache/residency.hpp.
#include <cstddef>
#include <cstdint>
#include <utility>

#include "terrace/cache/residency.hpp"
#include "terrace/core/config.hpp"
#include "terrace/core/mix64.hpp"

namespace terrace {

TERRACE_BODY block_record* residency::find(block_id id) noexcept {
  if (id.index >= records_.size()) return nullptr;
  block_record& r = records_[id.index];
  return r.generation == id.generation && r.now != block_record::phase::free ? &r : nullptr;
}

TERRACE_BODY std::uint32_t residency::create() {
  std::uint32_t i = free_.front();
  if (i != index_link::none) {
    free_.erase(links_, i);
  } else {
    i = static_cast<std::uint32_t>(records_.size());
    records_.emplace_back();
    links_.emplace_back();
    idle_links_.emplace_back();
  }
  const std::uint32_t generation = records_[i].generation;
  records_[i] = block_record{};
  records_[i].generation = generation;
  records_[i].key = private_key(id_of(i));
  records_[i].now = block_record::phase::open;
  ++alive_;
  return i;
}

TERRACE_BODY void residency::recycle(std::uint32_t i) noexcept {
  block_record& r = records_[i];
  TERRACE_ASSERT(r.now != block_record::phase::free, "a block was recycled twice");
  r.now = block_record::phase::free;
  ++r.generation;
  --alive_;
  free_.push_back(links_, i);
}

TERRACE_BODY std::size_t residency::best_copy(const block_record& r, std::size_t from,
                                              unsigned except) const noexcept {
  std::size_t best = tiers_;
  for (std::size_t t = from; t < tiers_; ++t)
    if ((except >> t & 1u) == 0 && r.copies[t].readable() &&
        (best == tiers_ || r.copies[t].quality > r.copies[best].quality))
      best = t;
  return best;
}

TERRACE_BODY bool residency::saved_below(const block_record& r, std::size_t t) const noexcept {
  return best_copy(r, t + 1) != tiers_;
}

TERRACE_BODY void residency::mark_idle(std::uint32_t i, bool yes) noexcept {
  if (std::exchange(records_[i].idle, yes) == yes) return;
  if (yes)
    idle_.push_back(idle_links_, i);
  else
    idle_.erase(idle_links_, i);
}

TERRACE_BODY std::uint64_t residency::private_key(block_id id) noexcept {
  return mix64((std::uint64_t{id.generation} << 32 | id.index) + 1);
}

TERRACE_BODY void residency::enqueue(index_list& queue, std::uint32_t i, bool& in, bool yes) noexcept {
  if (in == yes) return;
  in = yes;
  if (yes)
    queue.push_back(links_, i);
  else
    queue.erase(links_, i);
}

}  // namespace terrace
