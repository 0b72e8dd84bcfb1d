#pragma once
// How a batch's windows are cut, filled and given. Part of cuda/batch.hpp.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <utility>

#include "terrace/cuda/batch.hpp"

namespace terrace::cuda {
inline namespace TERRACE_EX {

inline void batch::begin_walk(std::uint32_t layer) {
  walk_layer_ = layer;
  sequences_.members(members_);
  const auto any = std::ranges::find_if(members_, [](const walk_member& m) { return m.pages != nullptr; });
  walk_.begin(*owner_, members_, any == members_.end() ? 0 : any->pages->row_of(layer).first);
}

inline void batch::forget_windows() noexcept {
  for (; prepared_ != 0; --prepared_) {
    window_buffer& w = *buffers_[front_];
    while (w.now() == window_buffer::phase::loading) owner_->owner().wait(context::clock::time_point::max());
    keep(w.let_go());
    front_ = (front_ + 1) % windows;
  }
  layer_.reset();
}

// Lets go of what is prepared; the next window of `layer` is the one that began at `to`.
inline void batch::go_back(std::uint32_t layer, page_walk::place to) {
  forget_windows();
  begin_walk(layer);
  walk_.go_back(to);
  layer_ = layer;
}

// Cuts windows for the free buffers, also of the next layer. A buffer that the engine has is not free.
inline void batch::prepare() {
  while (prepared_ + (out_ ? 1 : 0) < windows) {
    if (walk_.finished()) {
      if (walk_layer_ + 1 >= layout().layers()) return;
      begin_walk(walk_layer_ + 1);
    }
    window_buffer& w = *buffers_[(front_ + prepared_) % windows];
    w.before = walk_.where();
    w.layer = walk_layer_;
    // A block that is not in tier 0 takes a slot of the window's, so the raw form is the one to count.
    walk_.cut({.form = lease_form::raw,
               .slots = w.slots(),
               .blocks = options_.pages,
               .pages = options_.pages,
               .align = options_.align},
              w.blocks, w.pages);
    w.last = walk_.finished();
    if (w.pages.empty()) {
      if (!w.last) return;
      continue;
    }
    ++prepared_;
    if (stand_in_)
      w.stand_in(stand_in_turn_);
    else
      w.fill(form(layout().groups[layout().group_of(w.layer)]));
  }
}

inline std::optional<window> batch::next(std::uint32_t layer, cudaStream_t stream) {
  TERRACE_ASSERT(!out_, "a batch gives one window at a time");
  failure_.reset();
  follow(stream);
  if (layer >= layout().layers()) {
    failure_ = error{errc::invalid_argument, "a batch was asked for a layer that the model does not have"};
    return std::nullopt;
  }
  if (auto good = sequences_.ready(); !good) {
    failure_ = good.error();
    forget_windows();
    return std::nullopt;
  }
  if (layer_ != layer && (prepared_ == 0 || buffers_[front_]->layer != layer || walk_.stale())) {
    forget_windows();
    begin_walk(layer);
  }
  if (walk_.stale() && (prepared_ != 0 || !walk_.finished())) {
    failure_ = terrace::batch::changed;
    forget_windows();
    return std::nullopt;
  }
  layer_ = layer;
  for (bool again = false;; again = true) {
    prepare();
    window_buffer& w = *buffers_[front_];
    if (prepared_ == 0 || w.layer != layer) {  // all are given
      layer_.reset();
      return std::nullopt;
    }
    while (w.now() == window_buffer::phase::loading) owner_->owner().wait(context::clock::time_point::max());
    if (w.now() == window_buffer::phase::ready) {
      const device_scope scope(link_->device());
      const cudaError_t e = arrays_.tell(*owner_, w, size(), options_.kernels, stream);
      if (e == cudaSuccess) {
        front_ = (front_ + 1) % windows;
        --prepared_;
        out_ = true;
        return window(*this, w, stream);
      }
      static_cast<void>(cudaGetLastError());
      failure_ = error_of(e, "a window cannot be told to the device");
    } else if (w.failure->code == errc::out_of_capacity && !again) {
      // It was asked for while other windows held what it needs.
      go_back(layer, w.before);
      continue;
    } else {
      failure_ = *w.failure;
      lost_.insert(lost_.end(), w.failure->lost.begin(), w.failure->lost.end());
    }
    forget_windows();
    return std::nullopt;
  }
}

inline void batch::keep(lease held) noexcept {
  if (held.empty()) return;
  if (idle_keepers_.empty()) {
    keepers_.push_back(std::make_unique<keeper>());
    keepers_.back()->owner = this;
    idle_keepers_.push_back(keepers_.back().get());
  }
  keeper& k = *idle_keepers_.back();
  idle_keepers_.pop_back();
  k.held = std::move(held);
  link_->when_done(k, link_->stream(copy_direction::up));
}

inline const std::int32_t* window::indptr() const noexcept { return batch_->arrays_.indptr(); }
inline const std::int32_t* window::indices() const noexcept { return batch_->arrays_.indices(); }
inline const std::int32_t* window::last_page_len() const noexcept { return batch_->arrays_.last_page_len(); }
inline const std::int64_t* window::first_position() const noexcept {
  return batch_->arrays_.first_position();
}
inline std::uint32_t window::most_pages() const noexcept { return batch_->arrays_.most_pages(); }
inline bool window::has_gaps() const noexcept { return batch_->arrays_.has_gaps(); }
inline const void* window::pages() const noexcept { return batch_->pages(); }

inline void window::blocks(std::vector<block_id>& out) const {
  batch_->arrays_.blocks(*buffer_, batch_->size(), out);
  if (batch_->stand_in_) std::ranges::fill(out, block_id{});  // what was read is not what they hold
}

inline void window::release(cudaStream_t stream) && noexcept {
  batch& b = *std::exchange(batch_, nullptr);
  b.out_ = false;
  b.follow(stream);
  b.keep(buffer_->release(stream));
}
inline window::~window() {
  if (batch_ != nullptr) std::move(*this).release(stream_);
}

}  // namespace TERRACE_EX
}  // namespace terrace::cuda
