#pragma once
// Runs kernels on the host, one thread of a block at a time, and finds what a device would pass over in silence:
//
// - a barrier or a warp-wide operation to which not all threads come, or not at the same place;
// - accesses of 16 bytes, and rows of matrices, that are not aligned;
// - pieces of 16 bytes of shared memory between whose writing and reading no barrier lies, in either order, and
//   asynchronous copies that were not waited for;
// - other races on shared memory: the order of the threads and the moment of the copies are options, and a right
//   kernel gives the same bits with all of them (`on_each_machine`);
// - shared memory that is read before it is written: it begins as bytes of 0xff, NaN in every float format;
// - accesses outside of shared memory or of the caller's buffers, where the address sanitizer is on.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <source_location>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "cuda_emulated/fiber.hpp"
#include "terrace/core/element.hpp"
#include "terrace/cuda/block_context.hpp"
#include "terrace/cuda/launch.hpp"

namespace emulator {

namespace cuda = terrace::cuda;

/// How the machine behaves where a device may do as it likes.
struct machine {
  /// Warp after warp, each as far as it comes, or threads of all warps as chance has it.
  enum class order { ascending, descending, shuffled };
  order threads = order::ascending;
  bool late_copies = false;  ///< asynchronous copies move bytes when they are waited for, not when issued
  std::size_t shared_bytes = 227u << 10;  ///< that a block may have
};
inline machine& current() {
  static machine one;
  return one;
}

/// Sentences about what a kernel did wrong, since they were last taken.
inline std::vector<std::string>& faults() {
  static std::vector<std::string> all;
  return all;
}
inline std::vector<std::string> take_faults() { return std::exchange(faults(), {}); }

/// Who gets the work of a launch: runs it at once unless a test puts a stream of its own here.
using submission = std::function<void(cuda::stream_handle, std::function<void()>)>;
inline submission& submit() {
  static submission one = [](cuda::stream_handle, const std::function<void()>& work) { work(); };
  return one;
}

class block_run;

/// The block context that a kernel sees (cuda/block_context.hpp): one thread of an emulated block.
class emulated_block {
 public:
  using place = std::source_location;

  std::uint32_t thread() const { return thread_; }
  cuda::grid_index index() const;
  cuda::grid_index count() const;
  std::byte* shared() const;

  void sync(place at = place::current());
  void sync_warp(place at = place::current()) {
    std::uint32_t nothing = 0;
    together(at, nothing, [this](auto&) { ++warp_barriers(); });
  }
  template <class T>
  T shuffle_xor(T x, std::uint32_t mask, place at = place::current()) {
    T out = x;
    std::pair<T, T*> slot{x, &out};
    together(at, slot, [mask](auto& lanes) {
      for (std::uint32_t i = 0; i < cuda::warp_threads; ++i) *lanes[i]->second = lanes[i ^ mask]->first;
    });
    return out;
  }

  cuda::vec16 load16(const void* p, place at = place::current()) {
    expect_aligned(p, at);
    cuda::vec16 v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }
  void store16(void* p, const cuda::vec16& v, place at = place::current()) {
    expect_aligned(p, at);
    std::memcpy(p, &v, sizeof v);
  }

  void copy_async16(void* to, const void* from, std::uint32_t bytes, place at = place::current()) {
    expect_aligned(to, at);
    if (bytes != 0) expect_aligned(from, at);
    if (bytes > 16) fault(at, "an asynchronous copy of more than 16 bytes");
    open_.push_back({to, from, bytes});
    writes(to, true, at);
    if (!current().late_copies) move(open_.back());
  }
  void commit_copies() { groups_.push_back(std::exchange(open_, {})); }
  template <int n>
  void wait_copies(place at = place::current()) {
    while (groups_.size() > static_cast<std::size_t>(n)) {
      for (const copy& c : groups_.front()) {
        if (current().late_copies) move(c);
        writes(c.to, false, at);
      }
      groups_.erase(groups_.begin());
    }
  }
  void store_shared16(void* p, const cuda::vec16& v, place at = place::current()) {
    expect_aligned(p, at);
    writes(p, true, at);
    writes(p, false, at);
    std::memcpy(p, &v, sizeof v);
  }

