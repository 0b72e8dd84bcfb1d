#include "fake_runtime.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

// What the runtime's opaque handles point at.
struct CUevent_st {
  std::uint64_t recorded = 0, reached = 0;  // versions: each record makes a new one
  bool timing = true;
  double at = 0;  // when it was reached, on the virtual clock
};
struct CUstream_st {
  struct work {
    std::function<void()> run{};    // may be empty
    CUevent_st* reaches = nullptr;  // an event that is recorded here
    CUevent_st* awaits = nullptr;   // an event that this waits for
    std::uint64_t version = 0;      // of either
    std::uint64_t barrier = 0;      // on the legacy stream: blocking streams must have passed this
    double microseconds = 0;
  };
  std::deque<work> queue;
  double clock = 0;  // virtual microseconds
  bool blocking = false;
};

namespace {

struct machine {
  fake_cuda::options how;
  std::mt19937_64 random;
  CUstream_st legacy;
  std::vector<std::unique_ptr<CUstream_st>> streams;
  std::map<std::byte*, std::size_t> device_memory;  // mappings
  std::map<const std::byte*, std::size_t> pinned;
  std::map<std::string, std::pair<std::size_t, cudaError_t>> failing;
  std::size_t work_until_failure = 0;
  cudaError_t work_failure = cudaSuccess, sticky = cudaSuccess, last = cudaSuccess;
  bool stalled = false, capturing = false;
  int access = 0;
  fake_cuda::counts counts;
};
std::recursive_mutex guard;  // pinning has a thread of its own
thread_local cudaStreamCaptureMode capture_mode = cudaStreamCaptureModeGlobal;
machine& m() {
  static machine the;
  return the;
}

cudaError_t remember(cudaError_t e) {
  if (e != cudaSuccess) m().last = e;
  return e;
}
// Whether this call is one that fails; errors that stick come first.
cudaError_t enter(const char* function) {
  if (m().sticky != cudaSuccess) return remember(m().sticky);
  const auto found = m().failing.find(function);
  if (found == m().failing.end() || --found->second.first != 0) return cudaSuccess;
  const cudaError_t how = found->second.second;
  m().failing.erase(found);
  return remember(how);
}

void protect(int how) {
  for (const auto& [at, bytes] : m().device_memory) ::mprotect(at, bytes, how);
}
void open_device() {
  if (m().access++ == 0) protect(PROT_READ | PROT_WRITE);
}
void close_device() {
  if (--m().access == 0) protect(PROT_NONE);
}

bool runnable(const CUstream_st& s) {
  if (s.queue.empty()) return false;
  const CUstream_st::work& w = s.queue.front();
  return w.awaits == nullptr || w.awaits->reached >= w.version;
}
void run_front(CUstream_st& s) {
  CUstream_st::work w = std::move(s.queue.front());
  s.queue.pop_front();
  s.clock += w.microseconds;
  if (w.awaits != nullptr) s.clock = std::max(s.clock, w.awaits->at);
  if (w.run && m().sticky == cudaSuccess) {
    if (m().work_until_failure != 0 && --m().work_until_failure == 0) {
      m().sticky = m().work_failure;
    } else {
      w.run();
    }
  }
  if (w.reaches != nullptr) {
    w.reaches->reached = std::max(w.reaches->reached, w.version);
    w.reaches->at = s.clock;
  }
}
std::vector<CUstream_st*> all_streams() {
  std::vector<CUstream_st*> all{&m().legacy};
  for (const auto& s : m().streams) all.push_back(s.get());
  return all;
}
// Runs up to `most` works of streams drawn at random; false where none can run. The memory is opened once for all of
// them: that takes longer than most works do.
bool pump(std::size_t most) {
  std::optional<fake_cuda::device_access> open;
  while (most-- > 0) {
    std::vector<CUstream_st*> ready;
    for (CUstream_st* s : all_streams())
      if (runnable(*s)) ready.push_back(s);
    if (ready.empty()) return false;
    if (!open) open.emplace();
    run_front(*ready[m().random() % ready.size()]);
  }
  return true;
}
void some_time_passes() {
  if (!m().stalled) pump(m().random() % 4);
}

CUstream_st& of(cudaStream_t s) { return s == nullptr || s == cudaStreamLegacy ? m().legacy : *s; }

// The legacy stream and blocking streams wait for each other. Here: what is put on one of them runs after all that
// the others have.
void put(cudaStream_t stream, CUstream_st::work w) {
  CUstream_st& s = of(stream);
  if (&s == &m().legacy || s.blocking)
    for (CUstream_st* other : all_streams())
      if (other != &s && (other == &m().legacy || (&s == &m().legacy && other->blocking)))
        while (!other->queue.empty())
          if (!pump(1)) std::abort();
  s.queue.push_back(std::move(w));
}

bool on_device(const void* p) {
  const auto* at = static_cast<const std::byte*>(p);
  auto after = m().device_memory.upper_bound(const_cast<std::byte*>(at));
  return after != m().device_memory.begin() && (--after, at < after->first + after->second);
}
// 0: pageable, 1: pinned, -1: it goes across the end of a pinned range.
int pinnedness(const void* p, std::size_t bytes) {
  const auto* at = static_cast<const std::byte*>(p);
  const auto touches = [&](auto range) {
    return at < range.first + range.second && range.first < at + bytes;
  };
  for (const auto& range : m().pinned)
    if (touches(range)) return range.first <= at && at + bytes <= range.first + range.second ? 1 : -1;
  return 0;
}

cudaError_t run_out(cudaStream_t stream) {
  std::optional<fake_cuda::device_access> open;
  if (!of(stream).queue.empty()) open.emplace();
  while (!of(stream).queue.empty())
    if (!pump(1)) std::abort();  // two streams that wait for each other
  return remember(m().sticky);
}

cudaError_t copy(void* to, const void* from, std::size_t bytes, cudaStream_t stream, double call) {
  const double microseconds = call + m().how.costs.copied_kib * static_cast<double>(bytes) / 1024;
  const bool up = on_device(to), down = on_device(from);
  if (!up && !down) return remember(cudaErrorInvalidValue);
  if (up && down) {
    put(stream, {.run = [=] { std::memcpy(to, from, bytes); }, .microseconds = microseconds});
    return cudaSuccess;
  }
  const int pinned = pinnedness(up ? from : to, bytes);
  if (pinned < 0) return remember(cudaErrorInvalidValue);
  if (up && pinned == 0) {
    auto taken = std::make_shared<std::vector<std::byte>>(static_cast<const std::byte*>(from),
                                                          static_cast<const std::byte*>(from) + bytes);
    put(stream, {.run = [=] { std::memcpy(to, taken->data(), bytes); }, .microseconds = microseconds});
    return cudaSuccess;
  }
  put(stream, {.run = [=] { std::memcpy(to, from, bytes); }, .microseconds = microseconds});
  return down && pinned == 0 ? run_out(stream) : cudaSuccess;
}

}  // namespace

