// Written against terrace::ex alone, so that the built-in subset and stdexec can be held to the same
// behaviour.
#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "catch.hpp"
#include "terrace/execution/ex.hpp"

namespace ex = terrace::ex;

namespace {

struct failed {
  int code;
};

// Remembers how it was completed.
struct outcome {
  int values = 0, errors = 0, stops = 0;
  int code = 0;
  int total() const { return values + errors + stops; }
};
struct probe {
  using receiver_concept = ex::receiver_t;
  using env_type = ex::prop<ex::get_stop_token_t, ex::inplace_stop_token>;
  outcome* seen;
  ex::inplace_stop_token token{};

  template <class... V>
  void set_value(V&&... value) noexcept {
    ++seen->values;
    if constexpr (sizeof...(V) == 1 && (std::is_convertible_v<V, int> && ...)) ((seen->code = value), ...);
  }
  void set_error(failed error) noexcept {
    ++seen->errors;
    seen->code = error.code;
  }
  void set_error(std::exception_ptr) noexcept {
    ++seen->errors;
    seen->code = -1;
  }
  void set_stopped() noexcept { ++seen->stops; }
  env_type get_env() const noexcept { return env_type{ex::get_stop_token, token}; }
};

// An operation that a test completes by hand.
struct lever {
  void (*complete)(lever*, int) noexcept = nullptr;
  bool (*asked_to_stop)(const lever*) noexcept = nullptr;
  void* operation = nullptr;
  bool started = false;

  void set_value(int v) { complete(this, v); }
  void set_error(int code) { complete(this, -code); }
  void set_stopped() { complete(this, 0); }
  bool stop_requested() const { return asked_to_stop(this); }
};
// Completes with set_value(v) for v > 0, set_error for v < 0, set_stopped for 0.
struct by_hand {
  using sender_concept = ex::sender_t;
  lever* handle;

  template <class Self, class... E>
  static consteval auto get_completion_signatures() {
    return ex::completion_signatures<ex::set_value_t(int), ex::set_error_t(failed), ex::set_stopped_t()>{};
  }
  template <class R>
  struct operation {
    using operation_state_concept = ex::operation_state_t;
    lever* handle;
    R target;
    void start() noexcept {
      handle->started = true;
      handle->operation = this;
      handle->complete = [](lever* self, int v) noexcept {
        auto& mine = *static_cast<operation*>(self->operation);
        if (v > 0)
          ex::set_value(std::move(mine.target), int{v});
        else if (v < 0)
          ex::set_error(std::move(mine.target), failed{-v});
        else
          ex::set_stopped(std::move(mine.target));
      };
      handle->asked_to_stop = [](const lever* self) noexcept {
        return bool(ex::get_stop_token(ex::get_env(static_cast<operation*>(self->operation)->target))
                        .stop_requested());
      };
    }
  };
  template <class R>
  operation<R> connect(R target) const noexcept {
    return {handle, std::move(target)};
  }
};

// Could have completed with a value, but was stopped.
struct stopped_instead {
  using sender_concept = ex::sender_t;
  template <class Self, class... E>
  static consteval auto get_completion_signatures() {
    return ex::completion_signatures<ex::set_value_t(), ex::set_stopped_t()>{};
  }
  template <class R>
  struct operation {
    using operation_state_concept = ex::operation_state_t;
    R target;
    void start() noexcept { ex::set_stopped(std::move(target)); }
  };
  template <class R>
  operation<R> connect(R target) const noexcept {
    return {std::move(target)};
  }
};

struct first_query {
  int operator()(const auto& environment) const { return environment.query(*this); }
};
struct second_query {
  int operator()(const auto& environment) const { return environment.query(*this); }
};

template <class S, class... Signatures>
constexpr bool completes_with =
    std::is_same_v<ex::completion_signatures_of_t<S, ex::env<>>, ex::completion_signatures<Signatures...>>;

// A thread that runs a run_loop for as long as it lives.
struct loop_thread {
  ex::run_loop loop;
  std::thread thread{[this] { loop.run(); }};
  ~loop_thread() {
    loop.finish();
    thread.join();
  }
};

}  // namespace

TEST_CASE("just completes with its values, its error, or stopped") {
  auto [a, b] = ex::sync_wait(ex::just(7, std::string("x"))).value();
  CHECK(a == 7);
  CHECK(b == "x");
  CHECK(ex::sync_wait(ex::just()).has_value());
  CHECK_FALSE(ex::sync_wait(stopped_instead{}).has_value());
  outcome seen;
  auto operation = ex::connect(ex::just_error(failed{3}), probe{&seen});
  CHECK(seen.total() == 0);
  ex::start(operation);
  CHECK(seen.errors == 1);
  CHECK(seen.code == 3);
  static_assert(completes_with<decltype(ex::just(1, 2.0)), ex::set_value_t(int, double)>);
  static_assert(completes_with<decltype(ex::just_error(failed{})), ex::set_error_t(failed)>);
  static_assert(completes_with<decltype(ex::just_stopped()), ex::set_stopped_t()>);
}

