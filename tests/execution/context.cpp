#include "terrace/execution/context.hpp"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "catch.hpp"
#include "terrace/execution/timer.hpp"

using terrace::context;
using namespace std::chrono_literals;

namespace {

constexpr auto forever = context::clock::time_point::max();

template <class F>
struct work : terrace::task {
  explicit work(F f) : task(&run), function(std::move(f)) {}
  static void run(task* self) noexcept { static_cast<work*>(self)->function(); }
  F function;
};

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

TEST_CASE("an empty context has nothing to run, and does not wait past its deadline") {
  context ctx;
  CHECK(ctx.idle());
  CHECK(ctx.poll() == 0);
  CHECK_FALSE(ctx.wait(context::clock::now()));
  const auto deadline = context::clock::now() + 2ms;
  CHECK_FALSE(ctx.wait(deadline));
  CHECK(context::clock::now() >= deadline);
}

TEST_CASE("posted tasks run in order on the owner, one poll later where they are posted by tasks") {
  context ctx;
  std::vector<int> order;
  work third([&] { order.push_back(3); });
  work first([&] {
    order.push_back(1);
    ctx.post(third);
  });
  work second([&] { order.push_back(2); });
  ctx.post(first);
  ctx.post(second);
  CHECK_FALSE(ctx.idle());
  CHECK(order.empty());
  CHECK(ctx.poll() == 2);
  CHECK(order == std::vector{1, 2});
  CHECK_FALSE(ctx.idle());
  CHECK(ctx.poll() == 1);
  CHECK(order == std::vector{1, 2, 3});
  CHECK(ctx.idle());
}

TEST_CASE("a post from another thread wakes a waiting owner") {
  context ctx;
  for (int round = 0; round < 200; ++round) {
    std::thread::id ran_on;
    work item([&] { ran_on = std::this_thread::get_id(); });
    std::thread poster([&] { ctx.post(item); });
    CHECK(ctx.wait(forever));
    poster.join();
    REQUIRE(ran_on == std::this_thread::get_id());
    REQUIRE(ctx.idle());
  }
}

TEST_CASE("no post is lost or run twice, and each thread's posts keep their order") {
  context ctx;
  constexpr std::size_t threads = 3;
  constexpr int each = 2000;
  struct entry : terrace::task {
    entry() : task(&run) {}
    static void run(task* self) noexcept {
      auto& mine = *static_cast<entry*>(self);
      *mine.in_order = *mine.in_order && *mine.last + 1 == mine.number;
      *mine.last = mine.number;
    }
    int number = 0;
    int* last = nullptr;
    bool* in_order = nullptr;
  };
  bool in_order = true;
  std::vector<int> last(threads, -1);
  std::vector<std::vector<entry>> items(threads);
  for (std::size_t t = 0; t < threads; ++t) {
    items[t] = std::vector<entry>(each);
    int number = 0;
    for (entry& item : items[t]) {
      item.number = number++;
      item.last = &last[t];
      item.in_order = &in_order;
    }
  }
  std::vector<std::thread> posters;
  for (auto& mine : items)
    posters.emplace_back([&] {
      for (auto& item : mine) ctx.post(item);
    });
  while (last != std::vector<int>(threads, each - 1)) REQUIRE(ctx.wait(forever));
  for (auto& poster : posters) poster.join();
  CHECK(in_order);
  CHECK(ctx.idle());
}

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
    CHECK_FALSE(readable(fd));
    ctx.detach(device);
    device.complete_from_anywhere();
    CHECK_FALSE(readable(fd));
  }
  SECTION("wait() still works") {
    std::thread poster([&] { ctx.post(item); });
    CHECK(ctx.wait(forever));
    poster.join();
    CHECK_FALSE(ctx.wait(context::clock::now() + 1ms));
    CHECK_FALSE(readable(fd));
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
  SECTION("until something is posted") {
    for (int round = 0; round < 200; ++round) {
      bool ran = false;
      work item([&] { ran = true; });
      std::thread poster([&] { ctx.post(item); });
      CHECK(ctx.wait(forever));
      poster.join();
      REQUIRE(ran);
    }
  }
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

TEST_CASE("a task that polls goes on with the tasks behind it") {
  context ctx;
  std::vector<int> order;
  work second([&] { order.push_back(2); });
  work first([&] {
    order.push_back(1);
    CHECK(ctx.poll() == 1);
    order.push_back(3);
  });
  ctx.post(first);
  ctx.post(second);
  CHECK(ctx.poll() == 1);
  CHECK(order == std::vector{1, 2, 3});
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

TEST_CASE("destroying a context runs what the pool and other threads have posted") {
  bool ran = false;
  work last([&] { ran = true; });
  {
    context ctx{{.codec_threads = 1}};
    work on_pool([&] { ctx.post(last); });
    ctx.pool().submit(on_pool);
    ctx.pool().finish();
    CHECK_FALSE(ran);
  }
  CHECK(ran);
}

TEST_CASE("parallel_for calls each index once, whatever the number of threads") {
  const unsigned threads = GENERATE(0u, 1u, 3u);
  context ctx{{.codec_threads = threads}};
  for (const std::size_t n : {0u, 1u, 2u, 3u, 7u, 1000u}) {
    std::vector<std::atomic<int>> calls(n);
    ctx.parallel_for(n, [&](std::size_t i) noexcept { calls[i].fetch_add(1, std::memory_order_relaxed); });
    for (auto& count : calls) REQUIRE(count == 1);
  }
}

TEST_CASE("parallel_for does not wait for a pool that is busy") {
  context ctx{{.codec_threads = 1}};
  std::atomic<bool> release{false};
  work blocker([&] { release.wait(false); });
  ctx.pool().submit(blocker);
  std::size_t sum = 0;  // only the owner can be there, and the sanitizer would say otherwise
  for (int round = 0; round < 10; ++round) ctx.parallel_for(100, [&](std::size_t i) noexcept { sum += i; });
  CHECK(sum == 10 * 4950);
  release = true;
  release.notify_one();
  ctx.parallel_for(0, [](std::size_t) noexcept {});
}

TEST_CASE("parallel_for runs on the pool as well, and inside itself") {
  context ctx{{.codec_threads = 1}};
  std::atomic<int> present{0};
  ctx.parallel_for(2, [&](std::size_t) noexcept {  // both must be inside at once to go on
    present.fetch_add(1);
    present.notify_all();
    for (int seen; (seen = present.load()) < 2;) present.wait(seen);
  });
  CHECK(present == 2);

  std::atomic<int> inner{0};
  ctx.parallel_for(4, [&](std::size_t) noexcept {
    if (ctx.on_owner_thread()) ctx.parallel_for(8, [&](std::size_t) noexcept { inner.fetch_add(1); });
  });
  CHECK(inner % 8 == 0);
  for (int round = 0; round < 500; ++round) {
    std::atomic<std::size_t> sum{0};
    ctx.parallel_for(16, [&](std::size_t i) noexcept { sum.fetch_add(i, std::memory_order_relaxed); });
    REQUIRE(sum == 120);
  }
}
