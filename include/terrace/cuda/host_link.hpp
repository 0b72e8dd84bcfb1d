#pragma once
#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "terrace/core/bytes.hpp"
#include "terrace/cuda/device.hpp"
#include "terrace/cuda/event_pool.hpp"
#include "terrace/cuda/piece_copies.hpp"
#include "terrace/cuda/pinning.hpp"
#include "terrace/cuda/transfer_choice.hpp"
#include "terrace/execution/context.hpp"
#include "terrace/execution/event_source.hpp"

namespace terrace::cuda {

/// Work of a device whose end is reported to the owner of the context: a node in the lists of host_link.
class device_work {
 public:
  device_work() = default;
  device_work(const device_work&) = delete;
  device_work& operator=(const device_work&) = delete;
  /// On the owner, in poll(). It may be gone afterwards.
  virtual void complete(cudaError_t how) noexcept = 0;

 protected:
  ~device_work() = default;

 private:
  friend class host_link;
  copy_piece piece_;
  device_work* next_ = nullptr;
};

/// The link between a context's host memory and one device: a copy stream for each direction, the choice of how
/// pieces travel, and the events that tell the owner when work has ended. One for each context and device, which all
/// tiers on that device share.
///
/// Copies started between two polls go together. Ordering rules out the corruption that such caches are known for: a
/// copy begins only after everything that the engine's streams (`follow`) had been given when the copy was submitted.
/// So it reads what the engine's kernels wrote, and overwrites nothing that they still read. The host waits for a
/// device only after a call has failed and at the link's end, and nothing is ever synchronised device-wide.
///
/// Ends are found by polling events, never by host callbacks: these run on a driver thread, carry no status, and do
/// not come at all after a sticky error. Owner thread only.
class host_link final : public event_source {
 public:
  /// The link of `ctx` to `device`; made by the first call. Errors: unavailable without a working device.
  static result<host_link*> of(context& ctx, int device = 0);
  ~host_link() override;

  int device() const noexcept { return device_; }
  cudaStream_t stream(copy_direction way) const noexcept { return lanes_[index(way)].stream; }

  /// A stream on which the engine writes or reads blocks; nullptr is the legacy default stream. Each follow() needs
  /// an unfollow(); the stream must not be destroyed before that. O(streams).
  void follow(cudaStream_t engine) {
    const auto known = find(engine);
    if (known == followed_.end())
      followed_.push_back({engine, 1});
    else
      ++known->times;
  }
  /// Later copies still begin after what the stream had been given until now.
  void unfollow(cudaStream_t engine) noexcept;
  /// How pieces travel from now on, and the kernel that may carry them (cuda/gather.cuh has one).
  void use(const transfer_choice& choice) noexcept { copies_.use(choice); }
  void use(copy_kernel kernel) noexcept { copies_.use(kernel); }
  const transfer_choice& choice() const noexcept { return copies_.choice(); }

  /// Pins host memory while the result lives (cuda/pinning.hpp).
  class pinned_memory;
  std::unique_ptr<pinned_memory> pin(mutable_bytes memory, bool at_once = false);

  /// Starts the copy of `piece` at the next poll(); `work` completes when it has ended. Both stay until then.
  void copy(device_work& work, const copy_piece& piece, copy_direction way) noexcept {
    work.piece_ = piece;
    lanes_[index(way)].queued.push_back(work);
    ++pending_;
  }
  /// `work` completes when everything that `stream` was given so far has ended, with the error if it failed.
  void when_done(device_work& work, cudaStream_t stream) noexcept;

  /// Enqueues copies on `stream` now, by the method that suits them, for work that the caller orders by its own
  /// events: nobody is told of their end, and they do not wait for the followed streams.
  cudaError_t enqueue(std::span<const copy_piece> pieces, copy_direction way, cudaStream_t stream) noexcept {
    const device_scope scope(device_);
    return copies_.enqueue(pieces, way, stream);
  }
  /// What is put on `stream` from here on begins after everything that the other followed streams have been given;
  /// and what they are given from here on begins after everything on `stream`. No host wait.
  cudaError_t wait_for_engine(cudaStream_t stream) noexcept;
  cudaError_t let_engine_wait(cudaStream_t stream) noexcept;

  /// Events without timing, taken and given back.
  event_pool& events() noexcept { return events_; }

  std::size_t poll() noexcept override;
  std::size_t pending() const noexcept override { return pending_; }
  int descriptor() const noexcept override { return -1; }

