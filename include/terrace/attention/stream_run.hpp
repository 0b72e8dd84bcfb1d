#pragma once
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <tuple>
#include <utility>
#include <vector>

#include "terrace/attention/attend.hpp"
#include "terrace/attention/stream_workspace.hpp"
#include "terrace/kv_store.hpp"
#include "terrace/observe/trace_log.hpp"

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
  /// see anyway are left out. Not there: all of them. Open blocks are always read. For one sequence alone.
  std::optional<std::span<const std::uint32_t>> only = {};
};

/// Attention of new tokens' queries over one layer of a sequence, or of several, wherever the blocks are: load > compute
/// > merge over windows of blocks. Most of the windows come while the others are folded; memory is
/// bounded by the windows, not by the context. Loads are asked for in order; windows are folded in order,
/// whatever comes first, so the result's bits do not depend on where blocks were. A block that several sequences share
/// is loaded once. Compute is shared by the owner and the context's pool, except where a decode waits for its windows:
/// then the owner folds them alone.
///
/// `run` is the part that does not depend on who is told. It stays in place until `done` was called.
class stream_run {
 public:
  using function = void (*)(stream_run*) noexcept;

  stream_run(kv_store& cache, std::uint32_t layer, stream_options o, function done) noexcept
      : cache_(cache), options_(o), done_(done), layer_(layer) {}
  stream_run(stream_run&&) = delete;
  ~stream_run() {
    if (work_ != nullptr) cache_.workspaces().give_back(work_);
  }

  bool attends() const noexcept { return options_.attend; }

  /// Takes who attends, `who.members(vector of walk_member)` adds them, each with at least one new token; and their queries,
  /// [token][q_head][dim], one member after the other. Errors: invalid_argument for a layer that there is not, queries of
  /// another size, and a selection that is not ascending, goes beyond the sealed blocks or is of several members.
  template <class Who, element_type Q>
  result<void> load(const Who& who, std::span<const Q> queries) {
    work_ = cache_.workspaces().take();
    work_->who.clear();
    who.members(work_->who);
    work_->make_members();
    if (auto good = settle_shape(queries.size()); !good) return good;
    for (std::size_t i = 0; i < work_->who.size(); ++i) {
      stream_member& m = work_->members()[i];
      m.who = work_->who[i];
      m.changes = m.who.pages->changes;
      const auto own = queries.first((m.who.tokens - m.who.first_query) * shape_.q_heads * shape_.dim);
      queries = queries.subspan(own.size());
      if (auto loaded = m.queries.load(shape_, own, m.who.first_query); !loaded) return loaded;
      if (auto made = m.state.reset(m.queries.rows(), group_->v_dim()); !made) return made;
    }
    return {};
  }
  /// Elements of the result: [token][q_head][v dim].
  std::size_t result_size() const noexcept {
    std::size_t rows = 0;
    for (const stream_member& m : work_->members()) rows += m.queries.rows();
    return rows * group_->v_dim();
  }
  /// Writes it. Precondition: the run is over, and `out` has that many.
  template <element_type O>
  void write_result(std::span<O> out) const noexcept {
    for (const stream_member& m : work_->members()) {
      const std::size_t values = m.state.rows() * m.state.dim();
      m.state.finish(out.first(values));
      out = out.subspan(values);
    }
  }

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
  static constexpr std::size_t few = 16;   // rows that read a KV head: with so many, memory is the limit

  struct window : acquire_request {
    explicit window() : acquire_request({}, &arrived) {}
    static void arrived(acquire_request* r) noexcept;
    stream_run* run = nullptr;
    std::size_t first = 0, blocks = 0;
    bool busy = false, here = false;
    lease held;
  };