  void load_matrix(std::uint32_t (&r)[4], const void* row, place at = place::current()) {
    load_matrices(r, row, false, at);
  }
  void load_matrix_transposed(std::uint32_t (&r)[4], const void* row, place at = place::current()) {
    load_matrices(r, row, true, at);
  }
  std::uint32_t transpose_matrix(std::uint32_t x, place at = place::current()) {
    std::uint32_t out = 0;
    std::pair<std::uint32_t, std::uint32_t*> slot{x, &out};
    together(at, slot, [](auto& lanes) {
      const auto element = [&](std::uint32_t row, std::uint32_t column) {
        return lanes[row * 4 + column / 2]->first >> (column % 2 * 16) & 0xffffu;
      };
      for (std::uint32_t i = 0; i < cuda::warp_threads; ++i)
        *lanes[i]->second = element(i % 4 * 2, i / 4) | element(i % 4 * 2 + 1, i / 4) << 16;
    });
    return out;
  }
  template <class T>
  void multiply_add(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2],
                    place at = place::current()) {
    struct fragments {
      float* d;
      const std::uint32_t *a, *b;
    } slot{d, a, b};
    together(at, slot, [](auto& lanes) {
      float left[16][16], right[16][8];
      for (std::uint32_t i = 0; i < cuda::warp_threads; ++i) {
        const std::uint32_t g = i / 4, t = i % 4 * 2;
        for (std::uint32_t k = 0; k < 8; ++k)
          left[g + k / 2 % 2 * 8][t + k / 4 * 8 + k % 2] = element<T>(lanes[i]->a[k / 2], k % 2);
        for (std::uint32_t k = 0; k < 4; ++k)
          right[t + k / 2 * 8 + k % 2][g] = element<T>(lanes[i]->b[k / 2], k % 2);
      }
      for (std::uint32_t i = 0; i < cuda::warp_threads; ++i)
        for (std::uint32_t j = 0; j < 4; ++j) {
          const std::uint32_t row = i / 4 + j / 2 * 8, column = i % 4 * 2 + j % 2;
          double sum = double{lanes[i]->d[j]};
          for (std::uint32_t k = 0; k < 16; ++k) sum += double{left[row][k]} * double{right[k][column]};
          lanes[i]->d[j] = static_cast<float>(sum);
        }
    });
  }
  template <class T>
  std::uint32_t pack(float lo, float hi) const {
    return std::uint32_t{terrace::from_float<T>(lo).bits} | std::uint32_t{terrace::from_float<T>(hi).bits}
                                                                << 16;
  }
  template <class T>
  float to_float(T x) const {
    return terrace::to_float(x);
  }
  float exp(float x) const { return std::exp(x); }

 private:
  friend block_run;
  enum class state { ready, waits_for_warp, waits_for_block, done, stuck };
  struct copy {
    void* to;
    const void* from;
    std::uint32_t bytes;
  };

  template <class T>
  static float element(std::uint32_t word, std::uint32_t half) {
    return terrace::to_float(T{static_cast<std::uint16_t>(word >> (half * 16))});
  }
  static void move(const copy& c) {
    std::memset(c.to, 0, 16);
    if (c.bytes != 0) std::memcpy(c.to, c.from, c.bytes);
  }
  // Notes that this thread writes 16 bytes of shared memory, from the moment that it begins (`pending`) to that at
  // which it knows that it is done; and that its warp reads them.
  void writes(const void* p, bool pending, const place& at);
  void reads(const void* p, const place& at);
  void load_matrices(std::uint32_t (&r)[4], const void* row, bool transposed, place at) {
    expect_aligned(row, at);
    reads(row, at);
    std::pair<const void*, std::uint32_t*> slot{row, r};
    together(at, slot, [transposed](auto& lanes) {
      for (std::uint32_t j = 0; j < 4; ++j) {
        std::uint16_t matrix[8][8];
        for (std::uint32_t i = 0; i < 8; ++i) std::memcpy(matrix[i], lanes[j * 8 + i]->first, 16);
        for (std::uint32_t i = 0; i < cuda::warp_threads; ++i) {
          const std::uint32_t g = i / 4, t = i % 4 * 2;
          const std::uint32_t lo = transposed ? matrix[t][g] : matrix[g][t];
          const std::uint32_t hi = transposed ? matrix[t + 1][g] : matrix[g][t + 1];
          lanes[i]->second[j] = lo | hi << 16;
        }
      }
    });
  }

  void expect_aligned(const void* p, const place& at) {
    if (reinterpret_cast<std::uintptr_t>(p) % 16 != 0) fault(at, "an access of 16 bytes that is not aligned");
  }
  std::uint64_t& warp_barriers();
  // Says so, and never goes on with this thread: the block then ends as one that waits in vain.
  void fault(const place& at, const char* sentence);
  // Waits until all lanes are here; the last one works for all of them.
  template <class Slot, class Work>
  void together(const place& at, Slot& slot, Work work);

  block_run* run_ = nullptr;
  std::uint32_t thread_ = 0;
  state state_ = state::ready;
  place place_;
  void* slot_ = nullptr;
  std::vector<copy> open_;
  std::vector<std::vector<copy>> groups_;
  fiber fiber_;
};
static_assert(cuda::block_context<emulated_block>);

