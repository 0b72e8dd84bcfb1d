#pragma once
#include <optional>
#include <utility>
#include <vector>

#include "terrace/attention/stream.hpp"
#include "terrace/testing/simulation_model.hpp"

namespace terrace {
inline namespace TERRACE_EX {

/// A stream of a simulated engine over the open reservation of a sequence, and what it has to come to.
class simulated_stream {
 public:
  simulated_stream(kv_store& cache, simulated_sequence& s, std::uint32_t layer, std::vector<float> q,
                   std::vector<float> e, std::size_t window_bytes)
      : of(s),
        expected(std::move(e)),
        out(expected.size()),
        queries_(std::move(q)),
        operation_(stream(cache, s.tokens, *s.open, layer, queries_, out, {.window_bytes = window_bytes})
                       .connect(receiver{this})) {}
  simulated_stream(simulated_stream&&) = delete;
  void start() noexcept { operation_.start(); }
  void stop() noexcept {
    asked_to_stop = true;
    stop_.request_stop();
  }

  simulated_sequence& of;
  const std::vector<float> expected;
  std::vector<float> out;
  bool done = false, stopped = false, asked_to_stop = false;
  std::optional<block_error> failure;
  std::vector<block_id> excused;  ///< blocks that may be lost whatever has become of them since

 private:
  struct receiver {
    using receiver_concept = ex::receiver_t;
    simulated_stream* s;
    void set_value() noexcept { s->done = true; }
    void set_error(block_error e) noexcept {
      s->failure.emplace(std::move(e));
      s->done = true;
    }
    void set_stopped() noexcept { s->done = s->stopped = true; }
    auto get_env() const noexcept { return ex::prop{ex::get_stop_token, s->stop_.get_token()}; }
  };
  ex::inplace_stop_source stop_;
  std::vector<float> queries_;
  stream_sender<one_sequence, float, float>::operation<receiver> operation_;
};

}  // namespace TERRACE_EX
}  // namespace terrace