namespace fake_cuda {

void reset(const options& o) {
  const std::scoped_lock lock(guard);
  for (const auto& [at, bytes] : m().device_memory) ::munmap(at, bytes);
  m().~machine();
  new (&m()) machine;
  m().how = o;
  m().random.seed(o.seed);
}
void fail_call(const char* function, cudaError_t how, std::size_t nth) { m().failing[function] = {nth, how}; }
void fail_work(cudaError_t how, std::size_t nth) {
  m().work_failure = how;
  m().work_until_failure = nth;
}
void stall(bool stalled) { m().stalled = stalled; }
void capture(bool capturing) {
  const std::scoped_lock lock(guard);
  m().capturing = capturing;
}
void drain() {
  const std::scoped_lock lock(guard);
  while (pump(1)) {
  }
}
void launch(cudaStream_t stream, std::function<void()> kernel, double microseconds) {
  const std::scoped_lock lock(guard);
  ++m().counts.kernels;
  put(stream, {.run = std::move(kernel), .microseconds = microseconds});
}
device_access::device_access() { open_device(); }
device_access::~device_access() { close_device(); }
counts now() {
  const std::scoped_lock lock(guard);
  counts c = m().counts;
  c.live_streams = m().streams.size();
  for (const auto& [at, bytes] : m().device_memory) c.device_bytes += bytes;
  for (const auto& [at, bytes] : m().pinned) c.pinned_bytes += bytes;
  return c;
}

}  // namespace fake_cuda

// --- The runtime, as far as Terrace uses it.

