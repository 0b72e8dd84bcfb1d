#pragma once
#include <cuda_runtime_api.h>

#include <optional>
#include <utility>

#include "terrace/cuda/error.hpp"
#include "terrace/cuda/host_link.hpp"
#include "terrace/execution/ex.hpp"

namespace terrace::cuda {
inline namespace TERRACE_EX {

/// Work of a device as a sender: set_value() once it has ended, set_error(error) with the runtime's number where it
/// failed, set_stopped() where a stop was requested before it was started. What a device has been given cannot be
/// taken back, so a later stop request changes nothing. Begin(work) hands `work` to a host_link. Completes on the
/// owner, from within its poll().
template <class Begin>
class device_sender {
 public:
  using sender_concept = ex::sender_t;
  device_sender(Begin begin, const char* failure) noexcept : begin_(begin), failure_(failure) {}

  template <class Self, class... E>
  static consteval auto get_completion_signatures() {
    return ex::completion_signatures<ex::set_value_t(), ex::set_error_t(error), ex::set_stopped_t()>{};
  }

  template <class R>
  class operation final : public device_work {
   public:
    using operation_state_concept = ex::operation_state_t;
    operation(const device_sender& s, R&& target) noexcept : sender_(s), target_(std::move(target)) {}
    void start() noexcept {
      if (ex::get_stop_token(ex::get_env(target_)).stop_requested())
        return ex::set_stopped(std::move(target_));
      sender_.begin_(*this);
    }

   private:
    void complete(cudaError_t how) noexcept override {
      if (how == cudaSuccess) return ex::set_value(std::move(target_));
      static_cast<void>(cudaGetLastError());
      ex::set_error(std::move(target_), error_of(how, sender_.failure_));
    }
    device_sender sender_;
    R target_;
  };
  template <class R>
  operation<R> connect(R target) const noexcept {
    return {*this, std::move(target)};
  }

 private:
  Begin begin_;
  const char* failure_;
};

struct begin_copy {
  host_link* link;
  copy_piece piece;
  copy_direction way;
  void operator()(device_work& work) const noexcept { link->copy(work, piece, way); }
};
using copy_sender = device_sender<begin_copy>;

struct begin_waiting {
  host_link* link;
  cudaStream_t stream;
  void operator()(device_work& work) const noexcept { link->when_done(work, stream); }
};
using done_sender = device_sender<begin_waiting>;

/// Copies host memory to the device, and back. Both sides must stay until it completes.
inline copy_sender copy_up(host_link& link, std::byte* device, const_bytes host) noexcept {
  return {{&link, {device, host.data(), host.size()}, copy_direction::up}, "a copy to a CUDA device failed"};
}
inline copy_sender copy_down(host_link& link, mutable_bytes host, const std::byte* device) noexcept {
  return {{&link, {host.data(), device, host.size()}, copy_direction::down},
          "a copy from a CUDA device failed"};
}

/// Completes when everything that `stream` had been given when the sender was started has ended:
///
///     ctx.sync_wait(cuda::done(*link, engine_stream));
inline done_sender done(host_link& link, cudaStream_t stream) noexcept {
  return {{&link, stream}, "work on a CUDA stream failed"};
}

}  // namespace TERRACE_EX
}  // namespace terrace::cuda
