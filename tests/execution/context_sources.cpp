// The sources of a context: how it polls them, sleeps in them and speaks for them with its descriptor.
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "catch.hpp"
#include "execution/posting.hpp"
#include "terrace/execution/context.hpp"
#include "terrace/execution/timer.hpp"

using terrace::context;
using namespace std::chrono_literals;

namespace {

// A device of the test's own: it completes what it is told to.
struct fake_device final : terrace::event_source {
  std::size_t poll() noexcept override {
    ++polls;
    if (fd >= 0) {
      std::uint64_t count = 0;
      while (::read(fd, &count, sizeof count) == sizeof count) ready += count;
    }
    const std::size_t ran = std::min(ready, operations);
    operations -= ran;
    ready = 0;
    if (ran != 0 && on_completion) on_completion();
    return ran;
  }
  std::size_t pending() const noexcept override { return operations; }
  int descriptor() const noexcept override { return fd; }
  // No assertion: Catch's are for one thread.
  void complete_from_anywhere() const noexcept {
    const std::uint64_t one = 1;
    if (::write(fd, &one, sizeof one) != sizeof one) std::abort();
  }
  ~fake_device() override {
    if (fd >= 0) ::close(fd);
  }

  int fd = -1;
  std::size_t operations = 0;
  std::size_t ready = 0;
  int polls = 0;
  std::function<void()> on_completion;
};

bool readable(int fd) {
  pollfd one{fd, POLLIN, 0};
  return ::poll(&one, 1, 0) == 1;
}

}  // namespace

TEST_CASE("the descriptor is readable exactly while there is something to run") {
  context ctx;
  const int fd = ctx.descriptor();
  REQUIRE(fd >= 0);
  CHECK(ctx.descriptor() == fd);
  CHECK_FALSE(readable(fd));
  work item([] {});
  for (int round = 0; round < 3; ++round) {
    ctx.post(item);
    CHECK(readable(fd));
    CHECK(ctx.poll() == 1);
    CHECK_FALSE(readable(fd));
    CHECK(ctx.poll() == 0);
    CHECK_FALSE(readable(fd));
  }

  SECTION("what a task posts makes it readable again") {
    work second([&] { ctx.post(item); });
    ctx.post(second);
    CHECK(ctx.poll() == 1);
    CHECK(readable(fd));
    CHECK(ctx.poll() == 1);
    CHECK_FALSE(readable(fd));
  }
  SECTION("it includes devices, whenever they are attached") {
    fake_device device;
    device.fd = ::eventfd(0, EFD_NONBLOCK);
    device.operations = 1;
    ctx.attach(device);
    CHECK_FALSE(readable(fd));
    device.complete_from_anywhere();
    CHECK(readable(fd));
    CHECK(ctx.poll() == 1);
    CHECK(readable(fd));  // once more: the completion may have queued work in a device polled before
    CHECK(ctx.poll() == 0);
    CHECK_FALSE(readable(fd));
    ctx.detach(device);
    device.complete_from_anywhere();
    CHECK_FALSE(readable(fd));
  }
  SECTION("wait() still works") {
    wait_for_post(ctx, item);
    CHECK_FALSE(ctx.wait(context::clock::now() + 1ms));
    CHECK_FALSE(readable(fd));
  }
}

TEST_CASE("the descriptor wakes an engine for what a completion queued in a source polled before") {
  context ctx;
  fake_device queueing, completing;  // polled in this order
  completing.fd = ::eventfd(0, EFD_NONBLOCK);
  completing.operations = 1;
  completing.on_completion = [&] { queueing.operations = queueing.ready = 1; };
  ctx.attach(queueing);
  ctx.attach(completing);
  const int fd = ctx.descriptor();
  CHECK(ctx.poll() == 0);
  completing.complete_from_anywhere();
  // An engine that polls only while the descriptor is readable.
  for (int rounds = 0; readable(fd) && rounds < 10; ++rounds) ctx.poll();
  CHECK(queueing.operations == 0);
  CHECK_FALSE(readable(fd));
  ctx.detach(queueing);
  ctx.detach(completing);
}

TEST_CASE("the descriptor falls silent however posts and sleeps meet") {
  context ctx;
  const int fd = ctx.descriptor();
  for (int round = 0; round < 2000; ++round) {
    int ran = 0;
    work one([&] { ++ran; });
    work two([&] { ++ran; });
    std::thread first([&] { ctx.post(one); }), second([&] { ctx.post(two); });
    while (ran < 2) ctx.wait(context::clock::now() + 100us);
    first.join();
    second.join();
    while (ctx.poll() != 0) {
    }
    REQUIRE_FALSE(readable(fd));
  }
}

TEST_CASE("a post before the first call of descriptor() shows") {
  context ctx;
  work item([] {});
  ctx.post(item);
  const int fd = ctx.descriptor();
  CHECK(readable(fd));
  CHECK(ctx.poll() == 1);
  CHECK_FALSE(readable(fd));
}

