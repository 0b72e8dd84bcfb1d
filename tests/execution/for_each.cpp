#include "terrace/execution/for_each.hpp"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <exception>
#include <new>
#include <stdexcept>
#include <type_traits>
#include <vector>

#include "catch.hpp"
#include "terrace/execution/sync_wait.hpp"

using terrace::context;
using terrace::errc;
using terrace::error;
using terrace::for_each;
namespace ex = terrace::ex;

namespace {
std::atomic<std::size_t> allocations{0};
}

// Counts, so that a test can see whether an element costs an allocation.
void* operator new(std::size_t size) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  if (void* memory = std::malloc(size)) return memory;
  std::abort();
}
void* operator new(std::size_t size, const std::nothrow_t&) noexcept { return operator new(size); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

namespace {

// Completes one poll of the context later.
auto one_poll(context& ctx) { return ex::schedule(ctx.get_scheduler()); }

// set_value() for 0, set_error(code) above it, set_stopped() below.
struct scripted {
  using sender_concept = ex::sender_t;
  int code;

  template <class Self, class... E>
  static consteval auto get_completion_signatures() {
    return ex::completion_signatures<ex::set_value_t(), ex::set_error_t(int), ex::set_stopped_t()>{};
  }
  template <class R>
  struct operation {
    using operation_state_concept = ex::operation_state_t;
    int code;
    R target;
    void start() noexcept {
      if (code == 0)
        ex::set_value(std::move(target));
      else if (code > 0)
        ex::set_error(std::move(target), int{code});
      else
        ex::set_stopped(std::move(target));
    }
  };
  template <class R>
  operation<R> connect(R target) const noexcept {
    return {code, std::move(target)};
  }
};
auto scripted_later(context& ctx, int code, int* ended) {
  return one_poll(ctx) | ex::let_value([code, ended]() noexcept {
           ++*ended;
           return scripted{code};
         });
}

struct seen_receiver {
  using receiver_concept = ex::receiver_t;
  struct result {
    int values = 0, errors = 0, stops = 0, code = 0;
    int total() const { return values + errors + stops; }
  };
  result* seen;
  ex::inplace_stop_token token;
  void set_value() noexcept { ++seen->values; }
  void set_error(int code) noexcept {
    ++seen->errors;
    seen->code = code;
  }
  void set_error(std::exception_ptr) noexcept { FAIL("nothing here throws"); }
  void set_stopped() noexcept { ++seen->stops; }
  ex::prop<ex::get_stop_token_t, ex::inplace_stop_token> get_env() const noexcept {
    return ex::prop{ex::get_stop_token, token};
  }
};

}  // namespace

TEST_CASE("each element runs once, in order of its start, whatever may be in flight") {
  context ctx;
  const std::size_t n = GENERATE(0u, 1u, 2u, 5u, 100u);
  const std::size_t in_flight = GENERATE(0u, 1u, 3u, 100u, 1000u);
  std::vector<std::size_t> started;
  auto done = ctx.sync_wait(for_each(n, in_flight, [&](std::size_t i) noexcept {
    started.push_back(i);
    return one_poll(ctx);
  }));
  CHECK(done.has_value());
  CHECK(started.size() == n);
  CHECK(std::is_sorted(started.begin(), started.end()));
}

TEST_CASE("no more than in_flight elements run at once, and as many as that") {
  context ctx;
  std::size_t running = 0, most = 0;
  CHECK(ctx.sync_wait(for_each(50, 4,
                               [&](std::size_t) noexcept {
                                 most = std::max(most, ++running);
                                 return one_poll(ctx) | ex::then([&]() noexcept { --running; });
                               }))
            .has_value());
  CHECK(most == 4);
}

TEST_CASE("elements that complete at once do not recurse") {
  context ctx;
  std::size_t ran = 0;
  CHECK(ctx.sync_wait(for_each(1'000'000, 2,
                               [&](std::size_t) noexcept {
                                 ++ran;
                                 return ex::just();
                               }))
            .has_value());
  CHECK(ran == 1'000'000);
}

TEST_CASE("the first error stops the launch and comes after what was in flight") {
  context ctx;
  int started = 0, ended = 0;
  seen_receiver::result seen;
  auto operation = ex::connect(for_each(100, 4,
                                        [&](std::size_t i) noexcept {
                                          ++started;
                                          const int code = i == 5 || i == 6 ? static_cast<int>(i) : 0;
                                          return scripted_later(ctx, code, &ended);
                                        }),
                               seen_receiver{&seen, {}});
  ex::start(operation);
  while (seen.total() == 0) REQUIRE(ctx.poll() != 0);
  CHECK(seen.errors == 1);
  CHECK(seen.code == 5);
  CHECK(started == ended);
  CHECK(started < 12);
}

TEST_CASE("an element that is stopped stops the whole, and an error outranks it") {
  context ctx;
  const int other = GENERATE(0, 7);
  seen_receiver::result seen;
  int started = 0, ended = 0;
  auto operation =
      ex::connect(for_each(100, 2,
                           [&](std::size_t i) noexcept {
                             ++started;
                             return scripted_later(ctx, i == 2 ? -1 : i == 3 ? other : 0, &ended);
                           }),
                  seen_receiver{&seen, {}});
  ex::start(operation);
  while (seen.total() == 0) REQUIRE(ctx.poll() != 0);
  CHECK(seen.stops == (other == 0));
  CHECK(seen.errors == (other != 0));
  CHECK(started == 4);
  CHECK(ended == 4);
}

TEST_CASE("the receiver's stop token ends the launch and reaches the elements") {
  context ctx;
  ex::inplace_stop_source stop;
  seen_receiver::result seen;
  int started = 0, ended = 0;
  auto operation = ex::connect(for_each(100, 4,
                                        [&](std::size_t) noexcept {
                                          ++started;
                                          return one_poll(ctx) | ex::then([&]() noexcept {
                                                   if (++ended == 10) stop.request_stop();
                                                 });
                                        }),
                               seen_receiver{&seen, stop.get_token()});
  SECTION("while it runs") {
    ex::start(operation);
    while (seen.total() == 0) REQUIRE(ctx.poll() != 0);
    CHECK(ended == 10);
    CHECK(started == 13);  // the three others in flight saw the token
  }
  SECTION("before it starts") {
    stop.request_stop();
    ex::start(operation);
    CHECK(started == 0);
  }
  CHECK(seen.stops == 1);
}

TEST_CASE("a stop that comes when all has been done changes nothing") {
  ex::inplace_stop_source stop;
  seen_receiver::result seen;
  auto operation = ex::connect(for_each(3, 1,
                                        [&](std::size_t i) noexcept {
                                          if (i == 2) stop.request_stop();
                                          return ex::just();
                                        }),
                               seen_receiver{&seen, stop.get_token()});
  ex::start(operation);
  CHECK(seen.values == 1);
}

TEST_CASE("an exception of the callable is an error of the whole") {
  context ctx;
  int started = 0;
  auto faulty = for_each(10, 3, [&](std::size_t i) {
    if (i == 4) throw std::runtime_error("mine");
    ++started;
    return one_poll(ctx);
  });
  CHECK_THROWS_AS(ctx.sync_wait(std::move(faulty)), std::runtime_error);
  CHECK(started == 4);
  CHECK(ctx.idle());
}

TEST_CASE("an element costs no allocation") {
  context ctx;
  auto run = [&](std::size_t n) {
    auto work = for_each(n, 8, [&](std::size_t) noexcept { return one_poll(ctx); });
    const std::size_t before = allocations.load();
    REQUIRE(ctx.sync_wait(std::move(work)).has_value());
    return allocations.load() - before;
  };
  const std::size_t few = run(10);
  CHECK(run(10'000) == few);
}

TEST_CASE("elements may end on several threads") {
  context ctx{{.codec_threads = 2}};
  const std::size_t in_flight = GENERATE(1u, 2u, 7u);
  std::vector<std::atomic<int>> calls(2000);
  CHECK(ctx.sync_wait(for_each(calls.size(), in_flight,
                               [&](std::size_t i) noexcept {
                                 return ex::schedule(terrace::get_scheduler(ctx.pool())) |
                                        ex::then([&, i]() noexcept {
                                          calls[i].fetch_add(1, std::memory_order_relaxed);
                                        });
                               }))
            .has_value());
  for (auto& count : calls) REQUIRE(count == 1);
}

TEST_CASE("the errors are those of the elements, and an exception only where the callable may throw") {
  auto quiet = [](std::size_t) noexcept { return scripted{0}; };
  auto loud = [](std::size_t) { return scripted{0}; };
  static_assert(std::is_same_v<
                ex::completion_signatures_of_t<terrace::for_each_sender<decltype(quiet)>, ex::env<>>,
                ex::completion_signatures<ex::set_value_t(), ex::set_error_t(int), ex::set_stopped_t()>>);
  static_assert(
      std::is_same_v<ex::completion_signatures_of_t<terrace::for_each_sender<decltype(loud)>, ex::env<>>,
                     ex::completion_signatures<ex::set_value_t(), ex::set_error_t(int),
                                               ex::set_error_t(std::exception_ptr), ex::set_stopped_t()>>);
}
