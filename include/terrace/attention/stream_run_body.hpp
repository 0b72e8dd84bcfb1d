#pragma once
// How a stream asks for its windows, and folds them as they come. Part of attention/stream_run.hpp.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <tuple>
#include <utility>

#include "terrace/attention/attend.hpp"
#include "terrace/attention/stream_run.hpp"
#include "terrace/core/config.hpp"
#include "terrace/observe/trace_log.hpp"

namespace terrace {
inline namespace TERRACE_EX {

// Settles the shape of attention for the members and this many elements of queries, or says why there can be none.
TERRACE_BODY result<void> stream_run::settle_shape(std::size_t query_elements) {
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
  if (options_.q_heads != 0 && query_elements / per_head != options_.q_heads)
    return fail(errc::invalid_argument,
                "the queries are of another number of heads or tokens than they should be");
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

// Blocks of a window that are loaded into slots of tier 0: enough to keep a disk busy, and few enough that all
// windows in flight take at most about half of tier 0.
TERRACE_BODY std::size_t stream_run::window_blocks() const noexcept {
  const std::size_t block = group_->block_bytes();
  const std::size_t hot = cache_.control().hot_capacity();
  std::size_t bytes = std::min(options_.window_bytes, hot);
  if (bytes == 0) bytes = std::min<std::size_t>(4_MiB, hot / (2 * least_depth));
  return std::max<std::size_t>(1, bytes / block);
}

TERRACE_BODY void stream_run::start() {
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

TERRACE_BODY void stream_run::window::arrived(acquire_request* r) noexcept {
  auto& w = *static_cast<window*>(r);
  w.here = true;
  --w.run->coming_;
  w.run->pump();
}

TERRACE_BODY void stream_run::ask(window& w) noexcept {
  w.first = asked_;
  // Blocks that are read in place take no slot: a window closes when it has its share of the others.
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

// Requests as many windows as are allowed, but never has all of them loading at a time. A disk may complete
// everything it was given at the same moment: it stays busy only if windows are free right then, not just when the
// first has been folded.
TERRACE_BODY void stream_run::ask_ahead() {
  // A request may complete others at once, and what these call may stop the stream.
  while (!over_ && in_flight_ < limit_ && coming_ < most_coming() && asked_ < work_->blocks.size())
    ask(windows_[(front_ + in_flight_) % depth]);
  if (!over_) look_ahead();
}

// Folds windows in order as they arrive, and requests the next ones as soon as a window is free. What completes while
// it computes is noted by `arrived` and found in the next round.
TERRACE_BODY void stream_run::pump() noexcept {
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
    if (over_) break;
    if (in_flight_ == 0 && asked_ == work_->blocks.size() && !failure && changed()) fail_as_changed();
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

// Records the time from here to the arrival of the front window, if there is a log.
TERRACE_BODY void stream_run::begin_stall() noexcept {
  if (cache_.owner().trace() != nullptr && stalled_since_ == 0) [[unlikely]]
    stalled_since_ = trace_log::now();
}
TERRACE_BODY void stream_run::end_stall() noexcept {
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

TERRACE_BODY void stream_run::fail_as_changed() {
  failure.emplace(error{errc::invalid_argument, "a sequence was changed while a stream went over it"});
}

// The front window has arrived, or cannot. Returns whether there may be more to do at once.
TERRACE_BODY bool stream_run::take_front() {
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
  if (w.lost != 0 && changed()) {  // they may be lost because the sequence let them go
    fail_as_changed();
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
  // Completions that are due go first, repeatedly: they keep the disk and the codecs at work on the next windows.
  for (std::size_t done = 0; done < w.blocks; done += piece) {
    cache_.owner().poll();
    if (!over_) ask_ahead();
    if (over_) return true;  // stopped: the window is not ours any more
    if (options_.attend) fold_window(w, done, std::min(piece, w.blocks - done));
  }
  front_ = (front_ + 1) % depth;
  --in_flight_;
  w.busy = w.here = false;
  w.held.release();
  return true;
}

TERRACE_BODY void stream_run::drop_windows() noexcept {
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

// Few queries read each key once or twice: the fewer bytes, the better. Many queries read it so often that decoding
// it each time costs more than decoding it once.
TERRACE_BODY lease_form stream_run::form() const noexcept {
  return few_queries() && reads_in_place(*group_) ? lease_form::attendable : lease_form::raw;
}

TERRACE_BODY void stream_run::stop() noexcept {
  if (over_) return;
  stopped = true;
  over_ = true;
  drop_windows();
  if (!pumping_) finish();  // else pump() does, when the computation that runs now has ended
}

TERRACE_BODY void stream_run::finish() noexcept {
  drop_windows();
  done_(this);
}

}  // namespace TERRACE_EX
}  // namespace terrace