TEST_CASE("wait sleeps on the descriptor of a device and spins for one without") {
  context ctx;
  fake_device device;
  device.operations = 1;
  SECTION("with a descriptor") {
    device.fd = ::eventfd(0, EFD_NONBLOCK);
    ctx.attach(device);
    std::thread hardware([&] { device.complete_from_anywhere(); });
    CHECK(ctx.wait(forever));
    hardware.join();
    CHECK(device.polls <= 3);  // slept, did not spin
  }
  SECTION("without one") {
    ctx.attach(device);
    struct after_a_while : terrace::event_source {
      explicit after_a_while(fake_device& d) : device(d) {}
      std::size_t poll() noexcept override {
        if (++polls == 50) device.ready = 1;
        return 0;
      }
      std::size_t pending() const noexcept override { return 0; }
      int descriptor() const noexcept override { return -1; }
      fake_device& device;
      int polls = 0;
    } clockwork(device);
    ctx.attach(clockwork);
    CHECK(ctx.wait(forever));
    CHECK(clockwork.polls >= 50);
    ctx.detach(clockwork);
  }
  SECTION("and keeps the deadline while it spins") {
    ctx.attach(device);
    CHECK_FALSE(ctx.wait(context::clock::now() + 1ms));
    CHECK(device.polls > 1);
  }
  CHECK(ctx.idle() == (device.operations == 0));
  ctx.detach(device);
  CHECK(ctx.idle());
}

namespace {
// A device with a call of its own that waits, here for its descriptor.
struct sleeping_device final : terrace::event_source {
  sleeping_device() { fake.fd = ::eventfd(0, EFD_NONBLOCK); }
  std::size_t poll() noexcept override { return fake.poll(); }
  std::size_t pending() const noexcept override { return fake.pending(); }
  int descriptor() const noexcept override { return fake.fd; }
  bool sleeps() const noexcept override { return true; }
  bool sleep(context::clock::time_point until, int wake) noexcept override {
    last_until = until;
    ++asked;
    if (!able) return false;
    pollfd watched[] = {{fake.fd, POLLIN, 0}, {wake, POLLIN, 0}};
    const auto left = until - context::clock::now();
    ::poll(
        watched, 2,
        until == forever ? -1 : static_cast<int>(std::chrono::ceil<std::chrono::milliseconds>(left).count()));
    return true;
  }
  fake_device fake;
  context::clock::time_point last_until{};
  int asked = 0;
  bool able = true;
};
}  // namespace

TEST_CASE("wait sleeps in the device that alone has work pending, if that can sleep") {
  context ctx;
  sleeping_device device;
  device.fake.operations = 1;
  ctx.attach(device);
  SECTION("until it completes") {
    std::thread hardware([&] { device.fake.complete_from_anywhere(); });
    CHECK(ctx.wait(forever));
    hardware.join();
    CHECK(device.fake.polls <= 2 + device.asked);
    CHECK(ctx.idle());
  }
  SECTION("until something is posted") { check_each_post_wakes(ctx); }
  SECTION("until the deadline") {
    const auto deadline = context::clock::now() + 2ms;
    CHECK_FALSE(ctx.wait(deadline));
    CHECK(context::clock::now() >= deadline);
    CHECK(device.asked >= 1);
    CHECK(device.last_until == deadline);
  }
  SECTION("until another source is due") {
    bool called = false;
    terrace::timer soon(
        ctx, [](void* flag) noexcept { *static_cast<bool*>(flag) = true; }, &called);
    const auto due = context::clock::now() + 2ms;
    soon.call_by(due);
    CHECK(ctx.wait(forever));
    CHECK(called);
    CHECK(device.last_until == due);
  }
  SECTION("and on descriptors where it could not") {
    device.able = false;
    std::thread hardware([&] { device.fake.complete_from_anywhere(); });
    CHECK(ctx.wait(forever));
    hardware.join();
    CHECK(device.fake.polls <= 3);
  }
  SECTION("and on descriptors where others have work pending") {
    fake_device other;
    other.fd = ::eventfd(0, EFD_NONBLOCK);
    other.operations = 1;
    ctx.attach(other);
    std::thread hardware([&] { other.complete_from_anywhere(); });
    CHECK(ctx.wait(forever));
    hardware.join();
    CHECK(device.asked == 0);
    CHECK(other.operations == 0);
    ctx.detach(other);
  }
  SECTION("and never in one that has nothing to do") {
    device.fake.operations = 0;
    CHECK_FALSE(ctx.wait(context::clock::now() + 1ms));
    CHECK(device.asked == 0);
  }
  ctx.detach(device);
}

TEST_CASE("completions may attach and detach devices") {
  context ctx;
  fake_device first, second, third;
  for (auto* device : {&first, &second}) {
    device->operations = device->ready = 1;
    ctx.attach(*device);
  }
  first.on_completion = [&] {
    ctx.detach(first);
    ctx.detach(second);
    ctx.attach(third);
  };
  CHECK(ctx.poll() == 1);
  CHECK(second.polls == 0);
  CHECK(third.polls == 1);
  ctx.poll();
  CHECK(first.polls == 1);
  CHECK(second.polls == 0);
  CHECK(third.polls == 2);
  ctx.detach(third);
}

TEST_CASE("a context owns sources by kind and destroys them newest first") {
  static const int ring = 0, other = 0;
  std::vector<int> destroyed;
  struct tracked : terrace::event_source {
    tracked(context& on, std::vector<int>& to, int id) : ctx(on), log(to), number(id) { ctx.attach(*this); }
    ~tracked() override {
      ctx.detach(*this);
      log.push_back(number);
    }
    std::size_t poll() noexcept override { return 0; }
    std::size_t pending() const noexcept override { return 0; }
    int descriptor() const noexcept override { return -1; }
    context& ctx;
    std::vector<int>& log;
    int number;
  };
  {
    context ctx;
    CHECK(ctx.owned(&ring) == nullptr);
    auto& one = ctx.own(std::make_unique<tracked>(ctx, destroyed, 1), &ring);
    ctx.own(std::make_unique<tracked>(ctx, destroyed, 2), &other);
    CHECK(ctx.owned(&ring) == &one);
    CHECK(ctx.owned(&other) != &one);
  }
  CHECK(destroyed == std::vector{2, 1});
}
