#pragma once
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "terrace/batch.hpp"
#include "terrace/cuda/host_link.hpp"
#include "terrace/cuda/kernels.hpp"
#include "terrace/cuda/reserved_slots.hpp"
#include "terrace/cuda/window_arrays.hpp"
#include "terrace/cuda/window_buffer.hpp"

namespace terrace::cuda {
inline namespace TERRACE_EX {

class batch;

/// Pages in device memory for work on one stream, with the arrays that paged kernels take, in device memory at
/// addresses that do not change. Pages are raw, in the layout of the layer group's blocks. Move-only; if it is
/// destroyed without release(), it records its event on its own stream.
class window {
 public:
  window(window&& other) noexcept
      : batch_(std::exchange(other.batch_, nullptr)), buffer_(other.buffer_), stream_(other.stream_) {}
  window& operator=(window&&) = delete;
  ~window();

  /// [sequences + 1]; pages indptr[i] .. indptr[i + 1] - 1 are those of sequence i of the batch, ascending.
  const std::int32_t* indptr() const noexcept;
  /// [pages], in units of page_stride from pages().
  const std::int32_t* indices() const noexcept;
  /// [sequences], the tokens of each sequence's last page here; 0 where it has none.
  const std::int32_t* last_page_len() const noexcept;
  /// [sequences], the position of the first token of each sequence's first page here. Pages behind the sinks of a
  /// sliding window are left out, as are forgotten ones: see has_gaps().
  const std::int64_t* first_position() const noexcept;
  /// Whether some sequence's pages here are not all at consecutive positions.
  bool has_gaps() const noexcept;
  /// The base that indices count from: the same for all windows.
  const void* pages() const noexcept;
  /// Entries of indices(), and the most that one sequence has.
  std::uint32_t page_count() const noexcept { return static_cast<std::uint32_t>(buffer_->pages.size()); }
  std::uint32_t most_pages() const noexcept;
  /// No other window follows in this layer; the pages that are being written are in this one.
  bool last() const noexcept { return buffer_->last; }
  /// The block of each entry of indices(), ascending; not valid for one that is being written. O(pages).
  void blocks(std::vector<block_id>& out) const;
  /// The pages may be reused after what is enqueued on `stream` up to here, and no sooner. No host wait.
  void release(cudaStream_t stream) && noexcept;

 private:
  friend class batch;
  window(batch& b, window_buffer& buffer, cudaStream_t stream) noexcept
      : batch_(&b), buffer_(&buffer), stream_(stream) {}
  batch* batch_;
  window_buffer* buffer_;
  cudaStream_t stream_;
};

/// A ragged set of sequences that decode together on a device, as terrace::batch is on the host. Blocks in tier 0 are
/// read in place; those in host memory come over the link into windows, three of them, so that the copies of the next
/// window overlap the kernels of this one, and arrive in the order in which the sequences are read.
///
/// No member waits for the device, except `reserve` for the copies that make room for it. `next` waits for a disk if
/// a block is nowhere nearer: prefetch such blocks.
///
/// One engine stream at a time: the arrays are written in that stream's order. Streams must stay until the batch has
/// ended. To capture that stream into a graph, capture what lies between `next` and `release`, not these calls. The
/// batch stays in place, its windows end before it, and it ends before its cache. Its sequences stay, unchanged from
/// the first window of a layer to the last, as for terrace::batch. Owner thread only.
class batch {
 public:
  static constexpr std::size_t page_stride = cuda::page_stride;
  static constexpr std::size_t windows = 3;

  struct options {
    std::uint32_t sequences = 256;    ///< at most this many
    std::uint32_t pages = 1u << 16;   ///< of one window; at least one for each sequence
    std::uint32_t tokens = 1u << 12;  ///< reserved at a time
    std::size_t window_bytes =
        0;  ///< raw bytes of a window that come from host memory; 0: a 16th of tier 0, 32 MiB at most
    std::uint32_t align = 1;  ///< windows begin at multiples of this many pages, where there is room
    kernel_set kernels{};     ///< of cuda/kernels.cuh
    int device = 0;           ///< that tier 0 lies in
  };

  /// Errors: invalid_argument where tier 0 is not in device memory, or `align` is 0; out_of_capacity where it has no
  /// room for the windows; those of the runtime.
  static result<std::unique_ptr<batch>> make(kv_store& cache, options o);
  batch(const batch&) = delete;
  batch& operator=(const batch&) = delete;
  ~batch();

  /// As terrace::batch::assign.
  result<void> assign(std::span<sequence* const> sequences);
  /// As terrace::batch::drop, for captured graphs too: no array moves. The others keep their reserved tokens and
  /// slots; the tokens of sequence i keep their places, and on `stream` their slots become -1, for kernels to skip.
  /// The windows to come are cut and copied again. If the layer under way had only windows of sequence i to come, the
  /// window before them was not last(). On an error nothing has changed. Errors: those of terrace::batch::drop, and
  /// the runtime's.
  result<void> drop(std::size_t i, cudaStream_t stream);
  std::size_t size() const noexcept { return sequences_.size(); }
  /// Room for tokens[i] more tokens of sequence i, or out_of_capacity; it blocks as
  /// sequence::reserve does. The mapping is written on `stream`.
  result<reserved_slots> reserve(std::span<const std::uint32_t> tokens, cudaStream_t stream);
  /// Keeps kept[i] of them. Only now may a block seal.
  void commit(std::span<const std::uint32_t> kept) {
    forget_windows();
    sequences_.commit(kept);
  }

  /// Enqueues the copies of windows to come, makes `stream` wait for those of the next window of `layer`, and returns
  /// it; nothing when all have been given, or when it could not be had: see `lost` and `failure`. The next call for
  /// the same layer then starts over.
  std::optional<window> next(std::uint32_t layer, cudaStream_t stream);
  /// Lets go of the windows to come: the next call of `next` gives the first window of its layer, as if the layer had
  /// not begun. For an engine that gives up a layer half-way. Precondition: no window is out.
  void rewind() noexcept { forget_windows(); }
  /// Blocks that could not be had since the last reserve, to be recomputed.
  std::span<const lost_block> lost() const noexcept { return lost_; }
  /// Why the last `next` gave no window though there was one; empty otherwise.
  const std::optional<error>& failure() const noexcept { return failure_; }

  /// For measuring compute alone: while it is on, nothing moves and nothing is decoded. Windows are cut as usual, and
  /// their sealed pages are bytes of tier 0, block after block, whatever these hold.
  void stand_in(bool on) noexcept {
    forget_windows();
    stand_in_ = on;
  }

  /// What `reserve` gave last.
  const reserved_slots& reserved() const noexcept { return reserved_; }
  const options& limits() const noexcept { return options_; }
  /// The base of page indices: it never changes.
  const std::byte* pages() const noexcept { return owner_->hot_data(); }
  const kv_layout& layout() const noexcept { return owner_->layout(); }
  context& owner() noexcept { return owner_->owner(); }
  host_link& link() noexcept { return *link_; }

  /// Whether some policy wants to know what share of the softmax mass blocks draw; cuda/mass_feed.hpp reports it.
  bool weighs() const noexcept { return owner_->weighs(); }
  /// Tells the policies; no effect if the block is gone.
  void weigh(block_id block, float share) {
    if (block.valid() && owner_->find_record(block) != nullptr) owner_->weigh(block.index, share);
  }

 private:
  friend class window;
  // Pins what copies read until they have ended.
  struct keeper final : device_work {
    lease held;
    batch* owner = nullptr;
    void complete(cudaError_t) noexcept override {
      held.release();
      owner->idle_keepers_.push_back(this);
    }
  };

  batch(kv_store& cache, host_link& link, const options& o)
      : owner_(&cache.control()),
        link_(&link),
        options_(o),
        sequences_(cache, {.sequences = o.sequences, .pages = o.pages}),
        slots_(o.sequences, o.tokens, layout().layers()),
        arrays_(o.sequences, std::max(o.pages, o.sequences)) {
    options_.pages = std::max(o.pages, o.sequences);  // each may have an open one
  }
  result<void> open();
  void begin_walk(std::uint32_t layer);
  void go_back(std::uint32_t layer, page_walk::place to);
  void forget_windows() noexcept;
  void prepare();
  lease_form form(const layer_group& g) const noexcept {
    const kernel_set& k = options_.kernels;
    const bool decodes = k.decode != nullptr && (k.decodes == nullptr || k.decodes(g));
    return decodes || !has_encoded_ ? lease_form::attendable : lease_form::raw;
  }
  void keep(lease held) noexcept;
  void follow(cudaStream_t stream) {
    if (std::ranges::find(streams_, stream) != streams_.end()) return;
    streams_.push_back(stream);
    link_->follow(stream);
  }

  planner* owner_;
  host_link* link_;
  options options_;
  terrace::batch sequences_;
  slot_arrays slots_;
  window_arrays arrays_;
  std::vector<cudaStream_t> streams_;  // that windows were given to: they stay until the batch ends
  std::vector<std::unique_ptr<window_buffer>> buffers_;
  std::size_t front_ = 0, prepared_ = 0;  // buffers front_ .. front_ + prepared_ - 1 have the next windows
  bool out_ = false;                      // a window is with the engine

  bool stand_in_ = false;
  std::size_t stand_in_turn_ = 0;       // the block of tier 0 that is next
  bool has_encoded_ = false;            // some tier that attention reads has a codec
  std::optional<std::uint32_t> layer_;  // that the engine is at
  std::uint32_t walk_layer_ = 0;        // whose windows are being cut: that one, or a later one
  page_walk walk_;
  reserved_slots reserved_;
  std::vector<walk_member> members_;
  std::vector<lost_block> lost_;
  std::optional<error> failure_;
  std::vector<std::unique_ptr<keeper>> keepers_;
  std::vector<keeper*> idle_keepers_;
};

// --- Opening.

inline result<std::unique_ptr<batch>> batch::make(kv_store& cache, options o) {
  if (cache.control().hot_reach() != reach::device)
    return terrace::fail(errc::invalid_argument,
                         "cuda::batch needs a first tier in device memory, such as vram");
  if (o.align == 0)
    return terrace::fail(errc::invalid_argument,
                         "the windows of a batch begin at multiples of at least one page");
  auto link = host_link::of(cache.owner(), o.device);
  if (!link) return propagate(link.error());
  std::unique_ptr<batch> made(new batch(cache, **link, o));
  if (auto opened = made->open(); !opened) return propagate(opened.error());
  return made;
}

inline result<void> batch::open() {
  const device_scope scope(link_->device());
  if (auto made = slots_.open(); !made) return made;
  if (auto made = arrays_.open(); !made) return made;
  std::size_t raw = 0, encoded = 0;
  for (const layer_group& g : layout().groups) {
    if (g.holds_tensors()) continue;
    raw = std::max(raw, g.block_bytes());
    encoded = std::max(encoded, owner_->most_encoded_bytes(g));
  }
  has_encoded_ = encoded != 0;
  std::size_t bytes = options_.window_bytes;
  if (bytes == 0) bytes = std::min<std::size_t>(32_MiB, owner_->hot_capacity() / 16);
  for (std::size_t i = 0; i < windows; ++i) {
    buffers_.push_back(std::make_unique<window_buffer>(*owner_, *link_));
    if (auto opened = buffers_.back()->open(std::max<std::size_t>(1, bytes / raw), raw, encoded); !opened)
      return propagate(opened.error());
  }
  if (options_.kernels.copy != nullptr) link_->use(options_.kernels.copy);
  // What was in the borrowed room may still be read by work that the engine has enqueued.
  if (const cudaError_t e = link_->wait_for_engine(link_->stream(copy_direction::up)); e != cudaSuccess)
    return cuda::fail(e, "copies cannot be put behind the work of an engine");
  return {};
}

inline batch::~batch() {
  TERRACE_ASSERT(!out_, "a batch ended before its window");
  forget_windows();
  for (const cudaStream_t stream : streams_) link_->unfollow(stream);
  while (idle_keepers_.size() != keepers_.size()) owner_->owner().wait(context::clock::time_point::max());
}

// --- Tokens.

inline result<void> batch::assign(std::span<sequence* const> sequences) {
  if (out_)
    return terrace::fail(errc::invalid_argument, "a batch takes other sequences when its window is released");
  auto assigned = sequences_.assign(sequences);
  if (assigned) forget_windows();  // which have the previous sequences' pages
  return assigned;
}

inline result<void> batch::drop(std::size_t i, cudaStream_t stream) {
  if (out_) return terrace::fail(errc::invalid_argument, "a batch drops a sequence while no window is out");
  if (!sequences_.has(i))
    return terrace::fail(errc::invalid_argument, "a batch was to drop a sequence that it does not have");
  // The prepared windows have its pages. `next` resumes where the first of them began, if it belongs to the layer
  // that the engine is at; otherwise all windows of that layer have been given.
  const std::optional<std::uint32_t> layer = layer_;
  page_walk::place at{.finished = true};
  if (layer && prepared_ != 0 && buffers_[front_]->layer == *layer) at = buffers_[front_]->before;
  if (layer && prepared_ == 0 && walk_layer_ == *layer) at = walk_.where();
  if (!at.finished && walk_.stale()) return propagate(terrace::batch::changed);
  follow(stream);
  if (sequences_.new_tokens(i) != 0) {
    const device_scope scope(link_->device());
    if (auto told = slots_.drop(i, stream); !told) return told;
  }
  forget_windows();
  if (layer) {
    go_back(*layer, at);
    walk_.drop(static_cast<std::uint32_t>(i));
  }
  return sequences_.drop(i);
}

inline result<reserved_slots> batch::reserve(std::span<const std::uint32_t> tokens, cudaStream_t stream) {
  std::size_t all = 0;
  for (const std::uint32_t n : tokens) all += n;
  if (all > options_.tokens)
    return terrace::fail(errc::invalid_argument,
                         "a batch was asked for more tokens at a time than it has room for");
  forget_windows();
  lost_.clear();
  follow(stream);
  if (auto reserved = sequences_.reserve(tokens); !reserved) return propagate(reserved.error());
  const device_scope scope(link_->device());
  auto slots = slots_.write(*owner_, sequences_, tokens, stream);
  if (!slots) {
    sequences_.commit(std::vector<std::uint32_t>(tokens.size(), 0));
    return propagate(slots.error());
  }
  return reserved_ = *slots;
}

}  // namespace TERRACE_EX
}  // namespace terrace::cuda

#include "terrace/cuda/batch_windows.hpp"  // IWYU pragma: export