/// One block of threads.
class block_run {
 public:
  explicit block_run(const cuda::launch_shape& shape, std::uint32_t threads)
      : shape_(shape), threads_(threads) {
    const std::size_t bytes = std::max<std::size_t>(shape.shared_bytes, 1);
    allocated_ = std::make_unique<std::byte[]>(bytes + 128);
    // Its end is the allocation's, for the address sanitizer to see what is behind it.
    shared_ = allocated_.get() + 128 - reinterpret_cast<std::uintptr_t>(allocated_.get()) % 128;
#if defined(TERRACE_ASAN_FIBERS)
    __asan_poison_memory_region(allocated_.get(), bytes + 128);
    __asan_unpoison_memory_region(shared_, shape.shared_bytes);
#endif
  }
  ~block_run() {
#if defined(TERRACE_ASAN_FIBERS)
    __asan_unpoison_memory_region(allocated_.get(), std::max<std::size_t>(shape_.shared_bytes, 1) + 128);
#endif
  }
  block_run(const block_run&) = delete;

  /// Runs block `index` to its end. False where it got stuck.
  template <class Kernel>
  bool run(const Kernel& kernel, cuda::grid_index index) {
    index_ = index;
    std::memset(shared_, 0xff, shape_.shared_bytes);
    pieces_.assign(shape_.shared_bytes / 16, {});
    block_barriers_ = 0;
    warp_barriers_.assign(threads_.size() / cuda::warp_threads, 0);
    const auto entry = [](void* p) {
      auto& thread = *static_cast<emulated_block*>(p);
      (*static_cast<const Kernel*>(thread.run_->kernel_))(thread);
      thread.state_ = emulated_block::state::done;
    };
    kernel_ = &kernel;
    for (std::uint32_t i = 0; i < threads_.size(); ++i) {
      emulated_block& thread = threads_[i];
      thread.run_ = this;
      thread.thread_ = i;
      thread.state_ = emulated_block::state::ready;
      thread.open_.clear();
      thread.groups_.clear();
      thread.fiber_.start(entry, &thread);
    }
    std::vector<std::uint32_t> turns(threads_.size());
    for (std::uint32_t i = 0; i < turns.size(); ++i) turns[i] = i;
    if (current().threads == machine::order::descending) std::reverse(turns.begin(), turns.end());
    const bool shuffled = current().threads == machine::order::shuffled;
    std::mt19937 random(index.x + 1);
    do {
      if (shuffled) std::shuffle(turns.begin(), turns.end(), random);
      const std::size_t together = shuffled ? turns.size() : cuda::warp_threads;
      for (std::size_t first = 0; first < turns.size(); first += together)
        while (resume_all({turns.data() + first, together})) continue;
    } while (pass_barrier());
    return ended();
  }

 private:
  friend emulated_block;

  // What is known of 16 bytes of shared memory: who wrote and who read them last, and after which barriers.
  struct access {
    std::int64_t warp = -1;
    std::uint64_t warp_barriers = 0, block_barriers = 0;
  };
  struct piece {
    access written, read;
    bool pending = false;
  };

  // False where none of these threads could go on.
  bool resume_all(std::span<const std::uint32_t> turns) {
    bool any = false;
    for (const std::uint32_t i : turns) {
      if (threads_[i].state_ != emulated_block::state::ready) continue;
      any = true;
      threads_[i].fiber_.resume();
    }
    return any;
  }
  piece* piece_at(const void* p) {
    const auto at = static_cast<std::size_t>(static_cast<const std::byte*>(p) - shared_) / 16;
    return p >= shared_ && at < pieces_.size() ? &pieces_[at] : nullptr;
  }
  access access_of(std::uint32_t thread) const {
    const std::uint32_t warp = thread / cuda::warp_threads;
    return {warp, warp_barriers_[warp], block_barriers_};
  }
  // Whether a barrier lies between that access and now, for threads of this warp.
  bool is_past(const access& a, std::uint32_t warp) const {
    if (a.warp < 0 || block_barriers_ > a.block_barriers) return true;
    return a.warp == warp && warp_barriers_[warp] > a.warp_barriers;
  }

  bool all(emulated_block::state s) const {
    return std::all_of(threads_.begin(), threads_.end(), [&](const auto& t) { return t.state_ == s; });
  }
  bool pass_barrier() {
    if (!all(emulated_block::state::waits_for_block)) return false;
    for (const emulated_block& t : threads_)
      if (t.place_.line() != threads_[0].place_.line()) {
        faults().push_back("threads wait at different barriers: " + name(t.place_) + ", " +
                           name(threads_[0].place_));
        return false;
      }
    for (emulated_block& t : threads_) t.state_ = emulated_block::state::ready;
    ++block_barriers_;
    return true;
  }
  bool ended() const {
    if (all(emulated_block::state::done)) return true;
    for (const emulated_block& t : threads_)
      if (t.state_ == emulated_block::state::waits_for_block ||
          t.state_ == emulated_block::state::waits_for_warp) {
        faults().push_back("not all threads come to " + name(t.place_));
        break;
      }
    return false;
  }
  static std::string name(const std::source_location& at) {
    return std::string(at.file_name()) + ":" + std::to_string(at.line());
  }