TEST_CASE("a sender that is kept can be used more than once") {
  const auto twice = ex::just(20) | ex::then([](int v) noexcept { return v + 1; });
  CHECK(std::get<0>(*ex::sync_wait(twice)) == 21);
  CHECK(std::get<0>(*ex::sync_wait(twice)) == 21);
}

TEST_CASE("then maps values and leaves the other completions") {
  CHECK(std::get<0>(*ex::sync_wait(ex::just(2, 3) | ex::then([](int a, int b) { return a * b; }))) == 6);
  int called = 0;
  CHECK(ex::sync_wait(ex::just() | ex::then([&] { ++called; })).has_value());
  CHECK(called == 1);

  outcome seen;
  lever handle;
  auto operation =
      ex::connect(by_hand{&handle} | ex::then([&](int v) noexcept { return ++called, v * 2; }), probe{&seen});
  ex::start(operation);
  SECTION("value") {
    handle.set_value(4);
    CHECK(seen.values == 1);
    CHECK(seen.code == 8);
  }
  SECTION("error") {
    handle.set_error(9);
    CHECK(seen.errors == 1);
    CHECK(seen.code == 9);
    CHECK(called == 1);
  }
  SECTION("stopped") {
    handle.set_stopped();
    CHECK(seen.stops == 1);
    CHECK(called == 1);
  }
  CHECK(seen.total() == 1);
}

TEST_CASE("upon_error and upon_stopped make values of what they catch, and only of that") {
  CHECK(std::get<0>(*ex::sync_wait(ex::just_error(failed{5}) |
                                   ex::upon_error([](failed f) noexcept { return f.code; }))) == 5);
  CHECK(std::get<0>(*ex::sync_wait(ex::just_stopped() | ex::upon_stopped([]() noexcept { return 6; }))) == 6);
  auto rescued = [](lever& handle) {
    return by_hand{&handle} | ex::upon_error([](failed f) noexcept { return 100 + f.code; }) |
           ex::upon_stopped([]() noexcept { return 200; });
  };
  for (const int v : {3, -4, 0}) {
    lever handle;
    outcome seen;
    auto operation = ex::connect(rescued(handle), probe{&seen});
    ex::start(operation);
    handle.complete(&handle, v);
    CHECK(seen.values == 1);
    CHECK(seen.code == (v > 0 ? v : v < 0 ? 104 : 200));
  }
}

TEST_CASE("an exception of a callable becomes an error, and a noexcept one adds none") {
  auto throws = ex::just() | ex::then([]() -> int { throw std::runtime_error("mine"); });
  CHECK_THROWS_AS(ex::sync_wait(std::move(throws)), std::runtime_error);
  auto throws_late =
      ex::just(1) | ex::let_value([](int&) -> decltype(ex::just()) { throw std::runtime_error("mine"); });
  CHECK_THROWS_AS(ex::sync_wait(std::move(throws_late)), std::runtime_error);

  [[maybe_unused]] auto quiet = ex::just(1) | ex::then([](int) noexcept {});
  static_assert(completes_with<decltype(quiet), ex::set_value_t()>);
  [[maybe_unused]] auto loud = ex::just(1) | ex::then([](int) {});
  static_assert(completes_with<decltype(loud), ex::set_value_t(), ex::set_error_t(std::exception_ptr)>);
}

TEST_CASE("let_value keeps its values alive until the inner sender has completed") {
  lever handle;
  outcome seen;
  std::weak_ptr<int> watched;
  auto operation = ex::connect(
      ex::just(std::make_shared<int>(41)) | ex::let_value([&](std::shared_ptr<int>& kept) noexcept {
        watched = kept;
        return by_hand{&handle} | ex::then([&kept](int v) noexcept { return *kept + v; });
      }),
      probe{&seen});
  ex::start(operation);
  REQUIRE(handle.started);
  CHECK_FALSE(watched.expired());
  handle.set_value(1);
  CHECK(seen.code == 42);
}

TEST_CASE("let_value and let_error take one channel and pass the others") {
  CHECK(std::get<0>(*ex::sync_wait(ex::just_error(failed{2}) | ex::let_error([](failed& f) noexcept {
                                     return ex::just(f.code + 1);
                                   }))) == 3);
  for (const int v : {1, -2, 0}) {
    lever outer, inner;
    outcome seen;
    auto operation = ex::connect(
        by_hand{&outer} | ex::let_value([&](int&) noexcept { return by_hand{&inner}; }), probe{&seen});
    ex::start(operation);
    outer.complete(&outer, v);
    CHECK(inner.started == (v > 0));
    if (v > 0) inner.set_error(77);
    CHECK(seen.total() == 1);
    CHECK(seen.errors == (v != 0));
    CHECK(seen.stops == (v == 0));
    if (v > 0) CHECK(seen.code == 77);
  }
}

