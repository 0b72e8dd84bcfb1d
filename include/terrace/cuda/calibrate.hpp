#pragma once
#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "terrace/cuda/host_link.hpp"
#include "terrace/cuda/page_tables.hpp"
#include "terrace/cuda/transfer_choice.hpp"

namespace terrace::cuda {

struct calibration_options {
  copy_kernel kernel = nullptr;  ///< that may carry pieces; without one, kernels are not among the choices
  /// A cell of the table that is larger is not measured: it takes the method of the next smaller count. One piece is
  /// always measured.
  std::size_t most_bytes = std::size_t{4} << 20;
  unsigned rounds = 2;  ///< the best of this many counts, after a first one that does not
  /// Kernels take multiprocessors from the compute beside them: they must be this many times as fast as copies.
  double kernel_advantage = 1.1;
};

namespace detail {

/// What is copied: a piece of memory on each side, and the events around it.
class calibration_scratch {
 public:
  static result<std::unique_ptr<calibration_scratch>> make(host_link& link, std::size_t bytes) {
    const device_scope scope(link.device());
    std::unique_ptr<calibration_scratch> s(new calibration_scratch);
    auto device = device_tables::make(bytes);
    if (!device) return propagate(device.error());
    s->device_ = std::move(*device);
    s->host_.resize(bytes);
    s->pinned_ = link.pin(s->host_, true);
    for (cudaEvent_t* event : {&s->begin_, &s->end_})
      if (const cudaError_t e = cudaEventCreateWithFlags(event, cudaEventDefault); e != cudaSuccess)
        return fail(e, "a CUDA device gives no event");
    return s;
  }
  ~calibration_scratch() {
    for (const cudaEvent_t event : {begin_, end_})
      if (event != nullptr) static_cast<void>(cudaEventDestroy(event));
  }

  /// The pieces' order on the device is the reverse of that on the host: they are scattered on both sides.
  std::span<const copy_piece> pieces(std::size_t bytes, std::size_t count) {
    pieces_.clear();
    for (std::size_t i = 0; i < count; ++i)
      pieces_.push_back({device_.data() + (count - 1 - i) * bytes, host_.data() + i * bytes, bytes});
    return pieces_;
  }
  /// Milliseconds from the first call to the end of the last copy, the host's calls included where they are slower than
  /// the copies. Waits for the device.
  result<float> time(host_link& link, std::span<const copy_piece> what) {
    const cudaStream_t up = link.stream(copy_direction::up);
    float milliseconds = 0;
    cudaError_t e = cudaEventRecord(begin_, up);
    if (e == cudaSuccess) e = link.enqueue(what, copy_direction::up, up);
    if (e == cudaSuccess) e = cudaEventRecord(end_, up);
    const cudaError_t waited = cudaStreamSynchronize(up);  // also after an error: the scratch may go
    if (e == cudaSuccess) e = waited;
    if (e == cudaSuccess) e = cudaEventElapsedTime(&milliseconds, begin_, end_);
    if (e != cudaSuccess) return fail(e, "copies could not be timed");
    return milliseconds;
  }

 private:
  calibration_scratch() = default;
  device_tables device_;
  std::vector<std::byte> host_;
  std::unique_ptr<host_link::pinned_memory> pinned_;  // ends before what it pins
  std::vector<copy_piece> pieces_;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
};

}  // namespace detail

/// Measures which method carries pieces fastest from host to device, for each size and count of `transfer_choice`,
/// with scratch of its own on both sides: max(most_bytes, the largest size), 4 MiB by default. The result is for
/// `link.use`; the link's choice and kernel stay as they are, unless a kernel is given, which the link then keeps.
/// Copies from device to host are not measured: the table serves both ways.
///
/// Waits for the link's copies, so it is for start-up, before they matter: it moves at most (rounds + 1) * 3 methods
/// * 11 sizes * 4/3 * most_bytes. Errors: those of the runtime. Owner thread only.
inline result<transfer_choice> calibrate(host_link& link, const calibration_options& o = {}) {
  const std::size_t largest = transfer_choice::bytes_of(transfer_choice::sizes - 1);
  auto made = detail::calibration_scratch::make(link, std::max(o.most_bytes, largest));
  if (!made) return propagate(made.error());
  detail::calibration_scratch& scratch = **made;
  if (o.kernel != nullptr) link.use(o.kernel);
  const transfer_choice before = link.choice();
  transfer_choice found;
  std::optional<error> failure;
  // Milliseconds by one method; the first run warms caches and tables up.
  const auto best_of = [&](transfer_method method, std::span<const copy_piece> pieces) {
    link.use(transfer_choice::always(method));
    float best = std::numeric_limits<float>::max();
    for (unsigned round = 0; round <= o.rounds && !failure; ++round) {
      const auto took = scratch.time(link, pieces);
      if (!took)
        failure = took.error();
      else if (round != 0)
        best = std::min(best, *took);
    }
    return static_cast<double>(best);
  };
  for (std::size_t size = 0; size < transfer_choice::sizes && !failure; ++size) {
    transfer_method fastest = transfer_method::copies;
    for (std::size_t count = 0; count < transfer_choice::counts && !failure; ++count) {
      const std::size_t bytes = transfer_choice::bytes_of(size), pieces = transfer_choice::count_of(count);
      if (count == 0 || bytes * pieces <= o.most_bytes) {
        const auto all = scratch.pieces(bytes, pieces);
        fastest = transfer_method::copies;
        double least = best_of(fastest, all);
        if (const double t = pieces > 1 ? best_of(transfer_method::batched, all) : least; t < least) {
          least = t;
          fastest = transfer_method::batched;
        }
        if (o.kernel != nullptr && best_of(transfer_method::kernel, all) * o.kernel_advantage < least)
          fastest = transfer_method::kernel;
      }
      found.set(size, count, fastest);
    }
  }
  link.use(before);
  if (failure) return propagate(*failure);
  return found;
}

/// As `calibrate`, but measured once for each device of a process, with the first caller's options. A failure is not
/// remembered. Any thread that owns its link.
inline result<transfer_choice> calibrated(host_link& link, const calibration_options& o = {}) {
  static std::mutex guard;
  static std::map<int, transfer_choice> known;
  const std::scoped_lock lock(guard);
  if (const auto found = known.find(link.device()); found != known.end()) {
    if (o.kernel != nullptr) link.use(o.kernel);
    return found->second;
  }
  auto measured = calibrate(link, o);
  if (measured) known.emplace(link.device(), *measured);
  return measured;
}

}  // namespace terrace::cuda