extern "C" {

cudaError_t cudaGetDeviceCount(int* count) {
  const std::scoped_lock lock(guard);
  if (const cudaError_t e = enter("cudaGetDeviceCount"); e != cudaSuccess) return e;
  *count = m().how.devices;
  return m().how.devices == 0 ? remember(cudaErrorNoDevice) : cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* what, int) {
  const std::scoped_lock lock(guard);
  if (const cudaError_t e = enter("cudaGetDeviceProperties"); e != cudaSuccess) return e;
  std::snprintf(what->name, sizeof what->name, "no device at all");
  what->major = 9;
  what->multiProcessorCount = 4;
  what->l2CacheSize = 1 << 20;
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  const std::scoped_lock lock(guard);
  if (const cudaError_t e = enter("cudaMemGetInfo"); e != cudaSuccess) return e;
  *total = m().how.memory;
  *free = *total - fake_cuda::now().device_bytes;
  return cudaSuccess;
}
cudaError_t cudaGetLastError() {
  const std::scoped_lock lock(guard);
  return std::exchange(m().last, m().sticky);
}
const char* cudaGetErrorString(cudaError_t e) {
  switch (e) {
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorNoDevice:
      return "no CUDA-capable device is detected";
    default:
      return "an error of the fake runtime";
  }
}

cudaError_t cudaMalloc(void** memory, size_t bytes) {
  const std::scoped_lock lock(guard);
  if (const cudaError_t e = enter("cudaMalloc"); e != cudaSuccess) return e;
  constexpr std::size_t page = 4096;
  const std::size_t rounded = (bytes + page - 1) / page * page;
  if (rounded > m().how.memory - fake_cuda::now().device_bytes) return remember(cudaErrorMemoryAllocation);
  void* at = ::mmap(nullptr, rounded, m().access > 0 ? PROT_READ | PROT_WRITE : PROT_NONE,
                    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED) return remember(cudaErrorMemoryAllocation);
  m().device_memory[static_cast<std::byte*>(at)] = rounded;
  *memory = at;
  return cudaSuccess;
}
cudaError_t cudaFree(void* memory) {
  const std::scoped_lock lock(guard);
  if (memory == nullptr) return cudaSuccess;
  fake_cuda::drain();  // as the real one, it waits for the device
  const auto found = m().device_memory.find(static_cast<std::byte*>(memory));
  if (found == m().device_memory.end()) return remember(cudaErrorInvalidValue);
  ::munmap(found->first, found->second);
  m().device_memory.erase(found);
  return cudaSuccess;
}
cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned) {
  const std::scoped_lock lock(guard);
  if (const cudaError_t e = enter("cudaHostAlloc"); e != cudaSuccess) return e;
  *memory = std::malloc(bytes);
  m().pinned[static_cast<const std::byte*>(*memory)] = bytes;
  return cudaSuccess;
}
cudaError_t cudaFreeHost(void* memory) {
  const std::scoped_lock lock(guard);
  fake_cuda::drain();
  m().pinned.erase(static_cast<const std::byte*>(memory));
  std::free(memory);
  return cudaSuccess;
}
cudaError_t cudaHostRegister(void* memory, size_t bytes, unsigned) {
  const std::scoped_lock lock(guard);
  if (const cudaError_t e = enter("cudaHostRegister"); e != cudaSuccess) return e;
  if (m().capturing && capture_mode != cudaStreamCaptureModeRelaxed)
    return remember(cudaErrorStreamCaptureUnsupported);
  if (pinnedness(memory, bytes) != 0) return remember(cudaErrorHostMemoryAlreadyRegistered);
  if (fake_cuda::now().pinned_bytes + bytes > m().how.most_pinned) return remember(cudaErrorMemoryAllocation);
  m().pinned[static_cast<const std::byte*>(memory)] = bytes;
  return cudaSuccess;
}
cudaError_t cudaHostUnregister(void* memory) {
  const std::scoped_lock lock(guard);
  return m().pinned.erase(static_cast<const std::byte*>(memory)) == 1
             ? cudaSuccess
             : remember(cudaErrorHostMemoryNotRegistered);
}

cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  std::swap(*mode, capture_mode);
  return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  const std::scoped_lock lock(guard);
  if (const cudaError_t e = enter("cudaStreamCreateWithFlags"); e != cudaSuccess) return e;
  m().streams.push_back(std::make_unique<CUstream_st>());
  m().streams.back()->blocking = (flags & cudaStreamNonBlocking) == 0;
  *stream = m().streams.back().get();
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  const std::scoped_lock lock(guard);
  static_cast<void>(cudaStreamSynchronize(stream));
  std::erase_if(m().streams, [&](const auto& s) { return s.get() == stream; });
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  const std::scoped_lock lock(guard);
  ++m().counts.host_waits;
  return run_out(stream);
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  const std::scoped_lock lock(guard);
  if (const cudaError_t e = enter("cudaStreamWaitEvent"); e != cudaSuccess) return e;
  put(stream, {.awaits = event, .version = event->recorded});
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  const std::scoped_lock lock(guard);
  if (const cudaError_t e = enter("cudaEventCreateWithFlags"); e != cudaSuccess) return e;
  *event = new CUevent_st;
  (*event)->timing = (flags & cudaEventDisableTiming) == 0;
  ++m().counts.live_events;
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  const std::scoped_lock lock(guard);
  fake_cuda::drain();
  delete event;
  --m().counts.live_events;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  const std::scoped_lock lock(guard);
  if (const cudaError_t e = enter("cudaEventRecord"); e != cudaSuccess) return e;
  put(stream, {.reaches = event, .version = ++event->recorded});
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  const std::scoped_lock lock(guard);
  ++m().counts.host_waits;
  while (event->reached != event->recorded)
    if (!pump(1)) std::abort();
  return remember(m().sticky);
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  const std::scoped_lock lock(guard);
  some_time_passes();
  if (m().sticky != cudaSuccess) return remember(m().sticky);
  return remember(event->reached == event->recorded ? cudaSuccess : cudaErrorNotReady);
}

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end) {
  const std::scoped_lock lock(guard);
  if (const cudaError_t e = enter("cudaEventElapsedTime"); e != cudaSuccess) return e;
  if (!begin->timing || !end->timing || begin->recorded == 0 || end->recorded == 0)
    return remember(cudaErrorInvalidResourceHandle);
  if (begin->reached != begin->recorded || end->reached != end->recorded) return remember(cudaErrorNotReady);
  *milliseconds = static_cast<float>((end->at - begin->at) / 1e3);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  const std::scoped_lock lock(guard);
  if (const cudaError_t e = enter("cudaMemcpyAsync"); e != cudaSuccess) return e;
  ++m().counts.copies;
  return copy(to, from, bytes, stream, m().how.costs.copy_call);
}
cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                              size_t height, cudaMemcpyKind, cudaStream_t stream) {
  const std::scoped_lock lock(guard);
  if (const cudaError_t e = enter("cudaMemcpy2DAsync"); e != cudaSuccess) return e;
  if (width > to_pitch || width > from_pitch) return remember(cudaErrorInvalidValue);
  ++m().counts.copies;
  for (std::size_t row = 0; row < height; ++row)
    if (const cudaError_t e = copy(static_cast<std::byte*>(to) + row * to_pitch,
                                   static_cast<const std::byte*>(from) + row * from_pitch, width, stream,
                                   row == 0 ? m().how.costs.copy_call : 0);
        e != cudaSuccess)
      return e;
  return cudaSuccess;
}
cudaError_t cudaMemset2DAsync(void* to, size_t pitch, int value, size_t width, size_t height,
                              cudaStream_t stream) {
  const std::scoped_lock lock(guard);
  if (const cudaError_t e = enter("cudaMemset2DAsync"); e != cudaSuccess) return e;
  if (!on_device(to) || width > pitch) return remember(cudaErrorInvalidValue);
  put(stream, {.run = [=] {
        for (std::size_t row = 0; row < height; ++row)
          std::memset(static_cast<std::byte*>(to) + row * pitch, value, width);
      }});
  return cudaSuccess;
}
cudaError_t cudaMemcpyBatchAsync(void* const* to, const void* const* from, const size_t* bytes, size_t count,
                                 cudaMemcpyAttributes*, size_t*, size_t, cudaStream_t stream) {
  const std::scoped_lock lock(guard);
  if (const cudaError_t e = enter("cudaMemcpyBatchAsync"); e != cudaSuccess) return e;
  if (!m().how.batched_copies) return remember(cudaErrorCallRequiresNewerDriver);
  if (stream == nullptr) return remember(cudaErrorInvalidValue);
  for (std::size_t i = 0; i < count && !m().how.batched_pageable; ++i)
    if (pinnedness(on_device(to[i]) ? from[i] : to[i], bytes[i]) != 1) return remember(cudaErrorInvalidValue);
  ++m().counts.batched_calls;
  for (std::size_t i = 0; i < count; ++i) {
    ++m().counts.batched_copies;
    const double call = m().how.costs.batched_piece + (i == 0 ? m().how.costs.batched_call : 0);
    if (const cudaError_t e = copy(to[i], from[i], bytes[i], stream, call); e != cudaSuccess) return e;
  }
  return cudaSuccess;
}

}  // extern "C"
