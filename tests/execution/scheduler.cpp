#include "terrace/execution/scheduler.hpp"

#include <thread>
#include <type_traits>
#include <vector>

#include "catch.hpp"
#include "terrace/execution/sync_wait.hpp"

using terrace::context;
using terrace::get_scheduler;
namespace ex = terrace::ex;

namespace {

constexpr auto forever = context::clock::time_point::max();

struct outcome {
  int values = 0, stops = 0;
  std::thread::id thread;
};
struct probe {
  using receiver_concept = ex::receiver_t;
  using env_type = ex::prop<ex::get_stop_token_t, ex::inplace_stop_token>;
  outcome* seen;
  ex::inplace_stop_token token;
  void set_value() noexcept {
    seen->thread = std::this_thread::get_id();
    ++seen->values;
  }
  void set_stopped() noexcept { ++seen->stops; }
  env_type get_env() const noexcept { return env_type{ex::get_stop_token, token}; }
};

}  // namespace

TEST_CASE("work that is scheduled on a context runs in its next poll, in order") {
  context ctx;
  std::vector<int> order;
  auto note = [&](int i) {
    return ex::schedule(ctx.get_scheduler()) | ex::then([&order, i]() noexcept { order.push_back(i); });
  };
  outcome first, second;
  auto one = ex::connect(note(1), probe{&first, {}});
  auto two = ex::connect(note(2), probe{&second, {}});
  ex::start(one);
  ex::start(two);
  CHECK(order.empty());
  CHECK(ctx.poll() == 2);
  CHECK(order == std::vector{1, 2});
  CHECK(first.values + second.values == 2);
}

TEST_CASE("a context's scheduler may be used on any thread, and completes on the owner") {
  context ctx;
  outcome seen;
  auto operation = ex::connect(ex::schedule(ctx.get_scheduler()), probe{&seen, {}});
  std::thread other([&] { ex::start(operation); });
  REQUIRE(ctx.wait(forever));
  other.join();
  CHECK(seen.thread == std::this_thread::get_id());
}

TEST_CASE("a stop that comes before its turn is honoured") {
  context ctx;
  outcome seen;
  ex::inplace_stop_source stop;
  auto operation = ex::connect(ex::schedule(ctx.get_scheduler()), probe{&seen, stop.get_token()});
  ex::start(operation);
  stop.request_stop();
  CHECK(seen.stops == 0);
  ctx.poll();
  CHECK(seen.stops == 1);
  CHECK(seen.values == 0);
}

TEST_CASE("a pool's scheduler completes on one of its threads") {
  const unsigned threads = GENERATE(0u, 1u);
  context ctx{{.codec_threads = threads}};
  const auto here = std::this_thread::get_id();
  auto where = []() noexcept { return std::this_thread::get_id(); };
  auto there = ctx.sync_wait(ex::schedule(get_scheduler(ctx.pool())) | ex::then(where));
  REQUIRE(there.has_value());
  CHECK((*there == here) == (threads == 0));
  auto back = ctx.sync_wait(ex::schedule(get_scheduler(ctx.pool())) | ex::continues_on(ctx.get_scheduler()) |
                            ex::then(where));
  REQUIRE(back.has_value());
  CHECK(*back == here);
}

TEST_CASE("schedulers are equal where their resource is, and senders say where they complete") {
  context one, two;
  CHECK(one.get_scheduler() == one.get_scheduler());
  CHECK_FALSE(one.get_scheduler() == two.get_scheduler());
  const auto sender = ex::schedule(one.get_scheduler());
  CHECK(sender.get_env().query(ex::get_completion_scheduler<ex::set_value_t>) == one.get_scheduler());
  static_assert(ex::scheduler<decltype(one.get_scheduler())>);
}
