#pragma once
// Blocks that are computed anew, and copies that the engine finds damaged. Part of testing/simulator.hpp.
#include <algorithm>
#include <cstddef>
#include <cstring>
#include <optional>
#include <utility>
#include <vector>

#include "terrace/testing/simulator.hpp"

namespace terrace {
inline namespace TERRACE_EX {

// Mostly what was lost, whether it still is or not; otherwise any block, most of which must be refused.
inline std::optional<simulated_acquire::wanted_block> simulator::pick_lost(const simulated_operation& o) {
  if (!lost_.empty() && o.a % 4 != 0) return lost_[o.b % lost_.size()];
  const simulated_sequence* const s = pick_sequence(o.b);
  if (s == nullptr) return std::nullopt;
  const page_table& pages = s->tokens.pages();
  const auto row = static_cast<std::uint32_t>(o.c % pages.rows.size());
  if (pages.rows[row].empty()) return std::nullopt;
  const std::size_t index = o.c / 8 % pages.rows[row].size();
  if (!pages.rows[row][index].valid()) return std::nullopt;
  return simulated_acquire::wanted_block{pages.rows[row][index],
                                         simulation_model::content_of(*s, row, index)};
}

inline void simulator::restore(const simulated_operation& o) {
  if (restorations_.size() >= most_restorations) return;
  const auto chosen = pick_lost(o);
  if (!chosen) return;
  const bool lost = simulated_rebuild::is_lost(control(), chosen->id);
  auto room = cache().restore(chosen->id);
  if (room) return begin_restoration(std::move(*room), chosen->content, lost);
  look_at_refusal(room.error(), lost, simulated_rebuild::is_lost(control(), chosen->id));
}

// The same without blocking: the room may come later.
inline void simulator::rebuild(const simulated_operation& o) {
  if (restorations_.size() + rebuilds_.size() >= most_restorations) return;
  const auto chosen = pick_lost(o);
  if (!chosen) return;
  rebuilds_.emplace_back(cache(), chosen->id, chosen->content);
  rebuilds_.back().start();
}

inline void simulator::examine(simulated_rebuild& r) {
  if (r.room) return begin_restoration(std::move(*r.room), r.content, r.was_lost);
  if (r.failure) return look_at_refusal(*r.failure, r.was_lost, r.lost_still);
  if (!r.asked_to_stop) violate("room for a lost block was refused as stopped, and nobody has asked it to");
}

inline void simulator::begin_restoration(restoration room, const simulated_content& content, bool lost) {
  if (!lost) violate("a block can be computed anew that is not lost");
  contents_.write(room.data(), content);
  excuse(room.id());  // whoever has been told already that it is lost may have to wait for other blocks
  restorations_.push_back({std::move(room), content});
}

// The block may have been fetched while room was made.
inline void simulator::look_at_refusal(const error& why, bool lost, bool still) {
  ++counts.refused;
  if (!lost && why.code != errc::invalid_argument)
    violate("a block that is not lost was refused in a way that is none: " + why.message());
  if (lost && why.code != errc::out_of_capacity && (why.code != errc::unavailable || still))
    violate("a lost block was refused in a way that is none: " + why.message());
}

// Follows the recipe of docs/quickstart.md: what comes before the block is shared, and its tokens are computed by a
// sequence that is then given up.
inline void simulator::recompute(const simulated_operation& o) {
  if (restorations_.empty()) return;
  simulated_restoration& lost = restorations_[o.a % restorations_.size()];
  const block_range range = lost.room.range();
  const auto holds_it = [&](const simulated_sequence& s) {
    const auto& row = s.tokens.pages().rows[lost.content.row];
    return std::find(row.begin(), row.end(), lost.room.id()) != row.end();
  };
  const auto s = std::find_if(sequences_.begin(), sequences_.end(), holds_it);
  if (s == sequences_.end()) return;
  const std::size_t chunk = ladder_.setup.layout.chunk_tokens();
  const std::uint64_t first = range.first_token / chunk * chunk;
  auto shared = cache().fork(s->tokens, first);
  if (!shared) return violate("what comes before a lost block cannot be shared: " + shared.error().message());
  const auto tokens = static_cast<std::uint32_t>(range.first_token + range.tokens - first);
  const auto anew = shared->reserve(tokens);
  if (!anew) {
    ++counts.refused;
    if (anew.error().code != errc::out_of_capacity)
      violate("a reservation failed in a way that is none: " + anew.error().message());
    return;
  }
  const auto own = lost.content.stamps.begin();
  std::vector<std::uint64_t> stamps(s->stamps.begin() + static_cast<std::ptrdiff_t>(first),
                                    s->stamps.begin() + static_cast<std::ptrdiff_t>(range.first_token));
  stamps.insert(stamps.end(), own, own + range.tokens);
  contents_.write(*anew, stamps);
  std::memset(lost.room.data().data(), 0x55, lost.room.data().size());
  if (const auto copied = anew->copy_to(lost.room); !copied)
    return violate("what was computed anew cannot be copied: " + copied.error().message());
  ++counts.recomputed;
}

inline void simulator::repair(const simulated_operation& o) {
  if (!restorations_.empty()) end_restoration(o.a % restorations_.size(), o.b % 4 != 0);
}

inline void simulator::excuse(block_id id) {
  for (simulated_acquire& a : acquires_)
    if (!a.examined && a.wants(id)) a.excused.push_back(id);
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
  // Copies that nobody uses make way. If another copy is left, it may be the one that a fault has struck.
  bool anew = true;
  for (std::size_t t = 1; t < control().tiers(); ++t) {
    const block_copy& copy = control().copy(id.index, t);
    const bool makes_way = copy.now() == block_copy::state::resident && copy.pins == 0;
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

// Reports any copy: pinned, on its way, the only one, or one that does not exist. A copy that is given up gets other
// bytes, so that anybody who still reads it is found out.
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
