#include "terrace/testing/virtual_clock.hpp"

#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>

#include "catch.hpp"
#include "terrace/execution/context.hpp"
#include "terrace/execution/event_source.hpp"

using namespace terrace;
using namespace std::chrono_literals;

namespace {

// Completes once, at its time.
struct timer final : event_source {
  timer(context& ctx, context::clock::time_point t) : owner(ctx), at(t) { owner.attach(*this); }
  ~timer() override { owner.detach(*this); }
  std::size_t poll() noexcept override {
    if (rung || owner.now() < at) return 0;
    rung = true;
    return 1;
  }
  std::size_t pending() const noexcept override { return rung ? 0 : 1; }
  int descriptor() const noexcept override { return -1; }
  context::clock::time_point due() const noexcept override {
    return rung ? context::clock::time_point::max() : at;
  }
  context& owner;
  context::clock::time_point at;
  bool rung = false;
};

// Whether f ends the program; what it prints stays in the child.
template <class F>
bool aborts(F f) {
  const ::pid_t child = ::fork();
  if (child == 0) {
    std::signal(SIGABRT, SIG_DFL);  // which Catch would report
    ::close(STDERR_FILENO);
    ::close(STDOUT_FILENO);
    f();
    ::_exit(0);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT;
}

}  // namespace

TEST_CASE("virtual time stands still until everybody sleeps, and then jumps to what is due") {
  virtual_clock clock;
  context ctx{{.codec_threads = 0, .time = &clock}};
  const auto begin = ctx.now();
  timer later(ctx, begin + 100h), sooner(ctx, begin + 1h);
  CHECK(ctx.poll() == 0);
  CHECK(ctx.now() == begin);
  CHECK(ctx.wait(context::clock::time_point::max()));
  CHECK(sooner.rung);
  CHECK_FALSE(later.rung);
  CHECK(ctx.now() == begin + 1h);
  CHECK_FALSE(ctx.wait(begin + 50h));  // nothing completes until then
  CHECK(ctx.now() == begin + 50h);
  clock.advance(50h);
  CHECK(ctx.poll() == 1);
  CHECK(later.rung);
}

TEST_CASE("what would never end is said, and ends the program") {
  virtual_clock clock(100);
  context ctx{{.codec_threads = 0, .time = &clock}};
  CHECK(aborts([&] { ctx.wait(context::clock::time_point::max()); }));
  const auto nap = [&] { ctx.wait(ctx.now() + 1s); };
  CHECK_FALSE(aborts([&] {
    for (int i = 0; i < 100; ++i) nap();
    clock.rouse();
    for (int i = 0; i < 100; ++i) nap();
  }));
  CHECK(aborts([&] {
    for (int i = 0; i < 101; ++i) nap();
  }));
}

TEST_CASE("a context without a time source has the machine's time") {
  context ctx{{.codec_threads = 0}};
  const auto before = context::clock::now();
  const auto between = ctx.now();
  CHECK(before <= between);
  CHECK(between <= context::clock::now());
}