TEST_CASE("values may be move-only") {
  auto work = ex::just(std::make_unique<int>(5)) | ex::then([](std::unique_ptr<int> p) noexcept {
                ++*p;
                return p;
              }) |
              ex::let_value([](std::unique_ptr<int>& p) noexcept { return ex::just(std::move(p)); });
  CHECK(*std::get<0>(*ex::sync_wait(std::move(work))) == 6);
  auto both = ex::when_all(ex::just(std::make_unique<int>(1)), ex::just(std::make_unique<int>(2)));
  auto [one, two] = *ex::sync_wait(std::move(both));
  CHECK(*one + *two == 3);
}

TEST_CASE("closures compose before they meet a sender") {
  auto add_one = ex::then([](int v) noexcept { return v + 1; });
  auto twice = ex::then([](int v) noexcept { return v * 2; });
  CHECK(std::get<0>(*ex::sync_wait(ex::just(3) | (add_one | twice))) == 8);
  CHECK(std::get<0>(*ex::sync_wait(ex::just(3) | (twice | add_one | add_one))) == 8);
}

TEST_CASE("when_all concatenates the values in the order of its senders") {
  auto all = ex::when_all(ex::just(1, 'a'), ex::just(), ex::just(std::string("s")));
  auto [a, b, c] = *ex::sync_wait(std::move(all));
  CHECK(a == 1);
  CHECK(b == 'a');
  CHECK(c == "s");
}

TEST_CASE("when_all waits for every sender, and the first failure asks the others to stop") {
  lever first, second, third;
  outcome seen;
  ex::inplace_stop_source stop;
  auto operation = ex::connect(ex::when_all(by_hand{&first}, by_hand{&second}, by_hand{&third}),
                               probe{&seen, stop.get_token()});
  ex::start(operation);
  REQUIRE((first.started && second.started && third.started));
  second.set_value(2);
  CHECK_FALSE(first.stop_requested());

  SECTION("all values") {
    first.set_value(1);
    CHECK(seen.total() == 0);
    third.set_value(3);
    CHECK(seen.values == 1);
  }
  SECTION("an error outranks what comes after it") {
    third.set_error(33);
    CHECK(first.stop_requested());
    CHECK(seen.total() == 0);
    first.set_error(11);
    CHECK(seen.errors == 1);
    CHECK(seen.code == 33);
  }
  SECTION("an error outranks a stop") {
    third.set_stopped();
    CHECK(first.stop_requested());
    first.set_error(11);
    CHECK(seen.errors == 1);
    CHECK(seen.code == 11);
  }
  SECTION("stopped") {
    first.set_stopped();
    CHECK(third.stop_requested());
    third.set_value(1);
    CHECK(seen.stops == 1);
  }
  SECTION("a request from outside reaches the senders") {
    stop.request_stop();
    CHECK(first.stop_requested());
    CHECK(third.stop_requested());
    first.set_value(1);
    third.set_value(1);
    CHECK(seen.values == 1);  // they made it all the same
  }
  CHECK(seen.total() == 1);
}

// Completes within the request to stop.
struct until_stopped {
  using sender_concept = ex::sender_t;
  template <class Self, class... E>
  static consteval auto get_completion_signatures() {
    return ex::completion_signatures<ex::set_value_t(), ex::set_stopped_t()>{};
  }
  template <class R>
  struct operation {
    using operation_state_concept = ex::operation_state_t;
    struct end {
      operation* self;
      void operator()() const noexcept { ex::set_stopped(std::move(self->target)); }
    };
    explicit operation(R r) : target(std::move(r)) {}
    void start() noexcept { on_stop.emplace(ex::get_stop_token(ex::get_env(target)), end{this}); }
    R target;
    std::optional<ex::stop_callback_for_t<ex::stop_token_of_t<ex::env_of_t<R>>, end>> on_stop;
  };
  template <class R>
  operation<R> connect(R target) const {
    return operation<R>(std::move(target));
  }
};
// Owns the operation, and destroys it when it completes.
struct last_breath {
  using receiver_concept = ex::receiver_t;
  std::function<void()>* end;
  ex::inplace_stop_token token;
  void set_value() noexcept { (*end)(); }
  void set_stopped() noexcept { (*end)(); }
  auto get_env() const noexcept { return ex::prop{ex::get_stop_token, token}; }
};

