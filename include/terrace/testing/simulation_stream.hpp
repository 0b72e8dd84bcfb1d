#pragma once
#include <optional>
#include <utility>
#include <vector>

#include "terrace/attention/stream.hpp"
#include "terrace/attention/stream_batch.hpp"
#include "terrace/execution/elide.hpp"
#include "terrace/testing/simulation_batch.hpp"
#include "terrace/testing/simulation_model.hpp"

namespace terrace {
inline namespace TERRACE_EX {

/// A stream of a simulated engine over the open reservations of a sequence, or of a batch, and its expected result.
class simulated_stream {
 public:
  simulated_stream(std::vector<float> q, std::vector<float> e)
      : expected(std::move(e)), out(expected.size()), queries_(std::move(q)) {}
  simulated_stream(simulated_stream&&) = delete;
  ~simulated_stream() { let_go(); }
  void start(kv_store& cache, simulated_sequence& s, std::uint32_t layer, const stream_options& o) {
    read(s);
    one_.emplace(elide{
        [&] { return stream(cache, s.tokens, *s.open, layer, queries_, out, o).connect(receiver{this}); }});
    one_->start();
  }
  void start(kv_store& cache, simulated_batch& b, std::uint32_t layer, const stream_options& o) {
    for (std::size_t i = 0; i < b.members.size(); ++i)
      if (b.reserves(i)) read(*b.members[i]);
    together_ = &b;
    b.streaming = true;
    all_.emplace(
        elide{[&] { return stream(cache, b.pages, layer, queries_, out, o).connect(receiver{this}); }});
    all_->start();
  }
  void stop() noexcept {
    asked_to_stop = true;
    stop_.request_stop();
  }

  const std::vector<float> expected;
  std::vector<float> out;
  bool done = false, stopped = false, asked_to_stop = false;
  std::optional<block_error> failure;
  std::vector<block_id> excused;  ///< blocks that may be lost whatever has happened to them since

 private:
  struct receiver {
    using receiver_concept = ex::receiver_t;
    simulated_stream* s;
    void set_value() noexcept { s->let_go(); }
    void set_error(block_error e) noexcept {
      s->failure.emplace(std::move(e));
      s->let_go();
    }
    void set_stopped() noexcept {
      s->stopped = true;
      s->let_go();
    }
    auto get_env() const noexcept { return ex::prop{ex::get_stop_token, s->stop_.get_token()}; }
  };
  template <class Who>
  using operation = typename stream_sender<Who, float, float>::template operation<receiver>;

  void read(simulated_sequence& s) {
    s.streaming = true;
    of_.push_back(&s);
  }
  // Called at once: what is done to a cache may end a stream before anybody looks at it.
  void let_go() noexcept {
    done = true;
    for (simulated_sequence* const s : std::exchange(of_, {})) s->streaming = false;
    if (auto* const b = std::exchange(together_, nullptr)) b->streaming = false;
  }

  ex::inplace_stop_source stop_;
  std::vector<float> queries_;
  std::vector<simulated_sequence*> of_;
  simulated_batch* together_ = nullptr;
  std::optional<operation<one_sequence>> one_;
  std::optional<operation<whole_batch>> all_;
};

}  // namespace TERRACE_EX
}  // namespace terrace
