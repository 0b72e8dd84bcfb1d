// What wakes the owner of a ring: transfers, posts, deadlines, and the context's descriptor.
#include <poll.h>
#include <unistd.h>

#include <chrono>
#include <cstddef>
#include <cstdlib>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "catch.hpp"
#include "execution/io_ring_fixture.hpp"
#include "execution/posting.hpp"
#include "terrace/execution/io_ring.hpp"

using namespace ring_test;

TEST_CASE("what wakes an owner that sleeps in the ring") {
  context ctx;
  auto ring = open_ring<kernel_ring>(ctx, GENERATE(1u, 256u));
  if (no_io_uring(*ring)) return;
  if (!ring->sleeps()) WARN("this kernel lets nobody sleep in a ring: on its descriptor then");
  pipe_pair pipe;
  std::vector<std::byte> in(4);
  transfer read(ring->read(pipe.reader(), in, 0));
  read.start();
  SECTION("a post of another thread, each time") { check_each_post_wakes(ctx); }
  SECTION("the deadline") {
    for (int round = 0; round < 3; ++round) {
      const auto deadline = context::clock::now() + std::chrono::milliseconds(1);
      CHECK_FALSE(ctx.wait(deadline));
      CHECK(context::clock::now() >= deadline);
    }
    CHECK_FALSE(ctx.wait(context::clock::time_point::min()));
  }
  SECTION("a stop of another thread, after a post") {
    work item([] {});
    wait_for_post(ctx, item);
    std::thread other([&] { read.stop.request_stop(); });
    drive(ctx, read.seen);
    other.join();
    CHECK(read.seen.stops == 1);
    CHECK(ctx.idle());
    return;
  }
  CHECK(read.seen.total() == 0);
  std::thread sender([&] {
    if (::write(pipe.ends[1], "abcd", 4) != 4) std::abort();
  });
  drive(ctx, read.seen);
  sender.join();
  CHECK(read.seen.values == 1);
  CHECK(in[3] == std::byte{'d'});
  CHECK(ctx.idle());
}

TEST_CASE("the descriptor speaks after the owner has slept in the ring, and wait() goes on to work") {
  context ctx;
  auto ring = open_ring<kernel_ring>(ctx);
  if (no_io_uring(*ring)) return;
  pipe_pair pipe;
  std::vector<std::byte> in(1);
  work item([] {});
  auto post = [&] { std::thread([&] { ctx.post(item); }).join(); };
  std::optional<transfer> read(std::in_place, ring->read(pipe.reader(), in, 0));
  read->start();
  wait_for_post(ctx, item);
  pipe.send("a", 1);  // ends in silence, before anybody asks for the descriptor
  const int fd = ctx.descriptor();
  auto readable = [&](int milliseconds) {
    pollfd one{fd, POLLIN, 0};
    return ::poll(&one, 1, milliseconds) == 1;
  };
  auto calm_down = [&] {
    int wakes = 0;
    while (readable(0) && wakes < 1000) {
      ctx.poll();
      ++wakes;
    }
    CHECK(wakes < 100);
  };
  for (int round = 0; round < 20; ++round) {
    while (read->seen.total() == 0) {
      REQUIRE(readable(-1));
      ctx.poll();
    }
    CHECK(read->seen.values == 1);
    calm_down();
    read.emplace(ring->read(pipe.reader(), in, 0));
    read->start();
    ctx.poll();
    post();
    CHECK(readable(0));
    CHECK(ctx.poll() == 1);
    calm_down();
    wait_for_post(ctx, item);
    calm_down();
    pipe.send("b", 1);
  }
  drive(ctx, read->seen);
}

TEST_CASE("an owner with two rings hears of both, and of posts") {
  context ctx;
  auto first = open_ring<kernel_ring>(ctx), second = open_ring<kernel_ring>(ctx);
  if (no_io_uring(*first)) return;
  pipe_pair pipe_of_first, pipe_of_second;
  std::vector<std::byte> in(2);
  transfer a(first->read(pipe_of_first.reader(), mutable_bytes(in).first(1), 0));
  transfer b(second->read(pipe_of_second.reader(), mutable_bytes(in).last(1), 0));
  work item([] {});
  a.start();
  wait_for_post(ctx, item);  // in the first ring alone
  b.start();
  wait_for_post(ctx, item);
  pipe_of_second.send("b", 1);
  drive(ctx, b.seen);
  CHECK(b.seen.values == 1);
  CHECK(a.seen.total() == 0);
  wait_for_post(ctx, item);  // in the first ring alone again
  pipe_of_first.send("a", 1);
  drive(ctx, a.seen);
  CHECK(a.seen.values == 1);
  CHECK(ctx.idle());
}

TEMPLATE_TEST_CASE("an engine's own loop can sleep on the context's descriptor", "", kernel_ring,
                   thread_ring) {
  context ctx;
  auto ring = open_ring<TestType>(ctx);
  temporary_file file;
  const auto out = random_bytes(100'000, 5);
  const int fd = ctx.descriptor();
  auto sleep = [&](int milliseconds) {
    pollfd one{fd, POLLIN, 0};
    return ::poll(&one, 1, milliseconds) == 1;
  };
  for (int round = 0; round < 20; ++round) {
    transfer write(ring->write(file.fd, out, 0));
    write.start();
    ctx.poll();
    while (write.seen.total() == 0) {
      REQUIRE(sleep(-1));
      ctx.poll();
    }
    CHECK(write.seen.values == 1);
    transfer sync(ring->fsync(file.fd));
    sync.start();
    ctx.poll();
    while (sync.seen.total() == 0) {
      REQUIRE(sleep(-1));
      ctx.poll();
    }
  }
  int idle_wakes = 0;
  while (sleep(0) && idle_wakes < 1000) {
    ctx.poll();
    ++idle_wakes;
  }
  CHECK(idle_wakes < 100);
}