TEST_CASE("when_all may be destroyed by its completion, even within the request to stop") {
  ex::inplace_stop_source stop;
  int ended = 0;
  std::function<void()> end;
  struct holder {
    ex::connect_result_t<decltype(ex::when_all(until_stopped{}, until_stopped{})), last_breath> operation;
    holder(std::function<void()>* e, ex::inplace_stop_token t)
        : operation(ex::connect(ex::when_all(until_stopped{}, until_stopped{}), last_breath{e, t})) {}
  };
  std::unique_ptr<holder> alive;
  end = [&] {
    ++ended;
    alive.reset();
  };
  alive = std::make_unique<holder>(&end, stop.get_token());
  ex::start(alive->operation);
  CHECK(ended == 0);
  stop.request_stop();
  CHECK(ended == 1);
}

TEST_CASE("when_all starts nothing once it was asked to stop") {
  lever handle;
  outcome seen;
  ex::inplace_stop_source stop;
  stop.request_stop();
  auto operation = ex::connect(ex::when_all(by_hand{&handle}), probe{&seen, stop.get_token()});
  ex::start(operation);
  CHECK_FALSE(handle.started);
  CHECK(seen.stops == 1);
}

TEST_CASE("starts_on and continues_on choose the thread") {
  loop_thread other;
  const auto here = std::this_thread::get_id();
  const auto there = other.thread.get_id();
  auto where = [] { return std::this_thread::get_id(); };
  CHECK(std::get<0>(*ex::sync_wait(ex::just() | ex::then(where))) == here);
  CHECK(std::get<0>(*ex::sync_wait(
            ex::starts_on(other.loop.get_scheduler(), ex::just() | ex::then(where)))) == there);
  CHECK(std::get<0>(*ex::sync_wait(ex::just() | ex::continues_on(other.loop.get_scheduler()) |
                                   ex::then(where))) == there);
  CHECK(std::get<0>(*ex::sync_wait(ex::schedule(other.loop.get_scheduler()) | ex::then(where))) == there);
}

TEST_CASE("continues_on carries values, errors and stopping across") {
  loop_thread other;
  const auto scheduler = other.loop.get_scheduler();
  auto [a, b] = *ex::sync_wait(ex::just(1, std::make_unique<int>(2)) | ex::continues_on(scheduler));
  CHECK(a + *b == 3);
  CHECK(std::get<0>(*ex::sync_wait(ex::just_error(failed{8}) | ex::continues_on(scheduler) |
                                   ex::upon_error([](auto f) noexcept {
                                     if constexpr (std::is_same_v<decltype(f), failed>)
                                       return f.code;
                                     else
                                       return -1;
                                   }))) == 8);
  CHECK_FALSE(ex::sync_wait(stopped_instead{} | ex::continues_on(scheduler)).has_value());
}

TEST_CASE("a run_loop runs its work in order and honours a stop") {
  ex::run_loop loop;
  std::vector<int> order;
  outcome first, second;
  ex::inplace_stop_source stop;
  auto note = [&](int i) {
    return ex::schedule(loop.get_scheduler()) | ex::then([&order, i]() noexcept { order.push_back(i); });
  };
  auto one = ex::connect(note(1), probe{&first});
  auto two = ex::connect(note(2), probe{&second});
  outcome refused;
  auto never = ex::connect(note(3), probe{&refused, stop.get_token()});
  ex::start(one);
  ex::start(never);
  ex::start(two);
  stop.request_stop();
  CHECK(order.empty());
  loop.finish();
  loop.run();
  CHECK(order == std::vector{1, 2});
  CHECK(first.values + second.values == 2);
  CHECK(refused.stops == 1);
}

TEST_CASE("environments answer with the first that knows") {
  const ex::env joined{ex::prop{first_query{}, 1}, ex::prop{second_query{}, 2}, ex::prop{first_query{}, 3}};
  CHECK(first_query{}(joined) == 1);
  CHECK(second_query{}(joined) == 2);
  static_assert(ex::unstoppable_token<ex::stop_token_of_t<ex::env<>>>);
  static_assert(std::is_same_v<ex::stop_token_of_t<probe::env_type>, ex::inplace_stop_token>);
}

TEST_CASE("what is not a sender, a receiver or a scheduler is not taken for one") {
  struct almost {
    void set_stopped() noexcept {}
  };
  static_assert(!ex::sender<int> && !ex::sender<almost>);
  static_assert(!ex::receiver<almost> && ex::receiver<probe>);
  static_assert(!ex::operation_state<almost>);
  static_assert(!ex::scheduler<almost>);
  static_assert(ex::sender<by_hand> && ex::sender<decltype(ex::just())>);
  static_assert(ex::sender_in<by_hand, ex::env<>>);
}