 private:
  struct work_list {
    device_work* head = nullptr;
    device_work* tail = nullptr;
    bool empty() const noexcept { return head == nullptr; }
    void push_back(device_work& w) noexcept {
      w.next_ = nullptr;
      (head == nullptr ? head : tail->next_) = &w;
      tail = &w;
    }
    device_work& pop_front() noexcept {
      device_work& w = *head;
      head = w.next_;
      return w;
    }
  };
  // Works that end with one event.
  struct flight {
    cudaEvent_t event = nullptr;
    work_list works;
  };
  struct lane {
    cudaStream_t stream = nullptr;
    work_list queued;
    std::vector<flight> flights;  // oldest first
  };

  host_link(context& owner, int device) noexcept : context_(owner), device_(device), events_(device) {}
  static constexpr std::size_t index(copy_direction way) noexcept { return static_cast<std::size_t>(way); }
  cudaError_t open() noexcept;
  std::size_t submit(lane& l, copy_direction way) noexcept;
  cudaError_t put_in_order(cudaStream_t first, cudaStream_t then) noexcept;
  std::size_t land(std::vector<flight>& flights, bool in_order) noexcept;
  std::size_t complete(work_list works, cudaError_t how) noexcept;

  context& context_;
  int device_;
  event_pool events_;
  std::array<lane, 2> lanes_;
  std::vector<flight> watched_;
  struct followed_stream {
    cudaStream_t stream;
    int times;
  };
  std::vector<followed_stream> followed_;
  std::vector<followed_stream>::iterator find(cudaStream_t engine) noexcept {
    return std::find_if(followed_.begin(), followed_.end(),
                        [&](const auto& f) { return f.stream == engine; });
  }
  piece_copies copies_;
  std::vector<copy_piece> gathered_;  // scratch of submit
  std::size_t pending_ = 0;
};

/// Host memory that is pinned, and known to its link, while this lives. It must end before the context does.
class host_link::pinned_memory {
 public:
  pinned_memory(host_link& link, mutable_bytes memory, bool at_once)
      : link_(link), pins_(link.device_, memory, at_once) {
    link_.copies_.know(pins_);
  }
  pinned_memory(const pinned_memory&) = delete;
  pinned_memory& operator=(const pinned_memory&) = delete;
  ~pinned_memory() { link_.copies_.forget(pins_); }
  const pinning& pins() const noexcept { return pins_; }
  /// Waits until everything that can be pinned is.
  void finish() { pins_.finish(); }

