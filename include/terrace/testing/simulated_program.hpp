#pragma once
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "terrace/testing/seeded_random.hpp"

namespace terrace {

/// What a simulated engine does to a cache, and what happens to it.
enum class simulated_verb : std::uint8_t {
  begin,    ///< a new sequence
  append,   ///< tokens to a sequence: reserve, write, commit some
  reserve,  ///< the same, but the reservation stays open
  commit,   ///< ends an open reservation
  fork,
  truncate,
  forget,
  drop,     ///< a sequence
  acquire,  ///< consecutive blocks of a row; as they are, or as attention takes them
  stop,     ///< asks an acquire that is under way to stop
  release,  ///< a lease, by its own verb, tier by tier, or by letting it go
  prefetch,
  hint,
  weigh,
  step,
  flush,
  name,
  unname,
  acquire_named,
  borrow,  ///< room of tier 0
  give_back,
  resize,   ///< some tier, to some part of its initial capacity
  fault,    ///< befalls one of the next calls of some device
  latency,  ///< how long a device takes from now on, and whether it heeds stops
  poll,
  wait,       ///< until something completes
  sleep,      ///< time passes: as long as a transfer, or beyond a deadline, or beyond a stall
  settle,     ///< until nothing is on its way; then every account must be right
  restart,    ///< the cache is closed and opened again
  crash,      ///< the same by a power cut
  restore,    ///< room to compute a lost block anew, or one for which that must be refused
  repair,     ///< such a block is written, or given up
  damage,     ///< the engine finds a copy damaged
  insert,     ///< the text of a sequence, into the prefix index
  adopt,      ///< a new sequence with a text that may be known, or partly so
  expel,      ///< a tenant, or all, from the prefix index
  muster,     ///< a batch of some sequences
  provide,    ///< a batch reserves tokens for its members
  next,       ///< a batch is asked for its next window, of the layer that is under way or another
  pass,       ///< a window is released
  halt,       ///< a batch that has been asked is asked to stop
  enact,      ///< what a batch has reserved is committed
  dismiss,    ///< a batch leaves a member out
  disband,    ///< a batch ends
  attend,     ///< a stream over an open reservation
  cease,      ///< asks a stream to stop
  request,    ///< room for tokens, without blocking
  abandon,    ///< asks such a request to stop
  suspend,    ///< a sequence
  resume,     ///< likewise, or cuts one, without blocking
  yield,      ///< asks such a cut to stop
  rebuild,    ///< as restore, without blocking
  desist,     ///< asks such a request to stop
  recompute,  ///< such a block is copied from a sequence that recomputes it
};
inline constexpr std::size_t simulated_verbs = static_cast<std::size_t>(simulated_verb::recompute) + 1;

/// One operation. Its numbers are interpreted in the state that it meets, modulo what exists there: so any part of a
/// program is a program, and a failing one can be made shorter.
struct simulated_operation {
  simulated_verb what = simulated_verb::poll;
  std::uint32_t a = 0, b = 0, c = 0;
  friend bool operator==(const simulated_operation&, const simulated_operation&) noexcept = default;
};
using simulated_program = std::vector<simulated_operation>;

/// How often the verbs come, relative to one another; in the order of simulated_verb.
using simulated_mix = std::array<std::uint16_t, simulated_verbs>;

inline constexpr simulated_mix usual_mix{// begin append reserve commit fork truncate forget drop
                                         20, 150, 20, 30, 15, 15, 15, 12,
                                         // acquire stop release prefetch hint weigh step
                                         200, 25, 130, 35, 30, 10, 40,
                                         // flush name unname acquire_named borrow give_back resize
                                         12, 35, 15, 30, 8, 10, 8,
                                         // fault latency poll wait sleep settle restart crash
                                         35, 6, 90, 60, 12, 10, 2, 2,
                                         // restore repair damage insert adopt expel
                                         25, 25, 12, 35, 35, 1,
                                         // muster provide next pass halt enact dismiss disband
                                         20, 30, 120, 90, 8, 30, 5, 6,
                                         // attend cease request abandon suspend resume yield
                                         60, 5, 60, 5, 30, 60, 5,
                                         // rebuild desist recompute
                                         25, 3, 15};

inline constexpr std::array<std::string_view, usual_mix.size()> simulated_verb_names{
    "begin",   "append", "reserve",       "commit",   "fork",      "truncate", "forget",  "drop",
    "acquire", "stop",   "release",       "prefetch", "hint",      "weigh",    "step",    "flush",
    "name",    "unname", "acquire_named", "borrow",   "give_back", "resize",   "fault",   "latency",
    "poll",    "wait",   "sleep",         "settle",   "restart",   "crash",    "restore", "repair",
    "damage",  "insert", "adopt",         "expel",    "muster",    "provide",  "next",    "pass",
    "halt",    "enact",  "dismiss",       "disband",  "attend",    "cease",    "request", "abandon",
    "suspend", "resume", "yield",         "rebuild",  "desist",    "recompute"};
static_assert(!simulated_verb_names.back().empty());

/// `operations` random operations.
inline simulated_program random_program(std::uint64_t seed, std::size_t operations,
                                        const simulated_mix& mix = usual_mix) {
  seeded_random random(seed);
  std::size_t all = 0;
  for (const auto weight : mix) all += weight;
  simulated_program program(operations);
  for (simulated_operation& o : program) {
    std::size_t at = random.below(all), verb = 0;
    while (at >= mix[verb]) at -= mix[verb++];
    const auto number = [&] { return static_cast<std::uint32_t>(random.next() % 1'000'000); };
    o.what = static_cast<simulated_verb>(verb);
    o.a = number();
    o.b = number();
    o.c = number();
  }
  return program;
}

/// A program as text, one operation a line, and back; nothing if the text is not a program.
inline std::string to_text(const simulated_program& program) {
  std::ostringstream out;
  for (const simulated_operation& o : program)
    out << simulated_verb_names[static_cast<std::size_t>(o.what)] << ' ' << o.a << ' ' << o.b << ' ' << o.c
        << '\n';
  return out.str();
}
inline std::optional<simulated_program> program_from(const std::string& text) {
  std::istringstream in(text);
  simulated_program program;
  std::string verb;
  while (in >> verb) {
    simulated_operation o;
    std::size_t i = 0;
    while (i < simulated_verb_names.size() && simulated_verb_names[i] != verb) ++i;
    if (i == simulated_verb_names.size() || !(in >> o.a >> o.b >> o.c)) return std::nullopt;
    o.what = static_cast<simulated_verb>(i);
    program.push_back(o);
  }
  return program;
}

/// A shorter program that still fails, from which no single operation can be left out: delta debugging (Zeller and
/// Hildebrandt, "Simplifying and isolating failure-inducing input", 2002). `fails` is asked at most `most` times.
template <class Fails>
simulated_program shrink(simulated_program program, Fails fails, std::size_t most = 2000) {
  for (std::size_t chunk = program.size() / 2; chunk != 0 && most != 0;) {
    bool shorter = false;
    for (std::size_t at = program.size();
         at != 0 && most != 0;) {  // from the end: what comes late matters least
      const std::size_t first = at > chunk ? at - chunk : 0;
      simulated_program without = program;
      without.erase(without.begin() + static_cast<std::ptrdiff_t>(first),
                    without.begin() + static_cast<std::ptrdiff_t>(at));
      --most;
      if (fails(without)) {
        program = std::move(without);
        shorter = true;
      }
      at = std::min(first, program.size());
    }
    if (!shorter || chunk != 1) chunk /= 2;
  }
  return program;
}

}  // namespace terrace