  cuda::launch_shape shape_;
  cuda::grid_index index_{};
  const void* kernel_ = nullptr;
  std::unique_ptr<std::byte[]> allocated_;
  std::byte* shared_ = nullptr;
  std::vector<emulated_block> threads_;
  std::vector<piece> pieces_;
  std::uint64_t block_barriers_ = 0;
  std::vector<std::uint64_t> warp_barriers_;
};

inline cuda::grid_index emulated_block::index() const { return run_->index_; }
inline cuda::grid_index emulated_block::count() const {
  return {run_->shape_.x, run_->shape_.y, run_->shape_.z};
}
inline std::byte* emulated_block::shared() const { return run_->shared_; }

inline void emulated_block::sync(place at) {
  place_ = at;
  state_ = state::waits_for_block;
  fiber_.yield();
}

inline std::uint64_t& emulated_block::warp_barriers() {
  return run_->warp_barriers_[thread_ / cuda::warp_threads];
}
inline void emulated_block::writes(const void* p, bool pending, const place& at) {
  block_run::piece* const piece = run_->piece_at(p);
  if (piece == nullptr) return;
  if (pending && !run_->is_past(piece->read, thread_ / cuda::warp_threads))
    fault(at, "shared memory is overwritten that others may still read");
  piece->pending = pending;
  piece->written = run_->access_of(thread_);
}
inline void emulated_block::reads(const void* p, const place& at) {
  block_run::piece* const piece = run_->piece_at(p);
  if (piece == nullptr) return;
  if (piece->pending || !run_->is_past(piece->written, thread_ / cuda::warp_threads))
    fault(at, "shared memory is read that may not be written yet");
  piece->read = run_->access_of(thread_);
}

inline void emulated_block::fault(const place& at, const char* sentence) {
  faults().push_back(std::string(sentence) + ", " + block_run::name(at));
  state_ = state::stuck;
  fiber_.yield();
}

template <class Slot, class Work>
void emulated_block::together(const place& at, Slot& slot, Work work) {
  place_ = at;
  slot_ = &slot;
  state_ = state::waits_for_warp;
  emulated_block* const warp = run_->threads_.data() + thread_ / cuda::warp_threads * cuda::warp_threads;
  std::array<Slot*, cuda::warp_threads> slots;
  for (std::uint32_t i = 0; i < cuda::warp_threads; ++i) {
    // One that has passed is ready, until it waits again somewhere.
    if (warp[i].state_ != state::waits_for_warp) return fiber_.yield();
    if (warp[i].place_.line() != at.line()) return fault(at, "lanes of a warp are at different places");
    slots[i] = static_cast<Slot*>(warp[i].slot_);
  }
  work(slots);
  for (std::uint32_t i = 0; i < cuda::warp_threads; ++i) warp[i].state_ = state::ready;
}

/// Calls `work` on machines of all kinds.
template <class Work>
void on_each_machine(Work work) {
  for (const auto order : {machine::order::ascending, machine::order::descending, machine::order::shuffled})
    for (const bool late : {false, true}) {
      current() = {.threads = order, .late_copies = late};
      work();
    }
  current() = {};
}

}  // namespace emulator

namespace terrace::cuda {

inline std::size_t most_shared_bytes() noexcept { return emulator::current().shared_bytes; }

/// The launch of the emulator: the kernel is copied, as on a device, and runs when its stream comes to it.
template <class Kernel>
result<void> launch(const Kernel& kernel, const launch_shape& shape, stream_handle stream) noexcept {
  static_assert(Kernel::threads % warp_threads == 0);
  static_assert(std::is_trivially_copyable_v<Kernel> && sizeof(Kernel) <= 4096);
  if (shape.empty()) return {};
  if (shape.shared_bytes > most_shared_bytes())
    return fail(errc::unavailable, "more shared memory than a device has");
  emulator::submit()(stream, [kernel, shape] {
    emulator::block_run block(shape, Kernel::threads);
    for (std::uint32_t z = 0; z < shape.z; ++z)
      for (std::uint32_t y = 0; y < shape.y; ++y)
        for (std::uint32_t x = 0; x < shape.x; ++x)
          if (!block.run(kernel, {x, y, z})) return;
  });
  return {};
}

}  // namespace terrace::cuda
