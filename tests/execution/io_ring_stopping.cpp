// Operations that are stopped, and rings that end with operations in flight.
#include <poll.h>
#include <unistd.h>

#include <atomic>
#include <cstddef>
#include <memory>
#include <thread>
#include <vector>

#include "catch.hpp"
#include "execution/io_ring_fixture.hpp"
#include "terrace/execution/io_ring.hpp"
#include "terrace/execution/sync_wait.hpp"

using namespace ring_test;

TEMPLATE_TEST_CASE("a stop before the start keeps the device out of it", "", kernel_ring, thread_ring) {
  context ctx;
  auto ring = open_ring<TestType>(ctx);
  transfer read(ring->read(-1, {}, 0));
  read.stop.request_stop();
  read.start();
  CHECK(read.seen.stops == 1);
  CHECK(ring->pending() == 0);
}

TEST_CASE("a stop before the hand-over touches no buffer") {
  context ctx;
  auto ring = open_ring<kernel_ring>(ctx);
  if (no_io_uring(*ring)) return;
  temporary_file file;
  const auto out = random_bytes(100, 1);
  transfer write(ring->write(file.fd, out, 0));
  write.start();
  SECTION("from the owner") { write.stop.request_stop(); }
  SECTION("from another thread") {
    std::thread([&] { write.stop.request_stop(); }).join();
  }
  CHECK(write.seen.total() == 0);
  drive(ctx, write.seen);
  CHECK(write.seen.stops == 1);
  CHECK(::lseek(file.fd, 0, SEEK_END) == 0);
  CHECK(ctx.idle());
}

TEST_CASE("a stop in flight ends the operation, and later bytes do not reach its buffer") {
  context ctx;
  auto ring = open_ring<kernel_ring>(ctx);
  if (no_io_uring(*ring)) return;
  pipe_pair pipe;
  std::vector<std::byte> in(10);
  transfer read(ring->read(pipe.reader(), in, 0));
  read.start();
  CHECK(ctx.poll() == 0);  // handed over, and nothing to read
  SECTION("from the owner") {
    read.stop.request_stop();
    CHECK(read.seen.total() == 0);
    drive(ctx, read.seen);
  }
  SECTION("from another thread, which wakes the owner") {
    std::thread other([&] { read.stop.request_stop(); });
    drive(ctx, read.seen);
    other.join();
  }
  SECTION("after a part has arrived") {
    pipe.send("abcd", 4);
    CHECK(ctx.poll() == 0);
    read.stop.request_stop();
    drive(ctx, read.seen);
    CHECK(in[0] == std::byte{'a'});
  }
  SECTION("before the part that has arrived is seen") {
    pipe.send("abcd", 4);
    read.stop.request_stop();
    drive(ctx, read.seen);
  }
  CHECK(read.seen.stops == 1);
  CHECK(read.seen.total() == 1);
  read.state.reset();
  const auto before = in;
  pipe.send("0123456789", 10);
  ctx.poll();
  CHECK(in == before);
  CHECK(ctx.idle());
}

TEST_CASE("a transfer that is over stays a success, whenever the stop comes") {
  context ctx;
  auto ring = open_ring<kernel_ring>(ctx);
  if (no_io_uring(*ring)) return;
  pipe_pair pipe;
  std::vector<std::byte> in(4);
  transfer read(ring->read(pipe.reader(), in, 0));
  read.start();
  ctx.poll();
  pipe.send("abcd", 4);
  SECTION("after the delivery") {
    drive(ctx, read.seen);
    read.stop.request_stop();
  }
  SECTION("from another thread, and arrives after the completion") {
    std::thread([&] { read.stop.request_stop(); }).join();
    while (ring->poll() == 0 &&
           ring->pending() != 0) {  // past the context, so that the posted stop stays behind
      pollfd ended{ring->descriptor(), POLLIN, 0};
      if (::poll(&ended, 1, 20) == 0) break;
    }
    CHECK(read.seen.total() == 0);  // held: the stop is still in the context's queue
    CHECK(ring->pending() == 1);
    ctx.poll();
  }
  ctx.poll();
  CHECK(read.seen.values == 1);
  CHECK(read.seen.total() == 1);
  CHECK(ctx.idle());
}

