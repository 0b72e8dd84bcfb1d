#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "../measure.hpp"
#include "../open_ladder.hpp"
#include "../run_result.hpp"
#include "../runner_error.hpp"
#include "device_stream.hpp"
#include "terrace/cuda/device.hpp"

namespace runner {

/// The device of one run: the engine's stream on it, and what is reported of it in the end. The run's cache ends
/// first.
class opened_device {
 public:
  /// Measures the link. Refuses head dimensions without a kernel, and with status 1 where no device works.
  static outcome<opened_device> open(std::uint32_t head_dim) {
    if (head_dim != 64 && head_dim != 128)
      return refuse("--device cuda attends heads of 64 and 128 elements, not of " + std::to_string(head_dim));
    const auto device = terrace::cuda::probe_device();
    if (!device) return failed(device.error(), "--device cuda");
    auto stream = device_stream::make();
    if (!stream) return failed(stream.error(), "--device cuda");
    auto link = (*stream)->link_bytes_per_s();
    if (!link) return failed(link.error(), "measuring the link failed");
    return opened_device(device->name, *link, std::move(*stream));
  }

  const device_stream& stream() const noexcept { return *stream_; }
  /// Samples how much device memory is taken.
  void sample() { memory_.sample(); }
  /// Completes the result of a run with the figures of `job`'s cache, a measured step if anything moves, and the
  /// device's own figures. Errors: those of job.measure().
  template <class Job>
  outcome<run_result> finish(run_result r, Job& job) {
    r.stats = job.cache().stats();
    r.health = job.cache().health();
    if (r.plan.codec != "resident") {
      auto measured = job.measure();
      if (!measured) return failed(measured.error(), "measuring a step failed");
      r.step = *measured;
    }
    sample();
    r.device = device_figures{name_, link_bytes_per_s_, memory_.peak()};
    r.process_bytes_peak = process_bytes_peak();
    return r;
  }

 private:
  opened_device(std::string name, double link_bytes_per_s, std::unique_ptr<device_stream> stream)
      : name_(std::move(name)), link_bytes_per_s_(link_bytes_per_s), stream_(std::move(stream)) {}

  std::string name_;
  double link_bytes_per_s_;
  std::unique_ptr<device_stream> stream_;
  device_memory_meter memory_;
};

}  // namespace runner
