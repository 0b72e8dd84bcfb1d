#include "terrace/execution/counting_scope.hpp"

#include <atomic>
#include <memory>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "catch.hpp"
#include "terrace/execution/sync_wait.hpp"

using terrace::context;
using terrace::counting_scope;
namespace ex = terrace::ex;

namespace {

// Destroys the scope that it has waited for.
struct destroy_receiver {
  using receiver_concept = ex::receiver_t;
  std::unique_ptr<counting_scope>* scope;
  void set_value() noexcept { scope->reset(); }
};

// Completes when it is asked to stop, and not before.
struct until_stopped {
  using sender_concept = ex::sender_t;
  int* running;

  template <class Self, class... E>
  static consteval auto get_completion_signatures() {
    return ex::completion_signatures<ex::set_stopped_t()>{};
  }
  template <class R>
  struct operation {
    using operation_state_concept = ex::operation_state_t;
    struct on_stop {
      operation* mine;
      void operator()() const noexcept {
        --*mine->running;
        ex::set_stopped(std::move(mine->target));  // destroys this callback with its operation
      }
    };
    using token_type = ex::stop_token_of_t<ex::env_of_t<R>>;
    int* running;
    R target;
    std::optional<ex::stop_callback_for_t<token_type, on_stop>> callback;
    operation(int* count, R to) noexcept : running(count), target(std::move(to)) {}
    void start() noexcept {
      const auto token = ex::get_stop_token(ex::get_env(target));
      if (token.stop_requested()) return ex::set_stopped(std::move(target));
      ++*running;
      callback.emplace(token, on_stop{this});
    }
  };
  template <class R>
  operation<R> connect(R target) const noexcept {
    return {running, std::move(target)};
  }
};

struct flag_receiver {
  using receiver_concept = ex::receiver_t;
  bool* done;
  void set_value() noexcept { *done = true; }
};

}  // namespace

TEST_CASE("an empty scope is joined at once") {
  context ctx;
  counting_scope scope;
  CHECK(ctx.sync_wait(scope.join()).has_value());
  CHECK(ctx.sync_wait(scope.join()).has_value());
}

TEST_CASE("join completes when the last work has ended, and not before") {
  context ctx;
  counting_scope scope;
  int ran = 0;
  for (int i = 0; i < 3; ++i)
    CHECK(scope.spawn(ex::schedule(ctx.get_scheduler()) | ex::then([&]() noexcept { ++ran; })));
  bool joined = false;
  auto join = ex::connect(scope.join(), flag_receiver{&joined});
  ex::start(join);
  CHECK_FALSE(joined);
  ctx.poll();
  CHECK(ran == 3);
  CHECK(joined);
}

TEST_CASE("work that completes inside spawn leaves nothing behind") {
  context ctx;
  counting_scope scope;
  auto watched = std::make_shared<int>(0);
  CHECK(scope.spawn(ex::just() | ex::then([watched]() noexcept { ++*watched; })));
  CHECK(*watched == 1);
  CHECK(watched.use_count() == 1);
  CHECK(ctx.sync_wait(scope.join()).has_value());
}

TEST_CASE("a closed scope refuses work and does not start it") {
  context ctx;
  counting_scope scope;
  bool started = false;
  SECTION("by close") { scope.close(); }
  SECTION("by join") { CHECK(ctx.sync_wait(scope.join()).has_value()); }
  CHECK_FALSE(scope.spawn(ex::just() | ex::then([&]() noexcept { started = true; })));
  CHECK_FALSE(started);
}

TEST_CASE("request_stop reaches what runs, and what is spawned after it") {
  context ctx;
  counting_scope scope;
  int running = 0;
  CHECK(scope.spawn(until_stopped{&running}));
  CHECK(scope.spawn(until_stopped{&running}));
  CHECK(running == 2);
  scope.request_stop();
  CHECK(running == 0);
  CHECK(scope.spawn(until_stopped{&running}));
  CHECK(running == 0);
  CHECK(ctx.sync_wait(scope.join()).has_value());
}

TEST_CASE("the last wait may end, and destroy the scope, inside request_stop") {
  auto scope = std::make_unique<counting_scope>();
  int running = 0;
  CHECK(scope->spawn(until_stopped{&running}));
  auto join = ex::connect(scope->join(), destroy_receiver{&scope});
  ex::start(join);
  REQUIRE(scope);
  scope->request_stop();
  CHECK_FALSE(scope);
}

TEST_CASE("several may join the same scope") {
  counting_scope scope;
  int running = 0;
  CHECK(scope.spawn(until_stopped{&running}));
  bool first = false, second = false;
  auto one = ex::connect(scope.join(), flag_receiver{&first});
  auto two = ex::connect(scope.join(), flag_receiver{&second});
  ex::start(one);
  ex::start(two);
  scope.request_stop();
  CHECK((first && second));
}

TEST_CASE("work of a scope may end on any thread") {
  for (int round = 0; round < 50; ++round) {
    context ctx{{.codec_threads = 2}};
    std::atomic<int> ran{0};
    counting_scope scope;
    for (int i = 0; i < 20; ++i)
      CHECK(scope.spawn(ex::schedule(terrace::get_scheduler(ctx.pool())) |
                        ex::then([&]() noexcept { ran.fetch_add(1, std::memory_order_relaxed); })));
    REQUIRE(ctx.sync_wait(scope.join()).has_value());
    REQUIRE(ran == 20);
  }
}
