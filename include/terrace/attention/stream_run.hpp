#pragma once
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "terrace/attention/attend.hpp"
#include "terrace/attention/stream_workspace.hpp"
#include "terrace/kv_store.hpp"
#include "terrace/observe/trace_log.hpp"
#include "terrace/sequence.hpp"

namespace terrace {
inline namespace TERRACE_EX {

/// How a stream goes about it. The defaults serve; `attend` and `stand_in` are for measuring.
struct stream_options {
  float scale = 0;  ///< of the logits; 0: 1 / sqrt(dim of the keys). MLA's is of another dim
  /// Over encoded blocks that are read where they are. With `integer` results depend on which blocks these are.
  attention_arithmetic arithmetic = attention_arithmetic::floating;
  std::size_t window_bytes = 0;  ///< raw bytes of the blocks of one window; 0: a share of tier 0
  bool attend = true;            ///< false: bring and pin all blocks, compute nothing, leave `out` as it is
  const_bytes stand_in = {};     ///< not empty: move nothing; what attention cannot read is taken from here
  /// Which of the row's sealed blocks to read, by their position in the row, ascending; those that the queries do not
  /// see anyway are left out. Not there: all of them. Open blocks are always read.
  std::optional<std::span<const std::uint32_t>> only = {};
};

/// Attention of a reservation's queries over one layer of a sequence, wherever its blocks are: load > compute
/// > merge over windows of blocks. Most of the windows come while the others are folded; memory is
/// bounded by the windows, not by the context. Loads are asked for in order; windows are folded in order,
/// whatever comes first, so the result's bits do not depend on where blocks were. Compute is shared by the
/// owner and the context's pool, except where a decode waits for its windows: then the owner folds them alone.
///
/// `run` is the part that does not depend on who is told. It stays in place until `done` was called.
class stream_run {
 public:
  using function = void (*)(stream_run*) noexcept;

  stream_run(kv_store& cache, const sequence& s, const reservation& r, std::uint32_t layer, stream_options o,
             function done) noexcept
      : cache_(cache),
        pages_(s.pages()),
        options_(o),
        done_(done),
        first_(r.first_position()),
        tokens_(r.tokens()) {
    const auto [row, in_block] = pages_.row_of(layer);
    row_ = row;
    layer_in_block_ = in_block;
  }
  stream_run(stream_run&&) = delete;
  ~stream_run() {
    if (work_ != nullptr) cache_.workspaces().give_back(work_);
  }

  const layer_group& group() const noexcept { return pages_.group(row_); }
  std::uint32_t tokens() const noexcept { return tokens_; }
  bool attends() const noexcept { return options_.attend; }
  partial_state& state() noexcept { return work_->state; }

  /// Takes the queries, [token][q_head][dim]. Errors: invalid_argument for a span of another size, and for a selection
  /// that is not ascending or goes beyond the sealed blocks.
  template <element_type Q>
  result<void> load(std::span<const Q> queries) {
    if (cache_.control().hot_reach() != reach::host)
      return fail(errc::invalid_argument,
                  "attention on the host cannot read a first tier in device memory; cuda/ has its own");
    const layer_group& g = group();
    const std::size_t per_head = std::size_t{tokens_} * g.k.dim;
    if (per_head == 0 || queries.size() % per_head != 0)
      return fail(errc::invalid_argument,
                  "the queries are not a whole number of heads for each reserved token");
    const attention_shape shape{.q_heads = static_cast<std::uint32_t>(queries.size() / per_head),
                                .kv_heads = g.k.heads,
                                .dim = g.k.dim,
                                .scale = options_.scale,
                                .keep = g.keep,
                                .arithmetic = options_.arithmetic};
    if (auto good = validate(shape, g); !good) return good;
    if (!selection_is_valid())
      return fail(errc::invalid_argument,
                  "the blocks that a stream is to read must be sealed ones, in ascending order");
    work_ = cache_.workspaces().take();
    if (auto loaded = work_->queries.load(shape, queries, first_); !loaded) return loaded;
    return work_->state.reset(work_->queries.rows(), g.v_dim());
  }
  /// Elements of the result: [token][q_head][v dim].
  std::size_t result_size() const noexcept { return work_->queries.rows() * group().v_dim(); }

  void start();
  /// Gives up: pins are returned, loads cancelled. `done` is called before this returns, unless it has been
  /// called.
  void stop() noexcept;

  std::optional<block_error> failure;
  bool stopped = false;

 private:
  // Windows at most, most of them on their way while the others are folded: the more, the less a disk waits for them. But
  // only so many that all of them take an eighth of tier 0, or six.
  static constexpr std::size_t depth = 12, least_depth = 6;
  static constexpr std::size_t piece = 8;  // blocks folded between two looks at what has completed

  struct window : acquire_request {
    explicit window() : acquire_request({}, &arrived) {}
    static void arrived(acquire_request* r) noexcept;
    stream_run* run = nullptr;
    std::size_t first = 0, blocks = 0;
    bool busy = false, here = false;
    lease held;
  };

  template <class F>
  void for_each_seen(std::uint32_t row, F&& f) const;
  bool selection_is_valid() const noexcept;
  void choose_blocks();
  row_use use() const noexcept;
  std::size_t window_blocks() const noexcept;
  void pump() noexcept;
  void ask(window& w) noexcept;
  std::size_t most_coming() const noexcept { return limit_ > 2 ? limit_ - 2 : 1; }
  bool take_front();
  void drop_windows() noexcept;
  void fold_window(const window& w, std::size_t first, std::size_t blocks);
  void fold_in_place();
  void fold_open_tail();
  template <class View>
  void fold(std::size_t blocks, View view_of, std::optional<std::size_t> tallied = {});
  void report_mass();
  bool folds_alone() const noexcept {
    return work_->since_wait < depth && few_queries() && options_.stand_in.empty();
  }
  bool few_queries() const noexcept { return work_->queries.size() * work_->queries.shape().group() <= 16; }
  lease_form form() const noexcept;
  block_view view(std::size_t position, const std::byte* data, std::uint32_t format_id = 0) const noexcept;
  void ask_ahead();
  void look_ahead();
  void gather_wishes();
  void begin_stall() noexcept;
  void end_stall() noexcept;
  void finish() noexcept;

  kv_store& cache_;
  const page_table& pages_;
  stream_options options_;
  function done_;
  std::uint64_t first_;
  std::uint32_t tokens_, row_ = 0, layer_in_block_ = 0;
  stream_workspace* work_ = nullptr;
  std::array<window, depth> windows_;
  std::size_t front_ = 0;            // the window that is folded next
  std::size_t in_flight_ = 0;        // windows asked for and not folded
  std::size_t coming_ = 0;           // of these, the ones that have not come
  std::size_t limit_ = least_depth;  // fewer where tier 0 turned out to be too small for so many
  std::size_t asked_ = 0;            // blocks asked for
  std::uint32_t seen_ = 0;           // sealed blocks that the queries see, whether they are read or not
  std::size_t loads_end_ = 0;        // behind the last block that cannot be read where it is
  std::size_t most_blocks_ = static_cast<std::size_t>(-1);  // of a window, likewise
  std::int64_t stalled_since_ = 0;                          // where it is traced, and waits
  bool pumping_ = false, again_ = false, over_ = false, looked_ahead_ = false;
  bool waits_ = false;  // for the front window, with nothing else to do
};

// Blocks of a window that come into slots of tier 0: enough to keep a disk busy, and so few that all windows
// in flight take at most about half of tier 0.
inline std::size_t stream_run::window_blocks() const noexcept {
  const std::size_t block = group().block_bytes();
  std::size_t bytes = options_.window_bytes;
  if (bytes == 0) bytes = std::min<std::size_t>(4_MiB, cache_.control().hot_capacity() / (2 * least_depth));
  return std::max<std::size_t>(1, bytes / block);
}

inline void stream_run::start() {
  choose_blocks();
  cache_.prefetcher().observe(use());
  // Worked out where a step decodes: over a prefill's many queries it would cost memory, and say little.
  const bool asked_for = cache_.control().weighs() || cache_.prefetcher().watches();
  const bool weighs = options_.attend && few_queries() && asked_for;
  work_->mass.reset(weighs ? work_->blocks.size() : 0, work_->queries.rows());
  for (window& w : windows_) w.run = this;
  limit_ = std::clamp(cache_.control().hot_capacity() / (8 * window_blocks() * group().block_bytes()),
                      least_depth, depth);
  if (!options_.stand_in.empty()) {
    fold_in_place();
    fold_open_tail();
    return finish();
  }
  pump();
}

inline void stream_run::window::arrived(acquire_request* r) noexcept {
  auto& w = *static_cast<window*>(r);
  w.here = true;
  --w.run->coming_;
  w.run->pump();
}

inline void stream_run::ask(window& w) noexcept {
  w.first = asked_;
  // What is read where it is takes no slot: a window closes when it has its share of the others.
  const std::size_t share = std::min(window_blocks(), most_blocks_);
  std::size_t slots = 0;
  for (w.blocks = 0; slots < share && w.blocks < 4 * share && asked_ + w.blocks < work_->blocks.size();
       ++w.blocks)
    slots += cache_.control().needs_slot(work_->blocks[asked_ + w.blocks], form()) ? 1 : 0;
  asked_ += w.blocks;
  w.wanted = std::span<const block_id>(work_->blocks).subspan(w.first, w.blocks);
  w.busy = true;
  w.here = false;
  w.refusal.reset();
  w.form = form();
  w.waiting = w.lost = 0;
  ++in_flight_;
  ++coming_;
  cache_.control().request(w);
}

// Asks for as many windows as there may be, but never for all of them at a time. A disk may complete all that it has
// been given at once, at the end: it then has something to do only if windows are free that moment, and not only
// when the first has been folded.
inline void stream_run::ask_ahead() {
  while (in_flight_ < limit_ && coming_ < most_coming() && asked_ < work_->blocks.size())
    ask(windows_[(front_ + in_flight_) % depth]);
  look_ahead();
}

// Folds windows in order as they come, and asks for the next ones as soon as there is a free window. What
// completes while it computes is noted by `arrived` and found in the next round.
inline void stream_run::pump() noexcept {
  again_ = true;
  if (pumping_ || over_) return;
  pumping_ = true;
  while (std::exchange(again_, false) && !over_) {
    ask_ahead();
    if (in_flight_ != 0 && windows_[front_].here) {
      end_stall();
      work_->since_wait = std::exchange(waits_, false) ? 0 : work_->since_wait + 1;
      again_ = take_front();
    }
    if (in_flight_ == 0 && asked_ == work_->blocks.size() && !failure) {
      fold_open_tail();
      report_mass();
      over_ = true;
    }
    if (failure) over_ = true;
  }
  pumping_ = false;
  if (over_) return finish();
  waits_ = true;
  begin_stall();
}

// The time from here to the arrival of the front window is recorded, where there is a log.
inline void stream_run::begin_stall() noexcept {
  if (cache_.owner().trace() != nullptr && stalled_since_ == 0) [[unlikely]]
    stalled_since_ = trace_log::now();
}
inline void stream_run::end_stall() noexcept {
  const std::int64_t since = std::exchange(stalled_since_, 0);
  trace_log* const log = cache_.owner().trace();
  if (log == nullptr || since == 0) [[likely]]
    return;
  const window& w = windows_[front_];
  log->add({.name = "wait",
            .begin = since,
            .end = trace_log::now(),
            .bytes = w.blocks * group().block_bytes(),
            .block = w.wanted.front().index,
            .track = trace_track::stall});
}

// The front window has come, or cannot come. Returns whether there may be more to do at once.
inline bool stream_run::take_front() {
  window& w = windows_[front_];
  const std::size_t share = std::min(window_blocks(), most_blocks_);
  if (w.refusal && (limit_ > 1 || share > 1)) {
    // Tier 0 has no room for so much at once: go on with one window at a time, and then with smaller ones.
    if (limit_ == 1) most_blocks_ = share / 2;
    limit_ = 1;
    drop_windows();
    return true;
  }
  if (w.refusal) {
    failure.emplace(*w.refusal);
    return true;
  }
  if (w.lost != 0) {
    failure.emplace(error{errc::lost, "blocks that attention needs could not be had from any tier"});
    for (const lease_entry& e : w.record->entries)
      if (e.now == lease_entry::state::lost) failure->lost.push_back({e.id, e.cause});
    failure->rest = lease(std::exchange(w.record, nullptr));
    w.busy = false;
    return true;
  }
  w.held = lease(std::exchange(w.record, nullptr));
  // Completions that are due go first, and again and again: they keep the disk and the codecs at work on the
  // next windows meanwhile.
  for (std::size_t done = 0; done < w.blocks; done += piece) {
    cache_.owner().poll();
    if (over_) return true;  // stopped: the window is not ours any more
    ask_ahead();
    if (options_.attend) fold_window(w, done, std::min(piece, w.blocks - done));
  }
  front_ = (front_ + 1) % depth;
  --in_flight_;
  w.busy = w.here = false;
  w.held.release();
  return true;
}

inline void stream_run::drop_windows() noexcept {
  for (std::size_t i = 0; i < in_flight_; ++i) {
    window& w = windows_[(front_ + i) % depth];
    if (w.now == acquire_request::phase::ended && w.record != nullptr)
      lease(std::exchange(w.record, nullptr)).release();
    if (w.now != acquire_request::phase::ended) cache_.control().cancel(w);
    w.held.release();
    w.busy = w.here = false;
  }
  if (in_flight_ != 0) asked_ = windows_[front_].first;
  in_flight_ = coming_ = 0;
}

// Few queries read each key once or twice: the fewer bytes, the better. Many read it so often that decoding it for
// each costs more than decoding it once.
inline lease_form stream_run::form() const noexcept {
  return few_queries() && reads_in_place(group()) ? lease_form::attendable : lease_form::raw;
}

inline void stream_run::stop() noexcept {
  if (over_) return;
  stopped = true;
  over_ = true;
  drop_windows();
  if (!pumping_) finish();  // else pump() does, when the computation that runs now has ended
}

inline void stream_run::finish() noexcept {
  drop_windows();
  done_(this);
}

}  // namespace TERRACE_EX
}  // namespace terrace

#include "terrace/attention/stream_blocks.hpp"  // IWYU pragma: export
#include "terrace/attention/stream_fold.hpp"    // IWYU pragma: export
