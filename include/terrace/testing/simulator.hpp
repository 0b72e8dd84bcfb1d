#pragma once
#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <list>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "terrace/execution/context.hpp"
#include "terrace/prefix_index.hpp"
#include "terrace/testing/simulated_ladder.hpp"
#include "terrace/testing/simulated_program.hpp"
#include "terrace/testing/simulation_audit.hpp"
#include "terrace/testing/simulation_batch.hpp"
#include "terrace/testing/simulation_model.hpp"
#include "terrace/testing/simulation_repair.hpp"
#include "terrace/testing/simulation_stream.hpp"
#include "terrace/testing/virtual_clock.hpp"

namespace terrace {
inline namespace TERRACE_EX {

/// What a simulation has seen.
struct simulation_counts {
  std::uint64_t operations = 0;
  std::uint64_t acquires = 0;
  std::uint64_t checked = 0;  ///< blocks whose every byte was compared
  std::uint64_t lost = 0;     ///< blocks that were reported lost, each time with a fault that explains it
  std::uint64_t refused = 0;  ///< reservations and acquires for which there was no room
  std::uint64_t faults = 0;
  std::uint64_t durable = 0;     ///< names that a flush covered
  std::uint64_t found = 0;       ///< names that were found when the cache was opened again
  std::uint64_t restored = 0;    ///< blocks that were computed anew
  std::uint64_t recomputed = 0;  ///< those of them that were copied from a sequence
  std::uint64_t streams = 0;     ///< whose result matched attention in double
  std::uint64_t pages = 0;       ///< of windows of batches, checked likewise
  std::uint64_t adopted = 0;     ///< tokens that a prefix index knew
  std::uint64_t damaged = 0;     ///< copies that were reported damaged, and given up
  std::uint64_t awaited = 0;     ///< reservations that came without blocking, later than they were asked for
  std::uint64_t suspended = 0;   ///< open blocks that might leave tier 0
  std::uint64_t resumed = 0;     ///< sequences that went on after that

  /// All of them, for sums and for what is sent from one process to another.
  static constexpr std::array all{
      &simulation_counts::operations, &simulation_counts::acquires,  &simulation_counts::checked,
      &simulation_counts::lost,       &simulation_counts::refused,   &simulation_counts::faults,
      &simulation_counts::durable,    &simulation_counts::found,     &simulation_counts::restored,
      &simulation_counts::damaged,    &simulation_counts::adopted,   &simulation_counts::pages,
      &simulation_counts::streams,    &simulation_counts::awaited,   &simulation_counts::suspended,
      &simulation_counts::resumed,    &simulation_counts::recomputed};
  simulation_counts& operator+=(const simulation_counts& other) noexcept {
    for (const auto member : all) this->*member += other.*member;
    return *this;
  }
};

/// Drives a real cache through a program on a virtual clock, against a model that knows every byte of every block.
/// Deterministic: the same ladder, seed and program do the same, so a failure can be replayed and made shorter.
///
/// Its laws, checked after every operation:
/// - a block that is handed out has the right bytes, when it is acquired and until it is released
/// - windows of batches have the pages of their sequences, each in order, none left out, and right bytes
/// - a block is lost only where a fault has struck a copy of it, or late where something stalls; not after it was
///   computed anew
/// - no tier grows beyond its capacity; stores that fail are counted, and show in the tier's health
/// - what a flush has covered is found again after a power cut, and what was forgotten before it is not
/// and whenever nothing is on its way:
/// - blocks that nobody refers to are those of the prefix index, and what was let go of them is counted
/// - nobody waits; references, pins, staging and room are exactly what the users of the cache hold
class simulator {
 public:
  explicit simulator(simulated_ladder& l)
      : ladder_(l), contents_(l.setup.layout, codecs_of(l)), stamps_(l.setup.seed) {
    for (std::size_t t = 0; t < ladder_.rungs.size(); ++t) {
      faulty_device* const device = ladder_.rungs[t].device.get();
      if (device == nullptr) continue;
      devices_.push_back(device);
      device->longest = std::chrono::milliseconds(1);
      device->stall = std::chrono::minutes(1);
      device->on_fault = [this, t](device_call call, std::uint64_t at, fault what) {
        strike(t, call, at, what);
      };
    }
  }
  simulator(const simulator&) = delete;

  /// Runs all of it, and then takes everything down. Returns the first law that does not hold, as a sentence, or an
  /// empty string. After a violation this object must not be destroyed: the cache's state is unknown.
  std::string run(const simulated_program& program) {
    open();
    for (const simulated_operation& o : program) {
      if (!violation_.empty()) return violation_;
      ++counts.operations;
      clock_.rouse();
      perform(o);
      look_around();
    }
    if (violation_.empty()) settle();
    if (violation_.empty()) close(false);
    return violation_;
  }

  simulation_counts counts;

 private:
  using verb = simulated_verb;
  static constexpr std::size_t most_sequences = 5, most_tokens = 64, most_acquires = 10, most_names = 12,
                               most_lost = 16, most_texts = 8, most_tenants = 2, most_batches = 2,
                               most_streams = 2, most_restorations = 2, most_requests = 3, most_cuts = 3;

  static std::vector<any_codec> codecs_of(const simulated_ladder& l) {
    std::vector<any_codec> all;
    for (const auto& rung : l.rungs) all.push_back(rung.codec);
    return all;
  }
  void violate(std::string law) {
    if (violation_.empty()) violation_ = std::move(law);
  }
  kv_store& cache() noexcept { return ladder_.cache(); }
  planner& control() noexcept { return cache().control(); }

  // --- Opening and closing.

  void open() {
    between_ = true;
    const auto opened = ladder_.open(ctx_);
    between_ = false;
    if (!opened) return violate("a cache cannot be opened: " + opened.error().message());
    watch_.emplace(ladder_);
    prefixes_.emplace(cache(), prefix_index_options{.chunks = 1 + ladder_.setup.seed % 40,
                                                    .tenant_blocks = ladder_.setup.seed % 3 * 20});
  }
  void drive_until_nothing_waits() {
    const auto waits = [this] {
      return !flushes_.empty() ||
             std::any_of(acquires_.begin(), acquires_.end(),
                         [](const simulated_acquire& a) { return !a.done(); }) ||
             std::any_of(batches_.begin(), batches_.end(),
                         [](const simulated_batch& b) { return b.asking || b.reserving; }) ||
             std::any_of(streams_.begin(), streams_.end(),
                         [](const simulated_stream& x) { return !x.done; }) ||
             std::any_of(requests_.begin(), requests_.end(),
                         [](const simulated_request& r) { return !r.done; }) ||
             std::any_of(cuts_.begin(), cuts_.end(), [](const simulated_cut& c) { return !c.done; }) ||
             std::any_of(rebuilds_.begin(), rebuilds_.end(),
                         [](const simulated_rebuild& r) { return !r.done; });
    };
    for (int i = 0; i < 100'000 && waits(); ++i) {
      ctx_.wait(ctx_.now() + std::chrono::seconds(1));
      end_flushes();
      for (simulated_rebuild& r : rebuilds_) r.room.reset();  // others may wait for it
    }
    if (waits()) violate("somebody waits for ever");
  }
  void close(bool crash) {
    if (crash)
      for (faulty_device* d : devices_) d->cut_power();
    while (!restorations_.empty()) end_restoration(0, crash);
    for (simulated_acquire& a : acquires_) a.stop();
    for (simulated_batch& b : batches_) b.stop();
    for (simulated_stream& x : streams_) x.stop();
    for (simulated_request& r : requests_) r.stop();
    for (simulated_cut& c : cuts_) c.stop();
    for (simulated_rebuild& r : rebuilds_) r.stop();
    drive_until_nothing_waits();
    if (!violation_.empty()) return;
    for (auto& [number, named] : model_.names)
      if (const auto id = cache().find(model_.key(number)); !id || model_.struck(*id)) named.struck = true;
    acquires_.clear();
    streams_.clear();
    requests_.clear();
    cuts_.clear();
    rebuilds_.clear();
    batches_.clear();
    lost_.clear();
    for (const extent& e : std::exchange(borrowed_, {})) control().give_back(e);
    for (simulated_sequence& s : sequences_) s.open.reset();
    sequences_.clear();
    prefixes_.reset();
    between_ = true;
    ladder_.close();
    between_ = false;
    model_.forget_ids();
  }
  void reopen(bool crash) {
    close(crash);
    if (!violation_.empty()) return;
    open();
    if (!violation_.empty()) return;
    if (std::exchange(struck_between_, false))
      for (auto& [number, named] : model_.names) named.struck = true;
    auto names = std::exchange(model_.names, {}), forgotten = std::exchange(model_.forgotten, {});
    for (const auto& [number, named] : names)
      find_again(number, named, named.durable && !named.struck, false);
    for (const auto& [number, named] : forgotten) find_again(number, named, false, !crash || named.gone);
  }
  void find_again(std::uint64_t number, simulation_model::named_block named, bool must, bool must_not) {
    const auto id = cache().find(model_.key(number));
    if (must && !id) return violate("a name that a flush had covered was not found again");
    if (must_not && id) return violate("a name that had been forgotten was found again");
    if (!id) return;
    ++counts.found;
    // What no flush had covered may be there in part.
    named.struck = named.struck || !named.durable;
    if (named.struck) model_.strike(*id);
    named.durable = true;
    model_.names.emplace(number, named);
  }

  // --- What must hold: testing/simulator_laws.hpp.

  void strike(std::size_t tier, device_call call, std::uint64_t at, fault what);
  std::vector<block_id> alive();
  bool referred_to(block_id id);
  bool explained(block_id id, const error& cause);
  void look_around();
  void look_at(const page_table& pages);
  void examine(simulated_acquire& a);
  void compare(simulated_acquire& a);
  void end_flushes();
  bool waits_for_us(const simulated_acquire& a) const;
  void drive_until_idle();
  void settle();

  // --- The verbs: testing/simulator_verbs.hpp.

  simulated_sequence* pick_sequence(std::uint32_t i) {
    return sequences_.empty()
               ? nullptr
               : &*std::next(sequences_.begin(), static_cast<std::ptrdiff_t>(i % sequences_.size()));
  }
  // One that may be cut and forked; and one that may go on.
  simulated_sequence* pick_idle(std::uint32_t i) {
    simulated_sequence* const s = pick_sequence(i);
    return s == nullptr || s->open || s->batched || s->asking ? nullptr : s;
  }
  simulated_sequence* pick_closed(std::uint32_t i) {
    simulated_sequence* const s = pick_idle(i);
    return s == nullptr || s->tokens.suspended() ? nullptr : s;
  }
  void perform(const simulated_operation& o);
  void append(const simulated_operation& o);
  void begin_reservation(simulated_sequence& s, std::uint32_t tokens, const std::uint64_t* stamps = nullptr);
  void look_at_refusal(const tier_stats& hot, std::uint32_t tokens);
  void fill_reservation(simulated_sequence& s, reservation r, const std::uint64_t* stamps = nullptr);
  void end_reservation(simulated_sequence& s, std::uint32_t keep);
  void request(const simulated_operation& o);
  void examine(simulated_request& r, bool lone);
  void resume(const simulated_operation& o);
  void examine(simulated_cut& c);
  void truncate(simulated_sequence& s, std::uint64_t tokens);
  void acquire(const simulated_operation& o);
  void start_acquire(std::vector<simulated_acquire::wanted_block> wanted, lease_form form);
  void release(const simulated_operation& o);
  void hint_at(const simulated_operation& o);
  void flush();
  void name(const simulated_operation& o);
  void unname(const simulated_operation& o);
  void acquire_named(const simulated_operation& o);
  std::optional<simulated_acquire::wanted_block> pick_lost(const simulated_operation& o);
  void restore(const simulated_operation& o);
  void rebuild(const simulated_operation& o);
  void examine(simulated_rebuild& r);
  void begin_restoration(restoration room, const simulated_content& content, bool lost);
  void look_at_refusal(const error& why, bool lost, bool still);
  void recompute(const simulated_operation& o);
  void repair(const simulated_operation& o);
  void excuse(block_id id);
  void damage(const simulated_operation& o);
  void spoil(block_id id, std::size_t tier);
  void end_restoration(std::size_t i, bool whole);
  void attend(const simulated_operation& o);
  std::vector<float> attended(const simulated_sequence& s, std::uint32_t layer,
                              const std::vector<float>& queries) const;
  void examine(simulated_stream& s);
  simulated_batch* pick_batch(std::uint32_t i);
  void muster(const simulated_operation& o);
  void provide(const simulated_operation& o);
  void take_room(simulated_batch& b);
  void fork(const simulated_operation& o);
  void next(const simulated_operation& o);
  void pass(const simulated_operation& o);
  void enact(const simulated_operation& o);
  bool dismiss(simulated_batch& b, std::size_t i);
  void disband(simulated_batch& b);
  void examine(simulated_batch& b);
  void compare(simulated_batch& b);
  bool in_batch(const simulated_sequence& s) const;
  void drop(simulated_sequence& s);
  void insert(const simulated_operation& o);
  void adopt(const simulated_operation& o);
  void borrow(const simulated_operation& o);
  void resize(const simulated_operation& o);
  void plan_fault(const simulated_operation& o);
  void change_latency(const simulated_operation& o);
  void sleep(const simulated_operation& o);

  virtual_clock clock_;
  context ctx_{{.codec_threads = 0, .time = &clock_}};
  simulated_ladder& ladder_;
  simulated_contents contents_;
  seeded_random stamps_;
  std::vector<faulty_device*> devices_;
  std::optional<simulation_watch> watch_;
  simulation_model model_;
  std::optional<prefix_index> prefixes_;
  std::vector<std::vector<std::uint64_t>> texts_;  // stamps of tokens that were inserted
  std::list<simulated_sequence> sequences_;        // batches know where they are
  std::list<simulated_batch> batches_;
  std::list<simulated_stream> streams_;
  std::list<simulated_request> requests_;
  std::list<simulated_cut> cuts_;
  std::list<simulated_rebuild> rebuilds_;
  std::list<simulated_acquire> acquires_;
  std::list<simulated_flush> flushes_;
  std::vector<simulated_restoration> restorations_;
  std::deque<simulated_acquire::wanted_block> lost_;  // that an acquire has named lost
  std::vector<extent> borrowed_;
  context::clock::time_point late_until_{};
  std::uint64_t step_ = 0, next_name_ = 0;
  bool between_ = false, struck_between_ = false;  // while the cache is opened or closed
  std::string violation_;
};

}  // namespace TERRACE_EX
}  // namespace terrace

#include "terrace/testing/simulator_batches.hpp"   // IWYU pragma: export
#include "terrace/testing/simulator_laws.hpp"      // IWYU pragma: export
#include "terrace/testing/simulator_prefixes.hpp"  // IWYU pragma: export
#include "terrace/testing/simulator_repairs.hpp"   // IWYU pragma: export
#include "terrace/testing/simulator_streams.hpp"   // IWYU pragma: export
#include "terrace/testing/simulator_verbs.hpp"     // IWYU pragma: export
