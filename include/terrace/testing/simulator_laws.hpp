#pragma once
// What a simulation holds a cache to: what faults explain, what is looked at after each operation, and when nothing is
// on its way. Part of testing/simulator.hpp.
#include <algorithm>
#include <chrono>
#include <string>
#include <utility>
#include <vector>

#include "terrace/testing/simulator.hpp"

namespace terrace {
inline namespace TERRACE_EX {

// --- What faults explain.

inline void simulator::strike(std::size_t tier, device_call call, std::uint64_t at, fault what) {
  ++counts.faults;
  if (between_) {  // nobody can be asked which block that was
    struck_between_ = true;
    return;
  }
  if (what == fault::stall) {
    const faulty_device& d = *ladder_.rungs[tier].device;
    late_until_ = std::max(late_until_, ctx_.now() + d.stall + d.longest);
    return;
  }
  // A write that reports failure has cost nothing: its source is still there.
  if (call == device_call::sync ||
      (call == device_call::write && what != fault::bit_flip && what != fault::torn))
    return;
  for (const block_id id : alive()) {
    const bool present = control().copy(id.index, tier).present();
    if (present && control().where(id.index, tier).offset == at) model_.strike(id);
  }
}
// All blocks that exist, including those that only the prefix index knows.
inline std::vector<block_id> simulator::alive() {
  std::vector<block_id> all;
  for (std::uint32_t i = 0; i < control().indices(); ++i)
    if (control().record(i).now != block_record::phase::free) all.push_back(control().id_of(i));
  return all;
}
inline bool simulator::referred_to(block_id id) {
  for (const simulated_sequence& s : sequences_)
    for (const auto& row : s.tokens.pages().rows)
      if (std::find(row.begin(), row.end(), id) != row.end()) return true;
  for (const auto& [number, named] : model_.names)
    if (cache().find(model_.key(number)) == id) return true;
  return false;
}
inline bool simulator::explained(block_id id, const error& cause) {
  if (!referred_to(id) || model_.struck(id)) return true;
  const bool late = cause.code == errc::deadline || cause.code == errc::unavailable;
  return late && ctx_.now() <= late_until_ + ladder_.setup.tuning.transfers.deadline;
}

// --- What is looked at after each operation.

inline void simulator::look_around() {
  if (!violation_.empty()) return;
  for (const simulated_sequence& s : sequences_) look_at(s.tokens.pages());
  for (simulated_acquire& a : acquires_)
    if (a.done() && !std::exchange(a.examined, true)) examine(a);
  for (simulated_batch& b : batches_) {
    if (std::exchange(b.room_came, false)) take_room(b);
    if (std::exchange(b.fresh, false)) examine(b);
  }
  for (auto s = streams_.begin(); s != streams_.end();) {
    if (s->done) examine(*s);
    s = s->done ? streams_.erase(s) : std::next(s);
  }
  const bool lone = requests_.size() + cuts_.size() + rebuilds_.size() == 1;
  for (auto r = requests_.begin(); r != requests_.end();) {
    if (r->done) examine(*r, lone);
    r = r->done ? requests_.erase(r) : std::next(r);
  }
  for (auto c = cuts_.begin(); c != cuts_.end();) {
    if (c->done) examine(*c);
    c = c->done ? cuts_.erase(c) : std::next(c);
  }
  for (auto r = rebuilds_.begin(); r != rebuilds_.end();) {
    if (r->done) examine(*r);
    r = r->done ? rebuilds_.erase(r) : std::next(r);
  }
  end_flushes();
  if (violation_.empty()) violate(watch_->look());
}
// What follows the last whole block is open, unless a suspension has sealed it as it was.
inline void simulator::look_at(const page_table& pages) {
  for (std::size_t row = 0; row < pages.rows.size(); ++row)
    if (!pages.suspended && pages.rows[row].size() > pages.sealed(row) &&
        control().record(pages.rows[row].back().index).now != block_record::phase::open)
      violate("a sequence that nobody has suspended ends with a sealed part of a block");
}
inline void simulator::examine(simulated_acquire& a) {
  ++counts.acquires;
  compare(a);
  if (!a.failure) return;
  if (a.failure->code == errc::out_of_capacity && a.failure->lost.empty()) {
    ++counts.refused;
  } else if (a.failure->code != errc::lost || a.failure->lost.empty()) {
    violate("an acquire failed in a way that is none: " + a.failure->message());
  }
  for (const lost_block& l : a.failure->lost) {
    ++counts.lost;
    for (const auto& w : a.wanted)
      if (w.id == l.id) lost_.push_back(w);
    if (lost_.size() > most_lost) lost_.pop_front();
    if (std::find(a.excused.begin(), a.excused.end(), l.id) != a.excused.end()) continue;
    if (!explained(l.id, l.cause))
      violate("a block was lost that no fault has struck: " + std::string(l.cause.message()));
  }
}
// Compares all bytes of what is held.
inline void simulator::compare(simulated_acquire& a) {
  lease* const held = a.blocks();
  if (a.held && held->size() != a.wanted.size())
    return violate("a lease has not the blocks that were asked for");
  for (std::size_t i = 0; held != nullptr && i < held->size(); ++i) {
    const leased_block& b = (*held)[i];
    if (b.data == nullptr) {
      if (a.held) violate("a lease has a block without bytes");
      continue;
    }
    ++counts.checked;
    if (b.id != a.wanted[i].id) violate("a lease has not the blocks that were asked for");
    if (!contents_.matches(b, a.wanted[i].content))
      violate("a block was served with wrong bytes, from tier " + std::to_string(b.tier));
  }
}
inline void simulator::end_flushes() {
  for (auto f = flushes_.begin(); f != flushes_.end();) {
    if (!f->outcome) {
      ++f;
      continue;
    }
    // One that says lost has seen to the others all the same.
    const bool covered = f->outcome->has_value() || f->outcome->error().code == errc::lost;
    for (const std::uint64_t number : f->names)
      if (const auto found = model_.names.find(number);
          covered && ladder_.setup.keep && found != model_.names.end() &&
          std::find(f->lost.begin(), f->lost.end(), number) == f->lost.end()) {
        counts.durable += found->second.durable ? 0 : 1;
        found->second.durable = true;
      }
    for (const std::uint64_t number : f->forgotten)
      if (const auto found = model_.forgotten.find(number); *f->outcome && found != model_.forgotten.end())
        found->second.gone = true;
    f = flushes_.erase(f);
  }
}

// Whether it waits for a block that is being computed anew: for the engine, not for a transfer.
inline bool simulator::waits_for_us(const simulated_acquire& a) const {
  return !a.done() && std::any_of(restorations_.begin(), restorations_.end(),
                                  [&](const simulated_restoration& r) { return a.wants(r.room.id()); });
}
inline void simulator::drive_until_idle() {
  const auto in_flight = [this] {
    return std::any_of(devices_.begin(), devices_.end(),
                       [](const faulty_device* d) { return d->in_flight() != 0; });
  };
  look_around();  // which may let go of what somebody waits for
  for (int i = 0; i < 100'000 && violation_.empty() && (in_flight() || !ctx_.idle()); ++i) {
    ctx_.wait(ctx_.now() + std::chrono::seconds(1));
    look_around();
  }
  if (violation_.empty() && in_flight()) violate("transfers never end");
}

// Until nothing is on its way; then nobody may wait, and every account must be right.
inline void simulator::settle() {
  drive_until_idle();
  const auto somebody_waits = [this] {
    return std::any_of(acquires_.begin(), acquires_.end(),
                       [this](const simulated_acquire& a) { return waits_for_us(a); }) ||
           std::any_of(batches_.begin(), batches_.end(), [](const simulated_batch& b) { return b.asking; }) ||
           !streams_.empty() || !cuts_.empty();
  };
  while (violation_.empty() && !restorations_.empty() && somebody_waits()) {
    end_restoration(0, acquires_.size() % 2 == 0);
    drive_until_idle();
  }
  if (!violation_.empty()) return;
  if (!flushes_.empty()) return violate("a flush waits, and nothing is on its way");
  if (!streams_.empty()) return violate("a stream waits, and nothing is on its way");
  if (!requests_.empty()) return violate("a request for room waits, and nothing is on its way");
  if (!rebuilds_.empty()) return violate("room for a lost block is waited for, and nothing is on its way");
  if (!cuts_.empty()) return violate("a cut waits, and nothing is on its way");
  simulation_audit audit(ladder_);
  for (simulated_acquire& a : acquires_) {
    if (!a.done()) return violate("an acquire waits, and nothing is on its way");
    audit.add(a);
  }
  for (const simulated_batch& b : batches_) {
    if (b.asking || b.reserving) return violate("a batch waits, and nothing is on its way");
    audit.add(b);
  }
  for (const simulated_sequence& s : sequences_) audit.add(s);
  for (const auto& [number, named] : model_.names) {
    const auto id = cache().find(model_.key(number));
    if (!id) return violate("a name is gone");
    audit.add_name(*id);
  }
  for (const simulated_restoration& r : restorations_) audit.add(r);
  for (const extent& e : borrowed_) audit.add_borrowed(e.bytes);
  violate(audit.compare(prefixes_->stats()));
  violate(watch_->look_at_rest());
}

}  // namespace TERRACE_EX
}  // namespace terrace
