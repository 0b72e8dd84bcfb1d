#pragma once
// Blocks that are computed anew, and copies that the engine finds damaged. Part of testing/simulator.hpp.
#include <algorithm>
#include <cstddef>
#include <utility>

#include "terrace/testing/simulator.hpp"

namespace terrace {
inline namespace TERRACE_EX {

// Mostly what was lost, be it still so or not; else whatever there is, most of which must be refused.
inline void simulator::restore(const simulated_operation& o) {
  if (restorations_.size() >= most_restorations) return;
  simulated_acquire::wanted_block chosen;
  if (!lost_.empty() && o.a % 4 != 0) {
    chosen = lost_[o.b % lost_.size()];
  } else {
    const simulated_sequence* const s = pick_sequence(o.b);
    if (s == nullptr) return;
    const page_table& pages = s->tokens.pages();
    const auto row = static_cast<std::uint32_t>(o.c % pages.rows.size());
    if (pages.rows[row].empty()) return;
    const std::size_t index = o.c / 8 % pages.rows[row].size();
    chosen.id = pages.rows[row][index];
    if (!chosen.id.valid()) return;
    chosen.content = simulation_model::content_of(*s, row, index);
  }
  const block_id id = chosen.id;
  const auto is_lost = [&] {
    return control().id_of(id.index) == id && !control().copy(id.index, 0).present() &&
           control().record(id.index).now == block_record::phase::sealed;
  };
  const bool lost = is_lost();
  auto room = cache().restore(id);
  if (room) {
    if (!lost) violate("a block can be computed anew that is not lost");
    contents_.write(room->data(), chosen.content);
    excuse(id);  // who has been told already that it is lost may have to wait for other blocks
    restorations_.push_back({std::move(*room), chosen.content});
    return;
  }
  ++counts.refused;
  const errc why = room.error().code;
  if (!lost && why != errc::invalid_argument)
    violate("a block that is not lost was refused in a way that is none: " + room.error().message());
  // While room was made, which drives the context, it may have been brought.
  if (lost && why != errc::out_of_capacity && (why != errc::unavailable || is_lost()))
    violate("a lost block was refused in a way that is none: " + room.error().message());
}

inline void simulator::repair(const simulated_operation& o) {
  if (!restorations_.empty()) end_restoration(o.a % restorations_.size(), o.b % 4 != 0);
}

inline void simulator::excuse(block_id id) {
  for (simulated_acquire& a : acquires_)
    if (!a.done() && a.wants(id)) a.excused.push_back(id);
  for (simulated_batch& b : batches_)
    if (b.asking) b.excused.push_back(id);
  for (simulated_stream& s : streams_) s.excused.push_back(id);
  for (simulated_cut& c : cuts_) c.excused = c.excused || c.wants(id);
}

inline void simulator::end_restoration(std::size_t i, bool whole) {
  const auto at = restorations_.begin() + static_cast<std::ptrdiff_t>(i);
  simulated_restoration r = std::move(*at);
  restorations_.erase(at);
  const block_id id = r.room.id();
  if (!contents_.holds(r.room.data(), r.content))
    violate("somebody has written where a block is computed anew");
  if (!whole) return excuse(id);
  ++counts.restored;
  // What could not be read makes way. Where some other copy is left, it may be what a fault has struck.
  bool anew = true;
  for (std::size_t t = 1; t < control().tiers(); ++t) {
    const block_copy& copy = control().copy(id.index, t);
    const bool makes_way = copy.doubtful && copy.now() == block_copy::state::resident && copy.pins == 0;
    anew = anew && (!copy.present() || makes_way);
  }
  if (anew) model_.mend(id);
  for (auto& [number, named] : model_.names) {
    if (cache().find(model_.key(number)) != id) continue;
    named.durable = false;  // before the next flush
    if (anew) named.struck = false;
  }
  std::move(r.room).complete();
}

// Of any copy, be it pinned, on its way, the only one, or none. What is given up has other bytes from then on, so that
// who still reads it is found out.
inline void simulator::damage(const simulated_operation& o) {
  using state = block_copy::state;
  const std::vector<block_id> all = alive();
  if (all.empty()) return;
  const block_id id = all[o.a % all.size()];
  const std::size_t tiers = control().tiers(),
                    tier = o.b % 16 == 0 ? o.b / 16 % (tiers + 1) : 1 + o.b % (tiers - 1);
  const bool there = tier != 0 && tier < tiers && control().copy(id.index, tier).present();
  const bool busy = there && (control().copy(id.index, tier).pins != 0 ||
                              control().copy(id.index, tier).now() != state::resident);
  bool last = true;
  for (std::size_t t = 0; t < tiers; ++t) {
    const block_copy& copy = control().copy(id.index, t);
    last = last && (t == tier || !copy.readable() || copy.doubtful);
  }
  if (there && !busy) spoil(id, tier);
  if (there && !busy && last) model_.strike(id);
  for (auto& [number, named] : model_.names)
    if (there && !busy && cache().find(model_.key(number)) == id)
      named.durable = false;  // before the next flush
  const auto done = cache().report_damaged(id, tier);
  counts.damaged += done ? 1 : 0;
  if (done.has_value() != (there && !busy))
    violate(done ? "a copy was given up that cannot be"
                 : "a copy cannot be given up: " + done.error().message());
  if (!done && done.error().code != (busy ? errc::unavailable : errc::invalid_argument))
    violate("a copy was not given up for a reason that is none: " + done.error().message());
}

inline void simulator::spoil(block_id id, std::size_t tier) {
  const extent where = control().where(id.index, tier);
  if (faulty_device* const device = ladder_.rungs[tier].device.get())
    return device->spoil(where.offset, where.bytes);
  leased_block b = control().readable_now(id, lease_form::raw);
  if (b.data == nullptr || b.tier != tier) b = control().readable_now(id, lease_form::attendable);
  for (std::size_t i = 0; b.data != nullptr && b.tier == tier && i < where.bytes; ++i)
    const_cast<std::byte*>(b.data)[i] ^= std::byte{0x55};
}

}  // namespace TERRACE_EX
}  // namespace terrace
