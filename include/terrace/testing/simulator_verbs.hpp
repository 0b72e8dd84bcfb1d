#pragma once
// What the verbs of a program do to the cache and to the model. Part of testing/simulator.hpp.
#include <algorithm>
#include <chrono>
#include <utility>

#include "terrace/cache/hints.hpp"
#include "terrace/testing/simulator.hpp"

namespace terrace {
inline namespace TERRACE_EX {

inline void simulator::perform(const simulated_operation& o) {
  simulated_sequence* const any = pick_sequence(o.a);
  simulated_sequence* const closed = pick_closed(o.a);
  simulated_sequence* const idle = pick_idle(o.a);
  switch (o.what) {
    case verb::begin:
      if (sequences_.size() < most_sequences) sequences_.push_back({cache().make_sequence(), {}});
      return;
    case verb::append:
      return append(o);
    case verb::reserve:
      if (closed != nullptr && !in_batch(*closed)) begin_reservation(*closed, 1 + o.b % 9);
      return;
    case verb::commit:
      if (any != nullptr && any->open && !any->streaming)
        end_reservation(*any, o.b % (any->open->tokens() + 1));
      return;
    case verb::fork:
      return fork(o);
    case verb::truncate:
      if (idle != nullptr) truncate(*idle, o.b % (idle->stamps.size() + 1));
      return;
    case verb::forget:
      if (any != nullptr && !any->streaming && !any->asking)
        any->tokens.forget(o.b % most_tokens, o.b % most_tokens + o.c % 16);
      return;
    case verb::drop:
      if (any != nullptr && !any->streaming && !any->asking) drop(*any);
      return;
    case verb::acquire:
      return acquire(o);
    case verb::stop:
      if (!acquires_.empty())
        std::next(acquires_.begin(), o.a % static_cast<std::uint32_t>(acquires_.size()))->stop();
      return;
    case verb::release:
      return release(o);
    case verb::prefetch:
    case verb::weigh:
      if (any == nullptr) return;
      // A copy, because room that the sequence waits for may come in the meantime.
      for (const block_id id : std::vector(any->tokens.pages().rows[o.b % any->tokens.pages().rows.size()]))
        if (id.valid() && control().record(id.index).now == block_record::phase::sealed) {
          if (o.what == verb::prefetch)
            cache().prefetch({&id, 1}, o.c % 3 == 0 ? lease_form::attendable : lease_form::raw);
          else
            control().weigh(id.index, static_cast<float>(o.c % 1000) / 1000);
        }
      return;
    case verb::hint:
      return hint_at(o);
    case verb::step:
      return cache().advance_step(step_ += 1 + o.a % 3);
    case verb::flush:
      return flush();
    case verb::name:
      return name(o);
    case verb::unname:
      return unname(o);
    case verb::acquire_named:
      return acquire_named(o);
    case verb::restore:
      return restore(o);
    case verb::rebuild:
      return rebuild(o);
    case verb::desist:
      if (!rebuilds_.empty()) rebuilds_.back().stop();
      return;
    case verb::recompute:
      return recompute(o);
    case verb::repair:
      return repair(o);
    case verb::damage:
      return damage(o);
    case verb::muster:
      return muster(o);
    case verb::provide:
      return provide(o);
    case verb::next:
      return next(o);
    case verb::pass:
      return pass(o);
    case verb::halt:
      if (simulated_batch* const b = pick_batch(o.a)) b->stop();
      return;
    case verb::enact:
      return enact(o);
    case verb::dismiss:
      if (simulated_batch* const b = pick_batch(o.a)) dismiss(*b, o.b % b->members.size());
      return;
    case verb::disband:
      if (simulated_batch* const b = pick_batch(o.a); b != nullptr && !b->busy() && !b->streaming)
        disband(*b);
      return;
    case verb::attend:
      return attend(o);
    case verb::cease:
      if (!streams_.empty()) streams_.front().stop();
      return;
    case verb::request:
      return request(o);
    case verb::abandon:
      if (!requests_.empty()) requests_.back().stop();
      return;
    case verb::suspend:
      if (closed == nullptr) return;
      if (const auto blocks = closed->tokens.suspend())
        counts.suspended += *blocks;
      else
        violate("a sequence cannot be suspended: " + blocks.error().message());
      return;
    case verb::resume:
      return resume(o);
    case verb::yield:
      if (!cuts_.empty()) cuts_.back().stop();
      return;
    case verb::insert:
      return insert(o);
    case verb::adopt:
      return adopt(o);
    case verb::expel:
      return o.a % 8 == 0 ? prefixes_->clear() : prefixes_->drop_tenant(o.a % most_tenants);
    case verb::borrow:
      return borrow(o);
    case verb::give_back:
      if (borrowed_.empty()) return;
      control().give_back(borrowed_.back());
      return borrowed_.pop_back();
    case verb::resize:
      return resize(o);
    case verb::fault:
      return plan_fault(o);
    case verb::latency:
      return change_latency(o);
    case verb::poll:
      ctx_.poll();
      return;
    case verb::wait:
      ctx_.wait(ctx_.now() + std::chrono::milliseconds(2));
      return;
    case verb::sleep:
      return sleep(o);
    case verb::settle:
      return settle();
    case verb::restart:
    case verb::crash:
      return reopen(o.what == verb::crash);
  }
}

// Forks the whole sequence, or some whole chunks, which works even while it is being written.
inline void simulator::fork(const simulated_operation& o) {
  simulated_sequence* const s = o.c % 3 == 0 ? pick_sequence(o.a) : pick_idle(o.a);
  if (s == nullptr || sequences_.size() >= most_sequences) return;
  if (o.c % 3 != 0) return sequences_.push_back({cache().fork(s->tokens), std::vector(s->stamps)});
  const std::size_t chunk = ladder_.setup.layout.chunk_tokens();
  const std::size_t tokens = o.b % (s->stamps.size() / chunk + 1) * chunk;
  auto part = cache().fork(s->tokens, tokens);
  if (!part) return violate("a part of a sequence cannot be had: " + part.error().message());
  const auto end = s->stamps.begin() + static_cast<std::ptrdiff_t>(tokens);
  sequences_.push_back({std::move(*part), std::vector(s->stamps.begin(), end)});
}

// --- Writing.

inline void simulator::append(const simulated_operation& o) {
  simulated_sequence* const s = pick_closed(o.a);
  if (s == nullptr) return;
  const std::uint32_t tokens = 1 + o.b % 12;
  begin_reservation(*s, tokens);
  if (s->open) end_reservation(*s, o.c % 4 == 0 ? o.c / 4 % (tokens + 1) : tokens);
}

// Reserves tokens that nobody has seen yet, or those of a text that is computed anew.
inline void simulator::begin_reservation(simulated_sequence& s, std::uint32_t tokens,
                                         const std::uint64_t* stamps) {
  if (s.stamps.size() + tokens > most_tokens) return;
  const tier_stats hot = cache().stats().tiers[0];
  auto r = s.tokens.reserve(tokens);
  if (!r) {
    ++counts.refused;
    if (r.error().code != errc::out_of_capacity)
      violate("a reservation failed in a way that is none: " + r.error().message());
    look_at_refusal(hot, tokens);
    return;
  }
  fill_reservation(s, std::move(*r), stamps);
}

// All blocks have one size here, so free room is usable room.
inline void simulator::look_at_refusal(const tier_stats& hot, std::uint32_t tokens) {
  std::size_t blocks = 0;
  for (const layer_group& g : ladder_.setup.layout.groups) blocks += g.block_rows() * (tokens / g.tokens + 2);
  const std::size_t slot = align_up(ladder_.setup.layout.largest_block(), ladder_.rungs[0].granule);
  if (borrowed_.empty() && hot.capacity_bytes > hot.resident_bytes + blocks * slot)
    violate("a reservation was refused, and tier 0 had room");
}

inline void simulator::fill_reservation(simulated_sequence& s, reservation r, const std::uint64_t* stamps) {
  s.writing.clear();
  for (std::uint32_t i = 0; i < r.tokens(); ++i)
    s.writing.push_back(stamps == nullptr ? stamps_.next() : stamps[i]);
  contents_.write(r, s.writing);
  s.open.emplace(std::move(r));
}

// Nobody but the batch may change a sequence in the middle of the batch's layers.
inline void simulator::request(const simulated_operation& o) {
  simulated_sequence* const s = pick_closed(o.a);
  const std::uint32_t tokens = 1 + o.b % 12;
  if (s == nullptr || in_batch(*s) || requests_.size() >= most_requests ||
      s->stamps.size() + tokens > most_tokens)
    return;
  requests_.emplace_back(*s, tokens);
  requests_.back().start();
  requests_.back().waited = !requests_.back().done;
}

inline void simulator::examine(simulated_request& r, bool lone) {
  counts.awaited += r.room && r.waited ? 1 : 0;
  if (r.room) return fill_reservation(*r.of, std::move(*r.room));
  if (r.stopped && !r.asked_to_stop) violate("a request for room has stopped, and nobody has asked it to");
  if (r.failure) ++counts.refused;
  if (r.failure && r.failure->code != errc::out_of_capacity)
    violate("a request for room failed in a way that is none: " + r.failure->message());
  // What it gave back may have gone to others who waited, and these may have released more.
  if (r.failure && lone) look_at_refusal(r.hot, r.tokens);
  if (r.of->tokens.length() != r.of->stamps.size())
    violate("a request for room that failed has changed its sequence");
}

inline void simulator::end_reservation(simulated_sequence& s, std::uint32_t keep) {
  s.tokens.commit(std::move(*s.open), keep);
  s.open.reset();
  s.stamps.insert(s.stamps.end(), s.writing.begin(), s.writing.begin() + keep);
  if (s.tokens.length() != s.stamps.size()) violate("a sequence has not the tokens that were committed");
}

// The blocks that it cuts are fetched for that, and may be lost.
inline void simulator::truncate(simulated_sequence& s, std::uint64_t tokens) {
  std::vector<block_id> cut;
  const page_table& pages = s.tokens.pages();
  for (std::size_t row = 0; row < pages.rows.size(); ++row)
    if (const std::uint64_t at = tokens / pages.group(row).tokens; at < pages.rows[row].size())
      cut.push_back(pages.rows[row][at]);
  // truncate() would wait for them in here, and only the engine could end that.
  if (std::any_of(rebuilds_.begin(), rebuilds_.end(), [&](const simulated_rebuild& r) {
        return std::find(cut.begin(), cut.end(), r.id) != cut.end();
      }))
    return;
  for (std::size_t i = restorations_.size(); i-- != 0;)
    if (std::find(cut.begin(), cut.end(), restorations_[i].room.id()) != cut.end()) end_restoration(i, true);
  const auto done = s.tokens.truncate(tokens);
  if (done) return s.stamps.resize(tokens);
  if (s.tokens.length() != s.stamps.size()) violate("a cut that failed has changed the sequence");
  if (done.error().code == errc::out_of_capacity || done.error().code == errc::invalid_argument) return;
  if (std::none_of(cut.begin(), cut.end(), [&](block_id id) {
        return id.valid() && (explained(id, done.error()) || explained(id, {errc::deadline}));
      }))
    violate("a cut failed and no fault has struck: " + done.error().message());
}

// Cuts any sequence; a suspended one goes on after it.
inline void simulator::resume(const simulated_operation& o) {
  simulated_sequence* const s = pick_idle(o.a);
  if (s == nullptr || in_batch(*s) || cuts_.size() >= most_cuts) return;
  cuts_.emplace_back(*s,
                     s->tokens.suspended() && o.b % 4 != 0 ? s->stamps.size() : o.c % (s->stamps.size() + 1));
  cuts_.back().start();
}

inline void simulator::examine(simulated_cut& c) {
  simulated_sequence& s = *c.of;
  if (!c.failure && !c.stopped) {
    counts.resumed += c.was_suspended ? 1 : 0;
    s.stamps.resize(c.tokens);
    if (s.tokens.suspended()) violate("a sequence was cut, and is suspended still");
  }
  if (s.tokens.length() != s.stamps.size())
    return violate("a cut that failed has changed the sequence, or one that has not did nothing");
  if (c.stopped && !c.asked_to_stop) violate("a cut has stopped, and nobody has asked it to");
  if (!c.failure) return;
  ++counts.refused;
  const block_error& e = *c.failure;
  if (e.code == errc::out_of_capacity || e.code == errc::invalid_argument || c.excused) return;
  if (std::none_of(c.blocks.begin(), c.blocks.end(), [&](block_id id) {
        return id.valid() && (explained(id, e) || explained(id, {errc::deadline}));
      }))
    violate("a cut failed and no fault has struck: " + e.message());
}

// --- Reading.

inline void simulator::acquire(const simulated_operation& o) {
  const simulated_sequence* const s = pick_sequence(o.a);
  if (s == nullptr) return;
  const page_table& pages = s->tokens.pages();
  const auto row = static_cast<std::uint32_t>(o.b % pages.rows.size());
  const std::size_t sealed = pages.sealed(row);
  if (sealed == 0) return;
  const std::size_t first = o.b / 8 % sealed, count = 1 + o.c % 6;
  std::vector<simulated_acquire::wanted_block> wanted;
  for (std::size_t i = first; i < std::min(first + count, sealed); ++i)
    if (pages.rows[row][i].valid())
      wanted.push_back({pages.rows[row][i], simulation_model::content_of(*s, row, i)});
  if (wanted.empty()) return;
  if (o.c / 8 % 16 == 0) wanted.push_back(wanted.front());  // the same block twice
  start_acquire(std::move(wanted), o.c / 128 % 3 == 0 ? lease_form::attendable : lease_form::raw);
}

inline void simulator::start_acquire(std::vector<simulated_acquire::wanted_block> wanted, lease_form form) {
  if (acquires_.size() >= most_acquires) return;
  acquires_.emplace_back(cache(), std::move(wanted), form);
  acquires_.back().start();
}

inline void simulator::release(const simulated_operation& o) {
  if (acquires_.empty()) return;
  const auto a = std::next(acquires_.begin(), o.a % static_cast<std::uint32_t>(acquires_.size()));
  if (!a->done()) return;
  compare(*a);  // nothing has happened to it while it was held
  if (lease* const held = a->blocks(); held != nullptr && o.b % 3 == 0)
    held->release();
  else if (held != nullptr && o.b % 3 == 1)
    for (std::size_t t = 0; t < control().tiers(); ++t) held->release_tier(static_cast<std::uint8_t>(t));
  acquires_.erase(a);
}

inline void simulator::hint_at(const simulated_operation& o) {
  simulated_sequence* const s = pick_sequence(o.a);
  if (s == nullptr) return;
  const hint all[]{hint::hot(), hint::evictable(), hint::priority(0), hint::prefetchable(step_ + o.c % 5),
                   hint::ttl(step_ + o.c % 5)};
  const std::uint64_t first = o.b % most_tokens;
  const hint_outcome outcome = s->tokens.hint(first, first + o.c / 8 % 32, all[o.c % 5]);
  if (outcome.what != hint_outcome::verdict::accepted && *outcome.reason == 0)
    violate("a hint was not accepted, and nobody says why");
}

// --- Names.

inline void simulator::flush() {
  if (flushes_.size() >= 3) return;
  std::vector<std::uint64_t> names, forgotten;
  for (const auto& [number, named] : model_.names) names.push_back(number);
  for (const auto& [number, named] : model_.forgotten) forgotten.push_back(number);
  flushes_.emplace_back(cache(), std::move(names), std::move(forgotten));
  flushes_.back().start();
}

inline void simulator::name(const simulated_operation& o) {
  const simulated_sequence* const s = pick_sequence(o.a);
  if (s == nullptr || model_.names.size() >= most_names) return;
  const page_table& pages = s->tokens.pages();
  const auto row = static_cast<std::uint32_t>(o.b % pages.rows.size());
  if (pages.sealed(row) == 0) return;
  const std::size_t index = o.c % pages.sealed(row);
  const block_id id = pages.rows[row][index];
  if (!id.valid() || control().record(id.index).name.valid()) return;
  const std::uint64_t number = next_name_++;
  if (const auto named = cache().name(id, model_.key(number)); !named)
    return violate("a sealed block cannot be named: " + named.error().message());
  model_.names.emplace(number, simulation_model::named_block{simulation_model::content_of(*s, row, index)});
}

inline void simulator::unname(const simulated_operation& o) {
  if (model_.names.empty()) return;
  const auto at = std::next(model_.names.begin(), o.a % static_cast<std::uint32_t>(model_.names.size()));
  cache().forget(model_.key(at->first));
  model_.forgotten.emplace(at->first, simulation_model::named_block{at->second.content});
  model_.names.erase(at);
}

inline void simulator::acquire_named(const simulated_operation& o) {
  if (model_.names.empty()) return;
  const auto at = std::next(model_.names.begin(), o.a % static_cast<std::uint32_t>(model_.names.size()));
  const auto id = cache().find(model_.key(at->first));
  if (!id) return violate("a name is gone");
  start_acquire({{*id, at->second.content}}, lease_form::raw);
}

// --- Room, time, and what goes wrong.

inline void simulator::borrow(const simulated_operation& o) {
  if (borrowed_.size() >= 2) return;
  const auto room = control().borrow(512 + o.a % 4096);
  if (room)
    borrowed_.push_back(*room);
  else if (room.error().code != errc::out_of_capacity)
    violate("borrowing failed in a way that is none: " + room.error().message());
}

inline void simulator::resize(const simulated_operation& o) {
  const std::size_t tier = o.a % control().tiers();
  const std::size_t most = ladder_.setup.capacities[tier];
  const auto resized = cache().resize(tier, most / 4 * (o.b % 3 == 0 ? o.b / 3 % 5 : 4));
  if (!resized && (tier != 0 || resized.error().code != errc::invalid_argument))
    violate("a tier cannot be resized: " + resized.error().message());
}

inline void simulator::plan_fault(const simulated_operation& o) {
  if (devices_.empty()) return;
  static constexpr fault of_read[]{fault::io_error, fault::short_transfer, fault::bit_flip, fault::torn,
                                   fault::stall};
  static constexpr fault of_write[]{fault::io_error, fault::short_transfer, fault::bit_flip,
                                    fault::torn,     fault::stall,          fault::no_space};
  static constexpr fault of_sync[]{fault::io_error, fault::stall};
  faulty_device& device = *devices_[o.a % devices_.size()];
  const std::uint64_t nth = o.b / 8 % 4;
  const auto part = static_cast<std::uint8_t>(o.b / 32);
  const std::uint32_t call = o.b % 8;
  if (call < 4)
    device.script(device_call::read, nth, of_read[o.c % std::size(of_read)], part);
  else if (call < 7)
    device.script(device_call::write, nth, of_write[o.c % std::size(of_write)], part);
  else
    device.script(device_call::sync, 0, of_sync[o.c % std::size(of_sync)], part);
}

inline void simulator::change_latency(const simulated_operation& o) {
  using std::chrono::milliseconds;
  if (devices_.empty()) return;
  static constexpr milliseconds longest[]{milliseconds(0), milliseconds(1), milliseconds(50)};
  faulty_device& device = *devices_[o.a % devices_.size()];
  device.longest = longest[o.b % std::size(longest)];
  device.heeds_stop = o.c % 2 == 0;
}

inline void simulator::sleep(const simulated_operation& o) {
  using std::chrono::milliseconds;
  const std::chrono::steady_clock::duration naps[]{milliseconds(1), milliseconds(20),
                                                   ladder_.setup.tuning.transfers.deadline + milliseconds(1),
                                                   std::chrono::minutes(2)};
  const auto nap = naps[o.a % std::size(naps)];
  clock_.advance(nap);
  // An engine that stays away that long finds transfers late that were not.
  if (nap > ladder_.setup.tuning.transfers.deadline) late_until_ = std::max(late_until_, ctx_.now());
  ctx_.poll();
}

}  // namespace TERRACE_EX
}  // namespace terrace