TEST_CASE("an operation that waits for room can be stopped") {
  context ctx;
  auto ring = open_ring<kernel_ring>(ctx, 1);
  if (no_io_uring(*ring)) return;
  pipe_pair pipe;
  std::vector<std::byte> in(8);
  std::vector<std::unique_ptr<transfer>> reads;
  for (std::size_t i = 0; i < in.size(); ++i)
    reads.push_back(
        std::make_unique<transfer>(ring->read(pipe.reader(), mutable_bytes(in).subspan(i, 1), 0)));
  for (auto& read : reads) read->start();
  ctx.poll();
  reads.back()->stop.request_stop();
  drive(ctx, reads.back()->seen);
  CHECK(reads.back()->seen.stops == 1);
  pipe.send("abcdefg", 7);
  for (std::size_t i = 0; i < 7; ++i) {
    drive(ctx, reads[i]->seen);
    CHECK(reads[i]->seen.values == 1);
  }
}

TEMPLATE_TEST_CASE("stops race with transfers, and each operation completes once", "", kernel_ring,
                   thread_ring) {
  context ctx;
  auto ring = open_ring<TestType>(ctx, 8);
  temporary_file file;
  const auto out = random_bytes(64 << 10, 5);
  REQUIRE(ctx.sync_wait(ring->write(file.fd, out, 0)).has_value());
  int values = 0;
  for (int round = 0; round < 60; ++round) {
    std::vector<std::vector<std::byte>> in(24, std::vector<std::byte>(out.size()));
    std::vector<std::unique_ptr<transfer>> reads;
    for (auto& buffer : in) reads.push_back(std::make_unique<transfer>(ring->read(file.fd, buffer, 0)));
    std::atomic<bool> go{false};
    std::thread stopper([&] {
      go.wait(false);
      for (std::size_t i = static_cast<std::size_t>(round) % 3; i < reads.size(); i += 3)
        reads[i]->stop.request_stop();
    });
    for (auto& read : reads) read->start();
    go = true;
    go.notify_one();
    for (std::size_t i = 1; i < reads.size(); i += 3)
      if (round % 3 == 0) reads[i]->stop.request_stop();
    while (ring->pending() != 0) REQUIRE(ctx.wait(forever));
    for (std::size_t i = 0; i < reads.size(); ++i) {
      auto& seen = reads[i]->seen;
      REQUIRE(seen.total() == 1);
      REQUIRE(seen.errors == 0);
      REQUIRE((seen.values == 0 || in[i] == out));
      values += seen.values;
    }
    stopper.join();
  }
  CHECK(values >= 60 * 8);  // those that nobody stopped
  CHECK(ctx.idle());
}

TEMPLATE_TEST_CASE("destroying a ring ends what it has in flight", "", kernel_ring, thread_ring) {
  context ctx;
  temporary_file file;
  const auto out = random_bytes(256 << 10, 5);
  std::vector<std::unique_ptr<transfer>> writes;
  auto ring = open_ring<TestType>(ctx, 2);
  for (std::size_t i = 0; i < 32; ++i) {
    writes.push_back(std::make_unique<transfer>(ring->write(file.fd, out, i * out.size())));
    writes.back()->start();
  }
  const bool handed_over = GENERATE(false, true);
  if (handed_over) ctx.poll();
  ring.reset();
  for (auto& write : writes) {
    CHECK(write->seen.total() == 1);
    CHECK(write->seen.errors == 0);
  }
  CHECK(ctx.idle());
}

TEST_CASE("destroying a ring ends what would never end by itself, and what that starts") {
  context ctx;
  auto ring = open_ring<kernel_ring>(ctx);
  if (no_io_uring(*ring)) return;
  io_ring& alive = *ring;  // the pointer is empty while the ring ends
  pipe_pair pipe;
  std::vector<std::byte> in(2);
  outcome seen;
  auto chain = ex::connect(ring->read(pipe.reader(), in, 0) | ex::upon_stopped([]() noexcept {}) |
                               ex::let_value([&]() noexcept { return alive.read(pipe.reader(), in, 0); }),
                           probe{&seen, {}});
  transfer stopped_elsewhere(ring->read(pipe.reader(), in, 0));
  ex::start(chain);
  stopped_elsewhere.start();
  ctx.poll();
  std::thread([&] { stopped_elsewhere.stop.request_stop(); }).join();
  ring.reset();
  CHECK(seen.stops == 1);
  CHECK(stopped_elsewhere.seen.stops == 1);
}
