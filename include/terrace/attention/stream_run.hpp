#pragma once
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

namespace terrace {
inline namespace TERRACE_EX {

/// Options of a stream. The defaults serve; `attend` and `stand_in` are for measuring.
struct stream_options {
  /// Query heads; 0: derived from the size of the queries, which then must be right: see `batch::drop`.
  std::uint32_t q_heads = 0;
  float scale = 0;  ///< of the logits; 0: 1 / sqrt(dim of the keys). MLA uses another dim
  /// With `integer` and `bf16`, encoded blocks that are read in place, and raw bf16 ones, are multiplied faster and
  /// less exactly: results depend on which blocks these are.
  attention_arithmetic arithmetic = attention_arithmetic::floating;
  std::size_t window_bytes = 0;  ///< raw bytes of the blocks of one window; 0: a share of tier 0
  bool attend = true;            ///< false: bring and pin all blocks, compute nothing, leave `out` as it is
  const_bytes stand_in = {};     ///< not empty: move nothing; what attention cannot read is taken from here
  /// Which of the row's sealed blocks to read, by their position in the row, ascending; those that the queries cannot
  /// see are left out. Absent: all of them. Open blocks are always read. Only for a stream of one sequence.
  std::optional<std::span<const std::uint32_t>> only = {};
};

/// Attention of new tokens' queries over one layer of a sequence, or of several, wherever the blocks are: load >
/// compute > merge over windows of blocks. Most windows are loaded while others are folded; memory is bounded by the
/// windows, not by the context. Loads are requested in order, and windows are folded in order, whichever arrives
/// first, so the result's bits do not depend on where blocks were. A block that several sequences share is loaded
/// once. Compute is shared by the owner and the context's pool, except where a decode waits for its windows: then the
/// owner folds them alone.
///
/// This is the part that does not depend on the receiver. It must stay in place until `done` has been called.
class stream_run {
 public:
  using function = void (*)(stream_run*) noexcept;

  stream_run(kv_store& cache, std::uint32_t layer, stream_options o, function done) noexcept
      : cache_(cache), options_(o), done_(done), layer_(layer) {}
  stream_run(stream_run&&) = delete;
  ~stream_run() { give_back(); }

  bool attends() const noexcept { return options_.attend; }

  /// Takes the members that attend, which `who.members(vector of walk_member)` adds, each with at least one new
  /// token; and their queries, [token][q_head][dim], one member after the other. Errors: invalid_argument for a layer
  /// that does not exist, queries of the wrong size, and a selection that is not ascending, goes beyond the sealed
  /// blocks or is for several members; out_of_memory.
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
  /// Writes the result. Precondition: the run is over, and `out` has result_size() elements.
  template <element_type O>
  void write_result(std::span<O> out) const noexcept {
    for (const stream_member& m : work_->members()) {
      const std::size_t values = m.state.rows() * m.state.dim();
      m.state.finish(out.first(values));
      out = out.subspan(values);
    }
  }

  /// Gives its workspace back, for the next stream. Then the run uses the cache no more: it may be destroyed after it.
  void give_back() noexcept {
    if (work_ != nullptr) cache_.workspaces().give_back(std::exchange(work_, nullptr));
  }

  void start();
  /// Gives up: pins are returned, loads cancelled. `done` is called before this returns, or, while windows are being
  /// folded, when that has ended; not again if it has been called.
  void stop() noexcept;

  std::optional<block_error> failure;
  bool stopped = false;

 private:
  // The most windows in flight, most of them loading while the others are folded: the more, the less a disk waits for
  // them. The limit is lower if that many take more than an eighth of tier 0, but at least six.
  static constexpr std::size_t depth = 12, least_depth = 6;
  static constexpr std::size_t piece = 8;  // blocks folded between two polls for completions
  static constexpr std::size_t few = 16;   // rows that read a KV head: up to this many, memory is the limit

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
  void fail_as_changed();
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
  std::size_t rows_a_block_ = 0;  // mean of the queries, times query heads per KV head, that read a block
  stream_workspace* work_ = nullptr;
  std::array<window, depth> windows_;
  std::size_t front_ = 0;            // the window that is folded next
  std::size_t in_flight_ = 0;        // windows requested and not yet folded
  std::size_t coming_ = 0;           // of these, the ones that have not arrived
  std::size_t limit_ = least_depth;  // fewer where tier 0 turned out to be too small for that many
  std::size_t asked_ = 0;            // blocks requested
  std::uint32_t seen_ = 0;           // sealed blocks that the queries see, whether they are read or not
  std::size_t loads_end_ = 0;        // one past the last block that cannot be read in place
  std::size_t most_blocks_ =
      static_cast<std::size_t>(-1);  // of a window; fewer for the same reason as limit_
  std::int64_t stalled_since_ = 0;   // while it waits and is traced
  bool pumping_ = false, again_ = false, over_ = false, looked_ahead_ = false;
  bool weighs_ = false;  // somebody wants to know what each block drew
  bool waits_ = false;   // for the front window, with nothing else to do
};

}  // namespace TERRACE_EX
}  // namespace terrace

#if !defined(TERRACE_PREBUILT)
#include "terrace/attention/stream_blocks.hpp"    // IWYU pragma: export
#include "terrace/attention/stream_fold.hpp"      // IWYU pragma: export
#include "terrace/attention/stream_run_body.hpp"  // IWYU pragma: export
#endif