 private:
  host_link& link_;
  pinning pins_;
};

inline std::unique_ptr<host_link::pinned_memory> host_link::pin(mutable_bytes memory, bool at_once) {
  return std::make_unique<pinned_memory>(*this, memory, at_once);
}

inline result<host_link*> host_link::of(context& ctx, int device) {
  static constexpr std::array<char, 64> kinds{};  // only the addresses matter: one for each device
  if (device < 0 || static_cast<std::size_t>(device) >= kinds.size())
    return terrace::fail(errc::invalid_argument, "there is no CUDA device of this number");
  const void* const kind = &kinds[static_cast<std::size_t>(device)];
  if (event_source* const shared = ctx.owned(kind)) return static_cast<host_link*>(shared);
  if (auto probed = probe_device(device); !probed) return propagate(probed.error());
  std::unique_ptr<host_link> made(new host_link(ctx, device));
  if (const cudaError_t e = made->open(); e != cudaSuccess)
    return fail(e, "a CUDA device gives no stream for copies");
  host_link* const link = made.get();
  ctx.own(std::move(made), kind);
  ctx.attach(*link);
  return link;
}

inline cudaError_t host_link::open() noexcept {
  const device_scope scope(device_);
  for (lane& l : lanes_)
    if (const cudaError_t e = cudaStreamCreateWithFlags(&l.stream, cudaStreamNonBlocking); e != cudaSuccess)
      return e;
  return cudaSuccess;
}

inline host_link::~host_link() {
  context_.detach(*this);
  const device_scope scope(device_);
  for (lane& l : lanes_) {
    submit(l, &l == lanes_.data() ? copy_direction::up : copy_direction::down);
    if (l.stream != nullptr) static_cast<void>(cudaStreamSynchronize(l.stream));
    while (!l.flights.empty() && land(l.flights, true) != 0) {
    }
    if (l.stream != nullptr) static_cast<void>(cudaStreamDestroy(l.stream));
  }
}

inline std::size_t host_link::poll() noexcept {
  const auto submit_all = [this] {
    std::size_t refused = 0;
    for (const copy_direction way : {copy_direction::up, copy_direction::down})
      refused += submit(lanes_[index(way)], way);
    return refused;
  };
  std::size_t ended = submit_all();
  for (lane& l : lanes_) ended += land(l.flights, true);
  ended += land(watched_, false);
  return ended + submit_all();  // what the completions have started
}

// Orders what `first` has been given so far before what is put on `then` from here on.
inline cudaError_t host_link::put_in_order(cudaStream_t first, cudaStream_t then) noexcept {
  if (first == then) return cudaSuccess;
  const auto event = events_.take();
  if (!event) return static_cast<cudaError_t>(event.error().system);
  cudaError_t e = cudaEventRecord(*event, first);
  if (e == cudaSuccess) e = cudaStreamWaitEvent(then, *event, 0);
  events_.give_back(*event);  // a wait refers to what was recorded when it was enqueued
  return e;
}

inline cudaError_t host_link::wait_for_engine(cudaStream_t stream) noexcept {
  cudaError_t e = cudaSuccess;
  for (std::size_t i = 0; i < followed_.size() && e == cudaSuccess; ++i)
    e = put_in_order(followed_[i].stream, stream);
  return e;
}

inline cudaError_t host_link::let_engine_wait(cudaStream_t stream) noexcept {
  cudaError_t e = cudaSuccess;
  for (std::size_t i = 0; i < followed_.size() && e == cudaSuccess; ++i)
    e = put_in_order(stream, followed_[i].stream);
  return e;
}

inline void host_link::unfollow(cudaStream_t engine) noexcept {
  const auto known = find(engine);
  if (known == followed_.end() || --known->times != 0) return;
  followed_.erase(known);
  const device_scope scope(device_);
  for (const lane& l : lanes_)
    if (put_in_order(engine, l.stream) !=
        cudaSuccess) {  // no event could be had: waiting here is all that is left
      static_cast<void>(cudaGetLastError());
      static_cast<void>(cudaStreamSynchronize(engine));
    }
}

// Returns how many completed at once, because they could not be enqueued.
inline std::size_t host_link::submit(lane& l, copy_direction way) noexcept {
  if (l.queued.empty()) return 0;
  const device_scope scope(device_);
  work_list works = std::exchange(l.queued, {});
  gathered_.clear();
  for (const device_work* w = works.head; w != nullptr; w = w->next_) gathered_.push_back(w->piece_);
  flight f{nullptr, works};
  cudaError_t e = wait_for_engine(l.stream);
  if (e == cudaSuccess) e = copies_.enqueue(gathered_, way, l.stream);
  // Whatever was enqueued before an error may still write: nobody is told before it has ended.
  if (e == cudaSuccess) {
    const auto event = events_.take();
    e = event ? cudaEventRecord(*event, l.stream) : static_cast<cudaError_t>(event.error().system);
    if (event) f.event = *event;
  }
  if (e == cudaSuccess) {
    l.flights.push_back(f);
    return 0;
  }
  static_cast<void>(cudaGetLastError());
  static_cast<void>(cudaStreamSynchronize(l.stream));
  if (f.event != nullptr) events_.give_back(f.event);
  return complete(works, e);
}

inline void host_link::when_done(device_work& work, cudaStream_t stream) noexcept {
  const device_scope scope(device_);
  ++pending_;
  flight f;
  f.works.push_back(work);
  const auto event = events_.take();
  const cudaError_t e =
      event ? cudaEventRecord(*event, stream) : static_cast<cudaError_t>(event.error().system);
  if (e == cudaSuccess) {
    f.event = *event;
    return watched_.push_back(f);
  }
  static_cast<void>(cudaGetLastError());
  if (event) events_.give_back(*event);
  complete(f.works, e);
}

// Completes what has ended. Completions may poll in turn, and start more.
inline std::size_t host_link::land(std::vector<flight>& flights, bool in_order) noexcept {
  std::size_t ended = 0;
  for (std::size_t i = 0; i < flights.size();) {
    const cudaError_t how = cudaEventQuery(flights[i].event);
    if (how == cudaErrorNotReady) {
      static_cast<void>(cudaGetLastError());
      if (in_order) break;
      ++i;
      continue;
    }
    const flight f = flights[i];
    flights.erase(flights.begin() + static_cast<std::ptrdiff_t>(i));
    events_.give_back(f.event);
    ended += complete(f.works, how);
    i = in_order ? 0 : std::min(i, flights.size());
  }
  return ended;
}

inline std::size_t host_link::complete(work_list works, cudaError_t how) noexcept {
  std::size_t count = 0;
  while (!works.empty()) {
    device_work& w = works.pop_front();
    --pending_;
    ++count;
    w.complete(how);
  }
  return count;
}

}  // namespace terrace::cuda