  result<void> settle_shape(std::size_t query_elements);
  template <class F>
  void for_each_seen(std::uint32_t row, F&& f) const;
  void walk_row(std::uint32_t row, std::vector<block_id>& blocks);
  bool selection_is_valid() const noexcept;
  void choose_blocks();
  void choose_of_one();
  void choose_of_several();
  bool changed() const noexcept;
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
  template <class Place>
  void fold_blocks(std::size_t end, Place place_of);
  template <class Count, class View, class After>
  void fold(Count count_of, View view_of, After after);
  bool is_to_weigh() const noexcept;
  void report_mass();
  bool folds_alone() const noexcept {
    return work_->since_wait < depth && few_queries() && options_.stand_in.empty();
  }
  bool few_queries() const noexcept { return rows_a_block_ <= few; }
  lease_form form() const noexcept;
  block_view view(const stream_member& m, std::size_t position, const std::byte* data,
                  std::uint32_t format_id = 0) const noexcept;
  void ask_ahead();
  void look_ahead();
  void gather_wishes();
  void begin_stall() noexcept;
  void end_stall() noexcept;
  void finish() noexcept;

  kv_store& cache_;
  stream_options options_;
  function done_;
  std::uint32_t layer_, row_ = 0, layer_in_block_ = 0;
  const layer_group* group_ = nullptr;
  attention_shape shape_;
  std::size_t rows_a_block_ = 0;  // queries, times query heads a KV head, that read a block: the mean
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
  bool weighs_ = false;  // somebody is to be told what each block drew
  bool waits_ = false;   // for the front window, with nothing else to do
};

// What attention looks like here, for the members and for so many elements of queries; or why there can be none.
inline result<void> stream_run::settle_shape(std::size_t query_elements) {
  const kv_layout& layout = cache_.layout();
  if (cache_.control().hot_reach() != reach::host)
    return fail(errc::invalid_argument,
                "attention on the host cannot read a first tier in device memory; cuda/ has its own");
  if (layer_ >= layout.layers())
    return fail(errc::invalid_argument, "attention was asked for in a layer that the model does not have");
  group_ = &layout.groups[layout.group_of(layer_)];
  std::size_t tokens = 0;
  for (const walk_member& m : work_->who) {
    if (m.pages->owner != &cache_.control())
      return fail(errc::invalid_argument, "a stream was asked for over a sequence of another cache");
    tokens += m.tokens - m.first_query;
  }
  const std::size_t per_head = tokens * group_->k.dim;
  if (per_head == 0 || query_elements % per_head != 0)
    return fail(errc::invalid_argument,
                "the queries are not a whole number of heads for each reserved token");
  shape_ = {.q_heads = static_cast<std::uint32_t>(query_elements / per_head),
            .kv_heads = group_->k.heads,
            .dim = group_->k.dim,
            .scale = options_.scale,
            .keep = group_->keep,
            .arithmetic = options_.arithmetic};
  if (auto good = validate(shape_, *group_); !good) return good;
  std::tie(row_, layer_in_block_) = work_->who.front().pages->row_of(layer_);
  if (selection_is_valid()) return {};
  return fail(errc::invalid_argument,
              "the blocks that a stream is to read must be sealed ones of one sequence, in ascending order");
}

// Blocks of a window that come into slots of tier 0: enough to keep a disk busy, and so few that all windows
// in flight take at most about half of tier 0.
inline std::size_t stream_run::window_blocks() const noexcept {
  const std::size_t block = group_->block_bytes();
  std::size_t bytes = options_.window_bytes;
  if (bytes == 0) bytes = std::min<std::size_t>(4_MiB, cache_.control().hot_capacity() / (2 * least_depth));
  return std::max<std::size_t>(1, bytes / block);
}

inline void stream_run::start() {
  choose_blocks();
  cache_.prefetcher().observe(use());
  weighs_ = is_to_weigh();
  for (stream_member& m : work_->members()) m.mass.reset(weighs_ ? m.pages.size() : 0, m.queries.rows());
  for (window& w : windows_) w.run = this;
  limit_ = std::clamp(cache_.control().hot_capacity() / (8 * window_blocks() * group_->block_bytes()),
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
    if (in_flight_ == 0 && asked_ == work_->blocks.size() && !failure && changed())
      failure.emplace(error{errc::invalid_argument, "a sequence was changed while a stream went over it"});
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
            .bytes = w.blocks * group_->block_bytes(),
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
  return few_queries() && reads_in_place(*group_) ? lease_form::attendable : lease_form::raw;
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
