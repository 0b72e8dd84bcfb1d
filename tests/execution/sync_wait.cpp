#include "terrace/execution/sync_wait.hpp"

#include <memory>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

#include "catch.hpp"

using terrace::context;
using terrace::errc;
using terrace::error;
using terrace::result;
namespace ex = terrace::ex;

namespace {

// An error of a subsystem, made from the general one as block_error is.
struct special_error {
  special_error(error e) noexcept : general(e) {}
  special_error(int n) noexcept : number(n) {}
  error general;
  int number = 0;
};

// Completes with set_value(int) above 0, with one of two errors at -1 and -2, stopped at 0.
struct choosing {
  using sender_concept = ex::sender_t;
  int choice;

  template <class Self, class... E>
  static consteval auto get_completion_signatures() {
    return ex::completion_signatures<ex::set_value_t(int), ex::set_error_t(error),
                                     ex::set_error_t(special_error), ex::set_stopped_t()>{};
  }
  template <class R>
  struct operation {
    using operation_state_concept = ex::operation_state_t;
    int choice;
    R target;
    void start() noexcept {
      if (choice > 0)
        ex::set_value(std::move(target), int{choice});
      else if (choice == -1)
        ex::set_error(std::move(target), error{errc::lost, "gone", 5});
      else if (choice == -2)
        ex::set_error(std::move(target), special_error(22));
      else
        ex::set_stopped(std::move(target));
    }
  };
  template <class R>
  operation<R> connect(R target) const noexcept {
    return {choice, std::move(target)};
  }
};

// Sends whether its receiver prefers the scheduler of `ctx`.
struct asks_for_scheduler {
  using sender_concept = ex::sender_t;
  context* ctx;

  template <class Self, class... E>
  static consteval auto get_completion_signatures() {
    return ex::completion_signatures<ex::set_value_t(bool)>{};
  }
  template <class R>
  struct operation {
    using operation_state_concept = ex::operation_state_t;
    context* ctx;
    R target;
    void start() noexcept {
      const bool same = ex::get_env(target).query(ex::get_scheduler) == ctx->get_scheduler();
      ex::set_value(std::move(target), bool{same});
    }
  };
  template <class R>
  operation<R> connect(R target) const noexcept {
    return {ctx, std::move(target)};
  }
};

}  // namespace

TEST_CASE("the result has the sender's values: none, one, or a tuple") {
  context ctx;
  auto none = ctx.sync_wait(ex::just());
  auto one = ctx.sync_wait(ex::just(std::make_unique<int>(3)));
  auto two = ctx.sync_wait(ex::just(1, std::string("x")));
  static_assert(std::is_same_v<decltype(none), result<void>>);
  static_assert(std::is_same_v<decltype(one), result<std::unique_ptr<int>>>);
  static_assert(std::is_same_v<decltype(two), result<std::tuple<int, std::string>>>);
  CHECK(none.has_value());
  CHECK(**one == 3);
  CHECK(*two == std::tuple(1, std::string("x")));
}

TEST_CASE("the error is the sender's own, or terrace::error where it has none") {
  context ctx;
  auto general = ctx.sync_wait(ex::just_error(error{errc::corrupt, "bad", 7}));
  static_assert(std::is_same_v<decltype(general), result<void>>);
  REQUIRE_FALSE(general.has_value());
  CHECK(general.error() == error{errc::corrupt, "", 7});

  auto stopped = ctx.sync_wait(ex::just_stopped());
  static_assert(std::is_same_v<decltype(stopped), result<void>>);
  CHECK(stopped.error().code == errc::stopped);
}

TEST_CASE("of several errors it is the one that the others convert to") {
  context ctx;
  auto wait = [&](int choice) { return ctx.sync_wait(choosing{choice}); };
  static_assert(std::is_same_v<decltype(wait(0)), terrace::basic_result<int, special_error>>);
  CHECK(*wait(4) == 4);
  CHECK(wait(-1).error().general == error{errc::lost, "", 5});
  CHECK(wait(-2).error().number == 22);
  CHECK(wait(0).error().general.code == errc::stopped);
}

TEST_CASE("an exception of the caller's callable comes out as it was, and is no error of the result") {
  context ctx;
  auto faulty = ex::just_error(error{errc::lost, "", 0}) |
                ex::upon_error([](error) -> int { throw std::runtime_error("mine"); });
  static_assert(std::is_same_v<decltype(ctx.sync_wait(std::move(faulty))), result<int>>);
  CHECK_THROWS_AS(ctx.sync_wait(std::move(faulty)), std::runtime_error);
}

TEST_CASE("a sender that completes on another thread wakes the waiting owner") {
  context ctx{{.codec_threads = 1}};
  for (int round = 0; round < 300; ++round) {
    auto done = ctx.sync_wait(ex::schedule(terrace::get_scheduler(ctx.pool())) |
                              ex::then([round]() noexcept { return round; }));
    REQUIRE(*done == round);
  }
  CHECK(ctx.idle());
}

TEST_CASE("the context is driven while it waits") {
  context ctx;
  int steps = 0;
  auto step = [&] { return ex::schedule(ctx.get_scheduler()) | ex::then([&]() noexcept { ++steps; }); };
  CHECK(ctx.sync_wait(step() | ex::let_value([&]() noexcept { return step(); }) |
                      ex::let_value([&]() noexcept { return step(); }))
            .has_value());
  CHECK(steps == 3);
}

TEST_CASE("a completion may wait for another sender") {
  context ctx;
  auto outer = ex::schedule(ctx.get_scheduler()) | ex::then([&]() noexcept {
                 auto inner =
                     ctx.sync_wait(ex::schedule(ctx.get_scheduler()) | ex::then([]() noexcept { return 5; }));
                 return *inner + 1;
               });
  CHECK(*ctx.sync_wait(std::move(outer)) == 6);
}

TEST_CASE("the sender finds the context's scheduler in its environment") {
  context ctx;
  CHECK(*ctx.sync_wait(asks_for_scheduler{&ctx}));
}
