#pragma once
// What the benches of kernels share: memory on the device, times, and the bandwidths that bound them.
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "terrace/core/error.hpp"
#include "terrace/cuda/block_context.hpp"
#include "terrace/cuda/launch.hpp"

namespace bench {

/// Ends the program where CUDA reports an error: a bench has nothing to go on with.
inline void check(cudaError_t status) {
  if (status == cudaSuccess) return;
  std::fprintf(stderr, "%s\n", cudaGetErrorString(status));
  std::exit(1);
}
inline void check(const terrace::result<void>& done) {
  if (done) return;
  std::fprintf(stderr, "%s (%d)\n", done.error().text, done.error().system);
  std::exit(1);
}

/// Without a device: says so, and ends with the status that counts as skipped.
inline void need_device() {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) == cudaSuccess && devices > 0) return;
  std::puts("skipped: there is no CUDA device");
  std::exit(77);
}

/// Where a buffer lies.
enum class place { device, pinned };

/// Memory that is there until the program ends.
template <class T>
T* allocate(std::size_t count, place where = place::device) {
  void* p = nullptr;
  check(where == place::device ? cudaMalloc(&p, count * sizeof(T)) : cudaMallocHost(&p, count * sizeof(T)));
  return static_cast<T*>(p);
}

/// Seconds that `work`, which enqueues on the default stream, takes on the device: the mean of as many as fill
/// `at_least` seconds, two at least.
template <class Work>
double device_seconds(Work work, double at_least = 0.02) {
  static cudaEvent_t begin = nullptr, end = nullptr;
  if (begin == nullptr) {
    check(cudaEventCreate(&begin));
    check(cudaEventCreate(&end));
  }
  for (int times = 2;; times *= 4) {
    check(cudaEventRecord(begin, nullptr));
    for (int i = 0; i < times; ++i) work();
    check(cudaEventRecord(end, nullptr));
    check(cudaEventSynchronize(end));
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, begin, end));
    if (milliseconds >= at_least * 1e3 || times > 10000) return double{milliseconds} * 1e-3 / times;
  }
}

/// Reads a run of bytes and keeps nothing of it: what reading costs at least.
struct read_kernel {
  static constexpr std::uint32_t threads = 512;
  static constexpr std::uint32_t loads = 8;
  const terrace::cuda::vec16* from;
  std::size_t count;  // of 16 bytes, a multiple of threads * loads
  std::uint32_t* out;

  template <class Block>
  TERRACE_DEVICE void operator()(Block& block) const {
    std::uint32_t any = 0;
    for (std::size_t at = std::size_t{block.index().x} * threads * loads; at < count;
         at += std::size_t{block.count().x} * threads * loads) {
      terrace::cuda::vec16 v[loads];
      TERRACE_DEVICE_UNROLL
      for (std::uint32_t i = 0; i < loads; ++i) v[i] = block.load16(from + at + i * threads + block.thread());
      TERRACE_DEVICE_UNROLL
      for (std::uint32_t i = 0; i < loads; ++i)
        any |= v[i].word[0] | v[i].word[1] | v[i].word[2] | v[i].word[3];
    }
    if (any == 0x12345678u) *out = any;  // never, but the compiler does not know
  }
};

/// GB/s of plain reading; `bytes` a multiple of 64 KiB.
inline double read_bandwidth(const void* from, std::size_t bytes) {
  static auto* const out = allocate<std::uint32_t>(1);
  const read_kernel kernel{static_cast<const terrace::cuda::vec16*>(from), bytes / 16, out};
  const double seconds =
      device_seconds([&] { check(terrace::cuda::launch(kernel, {.x = 132 * 4}, nullptr)); });
  return static_cast<double>(bytes) / seconds / 1e9;
}

/// GB/s of cudaMemcpyAsync, counting each byte once.
inline double copy_bandwidth(void* to, const void* from, std::size_t bytes) {
  return static_cast<double>(bytes) /
         device_seconds([&] { check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, nullptr)); }) / 1e9;
}

}  // namespace bench
