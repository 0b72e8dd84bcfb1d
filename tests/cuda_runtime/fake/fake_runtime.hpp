#pragma once
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <functional>

/// A CUDA runtime without a device, for tests: programs link fake_runtime.cpp instead of cudart. It is as unkind as a
/// device may be, and repeats itself from a seed:
/// - What is put on a stream runs later, when somebody asks for an event or waits; streams overtake each other in any
///   order that their events allow.
/// - Device memory cannot be touched by the host: reading or writing it is a segmentation fault.
/// - Copies of memory that is not pinned behave as the real ones: up, the bytes are taken at once; down, the host
///   waits. A copy across two pinned ranges is an error.
/// - An event that is not ready leaves that behind as the last error, for the engine's own check to find.
namespace fake_cuda {

struct options {
  std::uint64_t seed = 1;
  int devices = 1;
  std::size_t memory = std::size_t{256} << 20;  ///< of each device
  bool batched_copies = true;                   ///< the driver knows cudaMemcpyBatchAsync
  bool batched_pageable = true;                 ///< and takes memory there that is not pinned
  std::size_t most_pinned = ~std::size_t{0};    ///< RLIMIT_MEMLOCK, as it were
  /// What work takes on the virtual clock of its stream, in microseconds; without any of it no time passes there.
  struct {
    double copy_call = 0, batched_call = 0, batched_piece = 0, copied_kib = 0;
  } costs{};
};
/// A new machine. Precondition: nothing of the last one is in use.
void reset(const options& o = {});

/// The n-th call from now on of this function fails so; calls are counted from 1.
void fail_call(const char* function, cudaError_t how, std::size_t nth = 1);
/// The n-th copy or kernel from now on that runs on any stream fails when it runs, and from then on everything does:
/// an error that sticks.
void fail_work(cudaError_t how, std::size_t nth = 1);

/// While it is set, nothing that is put on a stream runs, unless somebody waits for it.
void stall(bool stalled);
/// While it is set, some thread captures a stream in the global mode: pinning fails, but on threads in the relaxed
/// mode.
void capture(bool capturing);
/// Runs everything that can run.
void drain();

/// Puts host code on a stream, as a kernel would be. It may touch device memory, and takes so long on the virtual
/// clock.
void launch(cudaStream_t stream, std::function<void()> kernel, double microseconds = 0);
/// Lets the host touch device memory while it lives.
class device_access {
 public:
  device_access();
  device_access(const device_access&) = delete;
  device_access& operator=(const device_access&) = delete;
  ~device_access();
};

struct counts {
  std::size_t copies = 0, batched_calls = 0, batched_copies = 0, kernels = 0;
  std::size_t host_waits =
      0;  ///< that were asked for; copies down into memory that is not pinned wait unasked
  std::size_t live_events = 0, live_streams = 0, device_bytes = 0, pinned_bytes = 0;
};
counts now();

}  // namespace fake_cuda
