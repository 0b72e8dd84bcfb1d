#pragma once
#include <optional>
#include <utility>

#include "terrace/cache/restoration.hpp"
#include "terrace/cache/room.hpp"
#include "terrace/kv_store.hpp"
#include "terrace/testing/simulated_content.hpp"

namespace terrace {
inline namespace TERRACE_EX {

/// A block that is being computed anew: in tier 0, to be completed or given up.
struct simulated_restoration {
  restoration room;
  simulated_content content;
};

/// Room for a block to be computed anew, asked for without blocking.
class simulated_rebuild {
 public:
  simulated_rebuild(kv_store& cache, block_id i, simulated_content c)
      : id(i),
        content(c),
        was_lost(is_lost(cache.control(), i)),
        control_(&cache.control()),
        operation_(cache.restore_async(i).connect(receiver{this})) {}
  simulated_rebuild(simulated_rebuild&&) = delete;

  void start() noexcept { operation_.start(); }
  void stop() noexcept {
    asked_to_stop = true;
    stop_.request_stop();
  }
  static bool is_lost(const planner& control, block_id id) {
    return control.id_of(id.index) == id && !control.copy(id.index, 0).present() &&
           control.record(id.index).now == block_record::phase::sealed;
  }

  const block_id id;
  const simulated_content content;
  const bool was_lost;  ///< when it was asked for
  std::optional<restoration> room;
  std::optional<error> failure;
  bool lost_still = false;  ///< when it was refused
  bool done = false, stopped = false, asked_to_stop = false;

 private:
  struct receiver {
    using receiver_concept = ex::receiver_t;
    simulated_rebuild* r;
    void set_value(restoration came) noexcept {
      r->room.emplace(std::move(came));
      r->done = true;
    }
    void set_error(error e) noexcept {
      r->failure = e;
      r->lost_still = is_lost(*r->control_, r->id);
      r->done = true;
    }
    void set_stopped() noexcept { r->done = r->stopped = true; }
    auto get_env() const noexcept { return ex::prop{ex::get_stop_token, r->stop_.get_token()}; }
  };
  planner* control_;
  ex::inplace_stop_source stop_;
  room_sender<restoration_room>::operation<receiver> operation_;
};

}  // namespace TERRACE_EX
}  // namespace terrace
