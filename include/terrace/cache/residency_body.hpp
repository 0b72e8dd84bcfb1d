#pragma once
// The functions of cache/residency.hpp.
#include <cstddef>
#include <cstdint>
#include <utility>

#include "terrace/cache/residency.hpp"
#include "terrace/core/config.hpp"
#include "terrace/core/mix64.hpp"

namespace terrace {

TERRACE_BODY block_copy& residency::add_copy(std::uint32_t i, std::size_t t, extent where,
                                             fidelity quality) noexcept {
  block_copy& c = copy(i, t);
  TERRACE_ASSERT(!c.present(), "a tier was to have a second copy of a block");
  c.now_ = block_copy::state::filling;
  c.quality = quality;
  move_copy(i, t, where);
  return c;
}

TERRACE_BODY void residency::move_copy(std::uint32_t i, std::size_t t, extent where) noexcept {
  block_copy& c = copy(i, t);
  TERRACE_ASSERT(c.now_ == block_copy::state::filling, "a copy was moved that is not being written");
  c.node_ = where.node;
  places_[t][i].offset = where.offset;
  places_[t][i].bytes = where.bytes;
}

TERRACE_BODY void residency::set_readable(std::uint32_t i, std::size_t t, block_copy::state now) noexcept {
  block_copy& c = copy(i, t);
  TERRACE_ASSERT(c.present(), "a copy that is absent was made readable");
  c.now_ = now;
  TERRACE_ASSERT(c.readable(), "a copy was made readable in a state that is not");
  places_[t][i].generation = records_[i].generation;
}

TERRACE_BODY void residency::remove_copy(std::uint32_t i, std::size_t t) noexcept {
  copies_[t][i] = {};
  places_[t][i] = {};
}

TERRACE_BODY std::uint32_t residency::create() {
  std::uint32_t i = free_.front();
  if (i != index_link::none) {
    free_.erase(links_, i);
  } else {
    i = static_cast<std::uint32_t>(records_.size());
    records_.emplace_back();
    for (std::size_t t = 0; t < tiers_; ++t) {
      places_[t].emplace_back();
      copies_[t].emplace_back();
    }
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
  if (++r.generation == copy_place::unreadable) r.generation = 0;
  for (std::size_t t = 0; t < tiers_; ++t)
    TERRACE_ASSERT(!copy(i, t).present(), "a block was recycled that a tier still has");
  --alive_;
  free_.push_back(links_, i);
}

TERRACE_BODY std::size_t residency::best_copy(std::uint32_t i, std::size_t from,
                                              unsigned except) const noexcept {
  std::size_t best = tiers_;
  for (std::size_t t = from; t < tiers_; ++t)
    if ((except >> t & 1u) == 0 && copy(i, t).readable() &&
        (best == tiers_ || copy(i, t).better_source_than(copy(i, best))))
      best = t;
  return best;
}

TERRACE_BODY bool residency::saved_below(std::uint32_t i, std::size_t t) const noexcept {
  while (++t < tiers_)
    if (copy(i, t).readable() && !copy(i, t).doubtful) return true;
  return false;
}

TERRACE_BODY bool residency::sound_besides(std::uint32_t i, std::size_t t) const noexcept {
  for (std::size_t other = 0; other < tiers_; ++other)
    if (other != t && copy(i, other).readable() && !copy(i, other).doubtful) return true;
  return false;
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
