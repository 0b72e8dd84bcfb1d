#pragma once
// Sequences that decode together: what a batch reserves, its windows, and members that change or leave under it. Part
// of testing/simulator.hpp.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "terrace/testing/simulator.hpp"

namespace terrace {
inline namespace TERRACE_EX {

inline simulated_batch* simulator::pick_batch(std::uint32_t i) {
  return batches_.empty() ? nullptr
                          : &*std::next(batches_.begin(), static_cast<std::ptrdiff_t>(i % batches_.size()));
}
inline bool simulator::in_batch(const simulated_sequence& s) const {
  return std::any_of(batches_.begin(), batches_.end(), [&](const simulated_batch& b) {
    return std::find(b.members.begin(), b.members.end(), &s) != b.members.end();
  });
}

inline void simulator::muster(const simulated_operation& o) {
  if (batches_.size() >= most_batches) return;
  std::vector<simulated_sequence*> members;
  std::vector<sequence*> tokens;
  std::uint32_t chosen = o.a;
  for (simulated_sequence& s : sequences_) {
    if (chosen % 4 != 0 && !s.open && !s.asking) {
      members.push_back(&s);
      tokens.push_back(&s.tokens);
    }
    chosen /= 4;
  }
  if (members.empty()) return;
  const batch::options options{.sequences = static_cast<std::uint32_t>(members.size()),
                               .pages = 4 + o.b % 61,
                               .window_bytes = o.c % 8 * ladder_.setup.layout.largest_block(),
                               .look_ahead = o.c / 8 % 3 != 0};
  simulated_batch& b = batches_.emplace_back(cache(), options, std::move(members));
  if (const auto assigned = b.pages.assign(tokens); !assigned)
    violate("a batch does not take its sequences: " + assigned.error().message());
}

inline void simulator::provide(const simulated_operation& o) {
  simulated_batch* const b = pick_batch(o.a);
  if (b == nullptr || b->busy() || b->reserved) return;
  std::vector<std::uint32_t> tokens;
  std::uint32_t each = o.b;
  for (const simulated_sequence* s : b->members) {
    const bool takes = s != nullptr && !s->open && !s->batched && !s->asking && !s->tokens.suspended() &&
                       s->stamps.size() + 4 <= most_tokens;
    tokens.push_back(takes ? each % 5 : 0);
    each /= 5;
  }
  for (std::size_t i = 0; i < tokens.size(); ++i)
    if (tokens[i] != 0) b->members[i]->batched = true;
  if (o.c % 2 == 0)
    return b->ask_room(std::move(tokens));  // what comes of that is looked at as soon as it has come
  b->wanted = std::move(tokens);
  const auto room = b->pages.reserve(b->wanted);
  b->stopped = false;
  b->room_failure.reset();
  if (!room) b->room_failure = room.error();
  take_room(*b);
}

inline void simulator::take_room(simulated_batch& b) {
  const bool given = !b.stopped && !b.room_failure;
  if (b.room_failure) ++counts.refused;
  if (b.room_failure && b.room_failure->code != errc::out_of_capacity &&
      b.room_failure->code != errc::invalid_argument)
    violate("a batch reserved in a way that is none: " + b.room_failure->message());
  b.reserved = given;
  if (given) b.walking = false;
  for (std::size_t i = 0; i < b.wanted.size(); ++i) {
    if (b.wanted[i] == 0 || b.members[i] == nullptr) continue;  // it may have been left out since
    simulated_sequence& s = *b.members[i];
    s.batched = given;
    if (s.tokens.length() != s.stamps.size())
      violate("a batch that has not committed has changed a sequence");
    if (!given) continue;
    s.writing.clear();
    for (std::uint32_t t = 0; t < b.wanted[i]; ++t) s.writing.push_back(stamps_.next());
    contents_.write(b.pages.reserved(i), s.writing);
  }
}

// Precondition of a layer: nobody but the batch has reserved tokens for its members.
inline void simulator::next(const simulated_operation& o) {
  simulated_batch* const b = pick_batch(o.a);
  if (b == nullptr || b->busy()) return;
  for (std::size_t i = 0; i < b->members.size(); ++i)
    if (const simulated_sequence* const s = b->members[i];
        s != nullptr && (s->open || s->asking || s->tokens.suspended() || (s->batched && !b->reserves(i))))
      return;
  const std::uint32_t layers = ladder_.setup.layout.layers();
  const bool goes_on = b->walking && o.b % 8 != 0;
  if (b->walking && o.b % 16 == 8) {
    b->pages.rewind();
    b->walking = false;
  }
  b->excused.clear();
  b->ask(goes_on ? b->layer : o.b / 16 % layers, o.c % 2 == 0 ? lease_form::attendable : lease_form::raw);
}

inline void simulator::pass(const simulated_operation& o) {
  simulated_batch* const b = pick_batch(o.a);
  if (b == nullptr || !b->window) return;
  compare(*b);
  if (o.b % 2 == 0) b->window->release();
  b->window.reset();
}

inline void simulator::enact(const simulated_operation& o) {
  simulated_batch* const b = pick_batch(o.a);
  if (b == nullptr || b->busy() || !b->reserved || b->streaming) return;
  std::vector<std::uint32_t> kept;
  std::vector<simulated_sequence*> longer;
  for (std::size_t i = 0; i < b->members.size(); ++i) {
    kept.push_back(o.b % 4 == 0 ? o.c % (b->pages.new_tokens(i) + 1) : b->pages.new_tokens(i));
    longer.push_back(b->reserves(i) ? b->members[i] : nullptr);
  }
  b->pages.commit(kept);
  b->reserved = b->walking = false;
  for (std::size_t i = 0; i < kept.size(); ++i) {
    if (longer[i] == nullptr) continue;
    simulated_sequence& s = *longer[i];
    s.batched = false;
    s.stamps.insert(s.stamps.end(), s.writing.begin(), s.writing.begin() + kept[i]);
    if (s.tokens.length() != s.stamps.size()) violate("a batch has not committed what it was told");
  }
}

// False if that is not possible now.
inline bool simulator::dismiss(simulated_batch& b, std::size_t i) {
  simulated_sequence* const s = b.members[i];
  const bool may = s != nullptr && !b.busy() && !b.streaming, reserves = s != nullptr && b.reserves(i);
  auto dropped = b.pages.drop(i);
  if (may && !dropped && dropped.error().message() == error(batch::changed).message() && b.walking &&
      b.stale()) {
    b.pages.rewind();
    b.walking = false;
    dropped = b.pages.drop(i);
  }
  if (dropped.has_value() != may)
    violate("a batch leaves a member out when it may not, or does not when it may");
  if (!dropped) return false;
  if (reserves) s->batched = false;
  b.leave_out(i);
  return true;
}

inline void simulator::disband(simulated_batch& b) {
  for (std::size_t i = 0; i < b.members.size(); ++i)
    if (b.members[i] != nullptr && b.reserves(i)) b.members[i]->batched = false;
  batches_.remove_if([&](const simulated_batch& other) { return &other == &b; });
}

// A batch that cannot leave it out now keeps it.
inline void simulator::drop(simulated_sequence& s) {
  for (simulated_batch& b : batches_)
    for (std::size_t i = 0; i < b.members.size(); ++i)
      if (b.members[i] == &s && !dismiss(b, i)) return;
  s.open.reset();
  sequences_.remove_if([&](const simulated_sequence& other) { return &other == &s; });
}

inline void simulator::examine(simulated_batch& b) {
  if (b.wrong != nullptr) return violate(b.wrong);
  if (b.window) return compare(b);
  if (!b.failure) return;
  const block_error& e = *b.failure;
  if (e.code == errc::out_of_capacity && e.lost.empty()) {
    ++counts.refused;
  } else if (e.code == errc::invalid_argument) {
    if (e.message() != error(batch::changed).message() || !b.stale())
      violate("a batch has refused a window in a way that is none: " + e.message());
    b.pages.rewind();
    b.walking = false;
  } else if (e.code != errc::lost || e.lost.empty()) {
    violate("a batch has failed in a way that is none: " + e.message());
  }
  for (const lost_block& l : e.lost) {
    ++counts.lost;
    if (std::find(b.excused.begin(), b.excused.end(), l.id) == b.excused.end() && !explained(l.id, l.cause))
      violate("a batch has lost a block that no fault has struck: " + std::string(l.cause.message()));
  }
  b.failure.reset();  // and the lease of the others
}

// Compares all bytes of a window; those of pages that were being written only if nobody has gone on writing.
inline void simulator::compare(simulated_batch& b) {
  for (std::size_t p = 0; p < b.held.size(); ++p) {
    const simulated_batch::page& page = b.held[p];
    if (page.open && b.stale()) continue;
    ++counts.pages;
    const block_view seen = b.window->page(p);
    if (!contents_.page_matches(seen.data, static_cast<std::uint32_t>(seen.encoding), page.content,
                                page.tokens))
      violate("a batch has a page with wrong bytes");
  }
}

}  // namespace TERRACE_EX
}  // namespace terrace
