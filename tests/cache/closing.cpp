// A cache that ends while somebody still waits for it: they are told, and hold nothing of it.
#include <optional>
#include <span>
#include <utility>

#include "small_cache.hpp"
#include "watched.hpp"

using namespace terrace;

namespace {

struct releasing : task {
  explicit releasing(medium_script& s) : task(&run), script(&s) {}
  static void run(task* t) noexcept {
    auto& self = *static_cast<releasing*>(t);
    self.script->hold = false;
    self.script->release_all();
  }
  medium_script* script;
};

struct flush_receiver {
  using receiver_concept = ex::receiver_t;
  std::optional<result<void>>* told;
  void set_value() noexcept { told->emplace(); }
  void set_error(error e) noexcept { told->emplace(propagate(e)); }
  void set_stopped() noexcept { told->emplace(fail(errc::stopped, "stopped")); }
  ex::env<> get_env() const noexcept { return {}; }
};

}  // namespace

TEST_CASE("the end of a cache answers acquires and flushes that wait") {
  cache_options few;
  few.transfers.loads_in_flight = 1;
  small_cache<> f(6, 64, few);
  REQUIRE(f.append(16));
  REQUIRE(f.ctx.sync_wait(f.cache().flush()));
  const auto ids = f.ids();
  for (std::size_t i = 0; i < 6; ++i) REQUIRE_FALSE(f.in_tier_0(i));
  for (std::size_t i = 0; i < ids.size(); ++i)  // so that they are there when the sequence is not
    REQUIRE(f.cache().name(ids[i], {.low = i, .high = 1}));
  f.script.hold = true;
  REQUIRE(f.append(1));                                     // its store waits, and so will a flush
  watched begun(f.cache(), std::span(ids).first(1));        // its read is on its way
  watched queued(f.cache(), std::span(ids).subspan(1, 2));  // has slots, and its reads have not begun
  watched in_line(f.cache(), std::span(ids).subspan(3, 3));
  for (watched* w : {&begun, &queued, &in_line}) ex::start(w->operation);
  f.ctx.poll();
  REQUIRE(f.script.in_flight == 2);
  std::optional<result<void>> flushed;
  auto flush = f.cache().flush().connect(flush_receiver{&flushed});
  ex::start(flush);
  CHECK_FALSE(flushed);
  f.tokens.reset();

  releasing later(f.script);
  f.ctx.post(later);
  { const auto ended = std::move(*f.opened); }
  for (const watched* w : {&begun, &queued, &in_line}) {
    REQUIRE(w->failure);
    CHECK_FALSE(w->held);
    CHECK(w->failure->code == errc::stopped);
    CHECK(w->failure->rest.size() == 0);
  }
  REQUIRE(flushed);
  REQUIRE_FALSE(*flushed);
  CHECK(flushed->error().code == errc::stopped);
}
