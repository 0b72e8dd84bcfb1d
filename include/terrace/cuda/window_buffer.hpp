#pragma once
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "terrace/cache/acquire.hpp"
#include "terrace/cache/page_walk.hpp"
#include "terrace/cuda/host_link.hpp"
#include "terrace/execution/elide.hpp"

namespace terrace::cuda {
inline namespace TERRACE_EX {

/// What a window of a batch has in device memory besides the blocks that are in tier 0 anyway: room for blocks that
/// come from host memory, raw and, if they travel encoded, encoded too. Borrowed from tier 0, and so within its
/// budget.
///
/// A buffer is filled by the link's up stream and read by the engine's. Each waits for the other by events on the
/// device: `copied`, after which the engine may read it, and `released`, after which it may be filled again.
class window_buffer {
 public:
  enum class phase : std::uint8_t {
    free,     ///< it holds no blocks, though the device may still read from it
    loading,  ///< blocks that no tier has in addressable memory are on their way
    ready,    ///< the copies are enqueued
    failed,   ///< `failure` says why
    out       ///< the engine has it
  };

  window_buffer(planner& owner, host_link& link) noexcept : owner_(&owner), link_(&link) {}
  window_buffer(const window_buffer&) = delete;
  window_buffer& operator=(const window_buffer&) = delete;
  ~window_buffer() {
    for (const extent& e : raw_) owner_->give_back(e);
    for (const extent& e : encoded_) owner_->give_back(e);
    for (const cudaEvent_t event : {copied_, released_})
      if (event != nullptr) link_->events().give_back(event);
  }

  /// Borrows room for `slots` blocks of `raw_bytes`, and as many of `encoded_bytes` where that is not 0. Errors:
  /// those of planner::borrow and of the runtime.
  result<void> open(std::size_t slots, std::size_t raw_bytes, std::size_t encoded_bytes) {
    for (std::size_t i = 0; i < slots; ++i) {
      for (auto [room, bytes] : {std::pair{&raw_, raw_bytes}, std::pair{&encoded_, encoded_bytes}}) {
        if (bytes == 0) continue;
        auto e = owner_->borrow(bytes);
        if (!e) return propagate(e.error());
        room->push_back(*e);
      }
    }
    for (cudaEvent_t* event : {&copied_, &released_}) {
      auto taken = link_->events().take();
      if (!taken) return propagate(taken.error());
      *event = *taken;
    }
    return {};
  }

  std::size_t slots() const noexcept { return raw_.size(); }
  phase now() const noexcept { return now_; }

  // What the window has: filled in by the walk, while the buffer is free.
  std::uint32_t layer = 0;
  bool last = false;
  page_walk::place before;  ///< where the walk stood
  std::vector<block_id> blocks;
  std::vector<walked_page> pages;

  /// Asks for the blocks, and enqueues the copies as soon as all are in addressable memory: usually at once. In the
  /// raw form everything goes to tier 0 first, decoded on the host if necessary.
  void fill(lease_form form) noexcept {
    now_ = phase::loading;
    failure.reset();
    ask(form);
  }
  std::optional<block_error> failure;
  /// Ready at once: successive blocks of tier 0 stand in for those of the window, whatever they hold.
  void stand_in(std::size_t& turn) noexcept {
    failure.reset();
    decodes_.clear();
    places_.clear();
    const std::size_t stride = align_up(raw_.front().bytes, vram_page);
    for (std::size_t i = 0; i < blocks.size(); ++i, ++turn)
      places_.push_back(owner_->hot_address({}) + turn % (owner_->hot_capacity() / stride) * stride);
    now_ = phase::ready;
  }

  /// Where block i lies on the device, for work that comes after `copied`. Precondition: ready or out.
  std::byte* place(std::size_t i) const noexcept { return places_[i]; }
  /// Blocks that arrive encoded: a kernel decodes them to places_[block].
  struct to_decode {
    std::size_t block;
    std::byte* from;
    std::uint32_t format_id;
  };
  std::span<const to_decode> encoded() const noexcept { return decodes_; }

  /// Makes `stream` wait for the copies.
  cudaError_t wait_on(cudaStream_t stream) noexcept {
    now_ = phase::out;
    return cudaStreamWaitEvent(stream, copied_, 0);
  }
  /// Call when the engine's work on it has been enqueued on `stream`: blocks in tier 0 may leave, because whatever
  /// overwrites them comes after that work (host_link::follow); those in host memory stay until `keep` has seen the
  /// copies' end. Returns the lease of the latter.
  lease release(cudaStream_t stream) noexcept {
    was_read_ = cudaEventRecord(released_, stream) == cudaSuccess;
    if (!was_read_) {
      static_cast<void>(cudaGetLastError());
      static_cast<void>(cudaStreamSynchronize(stream));  // nothing else can tell when it has ended
    }
    return let_go();
  }
  /// Gives up a window that nobody reads.
  lease let_go() noexcept {
    acquire_.reset();
    held_.release_tier(0);
    now_ = phase::free;
    return std::move(held_);
  }

 private:
  static constexpr std::size_t vram_page = 4096;  // tier 0 begins blocks at multiples of it
  struct receiver {
    using receiver_concept = ex::receiver_t;
    window_buffer* self;
    void set_value(lease held) noexcept { self->arrived(std::move(held)); }
    void set_error(block_error e) noexcept { self->fail(std::move(e)); }
    void set_stopped() noexcept { self->fail(block_error(error{errc::stopped, "an acquire was stopped"})); }
  };

  void ask(lease_form form) noexcept {
    const acquire_sender wanted(*owner_, blocks, form);
    acquire_.emplace(elide{[&] { return wanted.connect(receiver{this}); }});
    acquire_->start();
  }
  void fail(block_error e) noexcept {
    held_ = std::move(e.rest);
    failure.emplace(std::move(e));
    now_ = phase::failed;
  }
  void arrived(lease held) noexcept {
    held_ = std::move(held);
    std::size_t from_host = 0;
    for (std::size_t i = 0; i < held_.size(); ++i) from_host += held_[i].tier != 0 ? 1 : 0;
    if (from_host > slots()) {  // since the walk counted, blocks have left tier 0
      held_.release();
      return ask(lease_form::raw);
    }
    if (const cudaError_t e = enqueue_copies(); e != cudaSuccess) {
      static_cast<void>(cudaGetLastError());
      return fail(block_error(error_of(e, "the copies of a window failed")));
    }
    now_ = phase::ready;
  }
  cudaError_t enqueue_copies() noexcept {
    places_.clear();
    decodes_.clear();
    pieces_.clear();
    std::size_t slot = 0;
    for (std::size_t i = 0; i < held_.size(); ++i) {
      const leased_block& b = held_[i];
      if (b.tier == 0) {
        places_.push_back(const_cast<std::byte*>(b.data));
        continue;
      }
      std::byte* const raw = owner_->hot_address(raw_[slot]);
      const std::size_t bytes = owner_->where(b.id.index, b.tier).bytes;
      places_.push_back(raw);
      if (b.format_id == 0) {
        pieces_.push_back({raw, b.data, bytes});
      } else {
        std::byte* const encoded = owner_->hot_address(encoded_[slot]);
        pieces_.push_back({encoded, b.data, bytes});
        decodes_.push_back({i, encoded, b.format_id});
      }
      ++slot;
    }
    const device_scope scope(link_->device());
    const cudaStream_t up = link_->stream(copy_direction::up);
    cudaError_t e = was_read_ ? cudaStreamWaitEvent(up, released_, 0) : cudaSuccess;
    if (e == cudaSuccess) e = link_->enqueue(pieces_, copy_direction::up, up);
    if (e == cudaSuccess) e = cudaEventRecord(copied_, up);
    // Nobody else can tell when copies that were enqueued before the error have ended; they must not outlive the lease.
    if (e != cudaSuccess) static_cast<void>(cudaStreamSynchronize(up));
    return e;
  }

  planner* owner_;
  host_link* link_;
  phase now_ = phase::free;
  std::vector<extent> raw_, encoded_;
  cudaEvent_t copied_ = nullptr, released_ = nullptr;
  bool was_read_ = false;  // `released_` has been recorded
  lease held_;
  std::vector<std::byte*> places_;
  std::vector<to_decode> decodes_;
  std::vector<copy_piece> pieces_;
  std::optional<acquire_sender::operation<receiver>> acquire_;
};

}  // namespace TERRACE_EX
}  // namespace terrace::cuda
