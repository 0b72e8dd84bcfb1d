#include "terrace/execution/io_ring.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "catch.hpp"
#include "execution/io_ring_fixture.hpp"
#include "terrace/execution/for_each.hpp"
#include "terrace/execution/sender_traits.hpp"
#include "terrace/execution/sync_wait.hpp"

using namespace ring_test;

TEMPLATE_TEST_CASE("what is written is read back, at any offset and size", "", kernel_ring, thread_ring) {
  context ctx;
  auto ring = open_ring<TestType>(ctx);
  temporary_file file;
  for (const std::size_t size : {std::size_t{0}, std::size_t{1}, std::size_t{4096}, std::size_t{1} << 20}) {
    for (const std::uint64_t offset : {0u, 1u, 4095u, 100'000u}) {
      const auto out = random_bytes(size, size + offset);
      std::vector<std::byte> in(size + 2, std::byte{0xaa});
      REQUIRE(ctx.sync_wait(ring->write(file.fd, out, offset)).has_value());
      REQUIRE(ctx.sync_wait(ring->read(file.fd, mutable_bytes(in).subspan(1, size), offset)).has_value());
      CHECK(std::equal(out.begin(), out.end(), in.begin() + 1));
      CHECK(in.front() == std::byte{0xaa});
      CHECK(in.back() == std::byte{0xaa});
    }
  }
  CHECK(ctx.sync_wait(ring->fsync(file.fd)).has_value());
  CHECK(ring->pending() == 0);
}

TEMPLATE_TEST_CASE("failures arrive as errors with their errno", "", kernel_ring, thread_ring) {
  context ctx;
  auto ring = open_ring<TestType>(ctx);
  temporary_file file;
  std::vector<std::byte> bytes(1000);
  REQUIRE(ctx.sync_wait(ring->write(file.fd, bytes, 0)).has_value());

  SECTION("the file ends inside the range") {
    auto done = ctx.sync_wait(ring->read(file.fd, bytes, 1));
    REQUIRE_FALSE(done.has_value());
    CHECK(done.error().code == errc::corrupt);
    CHECK(done.error().system == 0);
  }
  SECTION("the file ends before the range") {
    auto done = ctx.sync_wait(ring->read(file.fd, bytes, 5000));
    REQUIRE_FALSE(done.has_value());
    CHECK(done.error().code == errc::corrupt);
  }
  SECTION("no such descriptor") {
    for (auto& sender : {ring->read(-1, bytes, 0), ring->write(-1, bytes, 0), ring->fsync(-1)}) {
      auto done = ctx.sync_wait(sender);
      REQUIRE_FALSE(done.has_value());
      CHECK(done.error().code == errc::io_error);
      CHECK(done.error().system == EBADF);
    }
  }
  SECTION("not open for writing") {
    const int fd = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
    auto done = ctx.sync_wait(ring->write(fd, bytes, 0));
    REQUIRE_FALSE(done.has_value());
    CHECK(done.error().system == EBADF);
    ::close(fd);
  }
  SECTION("an offset that no file has") {
    for (const std::uint64_t offset : {~std::uint64_t{0}, std::uint64_t{INT64_MAX}}) {
      auto done = ctx.sync_wait(ring->write(file.fd, bytes, offset));
      REQUIRE_FALSE(done.has_value());
      CHECK(done.error().system == EINVAL);
    }
  }
  CHECK(ring->pending() == 0);
}

TEMPLATE_TEST_CASE("short transfers are continued", "", kernel_ring, thread_ring) {
  context ctx;
  auto ring = open_ring<TestType>(ctx);
  const int fd = ::open("/proc/kallsyms", O_RDONLY | O_CLOEXEC);  // gives about a page a call
  std::vector<std::byte> expected(50'000), in(50'000);
  const ::ssize_t once = fd < 0 ? -1 : ::pread(fd, expected.data(), expected.size(), 0);
  if (once <= 0 || static_cast<std::size_t>(once) >= expected.size()) {
    WARN("skipped: this machine has no file that is read in pieces");
  } else {
    std::size_t have = 0;
    while (have < expected.size()) {
      const ::ssize_t more =
          ::pread(fd, expected.data() + have, expected.size() - have, static_cast<::off_t>(have));
      REQUIRE(more > 0);
      have += static_cast<std::size_t>(more);
    }
    REQUIRE(ctx.sync_wait(ring->read(fd, in, 0)).has_value());
    CHECK(in == expected);
  }
  if (fd >= 0) ::close(fd);
}

TEMPLATE_TEST_CASE("far more operations than entries are in flight at once", "", kernel_ring, thread_ring) {
  context ctx;
  auto ring = open_ring<TestType>(ctx, 4);
  temporary_file file;
  constexpr std::size_t blocks = 400, size = 4096;
  std::vector<std::vector<std::byte>> out, in(blocks, std::vector<std::byte>(size));
  for (std::size_t i = 0; i < blocks; ++i) out.push_back(random_bytes(size, i));
  auto at = [](std::size_t i) { return (i * 7919 % blocks) * size; };
  REQUIRE(ctx.sync_wait(terrace::for_each(
                            blocks, blocks,
                            [&](std::size_t i) noexcept { return ring->write(file.fd, out[i], at(i)); }))
              .has_value());
  std::size_t most = 0;
  REQUIRE(ctx.sync_wait(terrace::for_each(blocks, blocks,
                                          [&](std::size_t i) noexcept {
                                            most = std::max(most, ring->pending() + 1);
                                            return ring->read(file.fd, in[i], at(i));
                                          }))
              .has_value());
  CHECK(in == out);
  CHECK(most == blocks);
}

static_assert(terrace::completes_after_start<terrace::io_sender>);
static_assert(!terrace::completes_after_start<decltype(ex::just())>);

TEMPLATE_TEST_CASE("for_each goes on with reads as they end, and ends with the one that is stopped or fails",
                   "", kernel_ring, thread_ring) {
  context ctx;
  auto ring = open_ring<TestType>(ctx, 4);
  temporary_file file;
  const auto out = random_bytes(64, 9);
  REQUIRE(ctx.sync_wait(ring->write(file.fd, out, 0)).has_value());
  std::vector<std::byte> in(out.size());
  const std::size_t in_flight = GENERATE(1u, 3u, 64u);
  ex::inplace_stop_source stop;
  outcome seen;
  std::size_t begun = 0, stop_at = 1000, fail_at = 1000;
  auto all = terrace::for_each(out.size(), in_flight, [&](std::size_t i) noexcept {
    ++begun;
    if (i == stop_at) stop.request_stop();  // seen first by the read, inside its start
    return ring->read(i == fail_at ? -1 : file.fd, mutable_bytes(in).subspan(i, 1), i);
  });
  auto operation = ex::connect(std::move(all), probe{&seen, stop.get_token()});
  SECTION("all of them") {
    ex::start(operation);
    drive(ctx, seen);
    CHECK(seen.values == 1);
    CHECK(in == out);
  }
  SECTION("one is stopped inside its start") {
    stop_at = GENERATE(0u, 5u, 63u);
    ex::start(operation);
    drive(ctx, seen);
    CHECK(seen.stops == 1);
    CHECK(begun == stop_at + 1);
  }
  SECTION("one fails") {
    fail_at = GENERATE(0u, 5u, 63u);
    ex::start(operation);
    drive(ctx, seen);
    CHECK(seen.errors == 1);
    CHECK(seen.last.system == EBADF);
    CHECK(begun > fail_at);
  }
  CHECK(seen.total() == 1);
  CHECK(ctx.idle());
}

TEMPLATE_TEST_CASE("operations complete in poll and wait, never inside start", "", kernel_ring, thread_ring) {
  context ctx;
  auto ring = open_ring<TestType>(ctx);
  temporary_file file;
  const auto out = random_bytes(100, 1);
  transfer write(ring->write(file.fd, out, 0)), bad(ring->read(-1, {}, ~std::uint64_t{0}));
  write.start();
  bad.start();
  CHECK(write.seen.total() + bad.seen.total() == 0);
  CHECK(ring->pending() == 2);
  CHECK_FALSE(ctx.idle());
  drive(ctx, write.seen);
  drive(ctx, bad.seen);
  CHECK(write.seen.values == 1);
  CHECK(bad.seen.errors == 1);
  CHECK(ctx.idle());
}

TEMPLATE_TEST_CASE("completions may start further operations", "", kernel_ring, thread_ring) {
  context ctx;
  auto ring = open_ring<TestType>(ctx, 1);
  temporary_file file;
  const auto out = random_bytes(10'000, 3);
  std::vector<std::byte> in(out.size());
  auto both = ring->write(file.fd, out, 10) | ex::let_value([&]() noexcept { return ring->fsync(file.fd); }) |
              ex::let_value([&]() noexcept { return ring->read(file.fd, in, 10); });
  REQUIRE(ctx.sync_wait(std::move(both)).has_value());
  CHECK(in == out);
}

TEST_CASE("the shared ring belongs to its context and ends with it") {
  temporary_file file;
  const auto out = random_bytes(1000, 5);
  std::optional<transfer> write;
  {
    context ctx, other;
    io_ring& ring = io_ring::of(ctx);
    CHECK(&ring == &io_ring::of(ctx));
    CHECK(&ring != &io_ring::of(other));
    auto own = open_ring<thread_ring>(ctx);  // a second ring on the same context
    CHECK(ctx.sync_wait(own->write(file.fd, out, 0)).has_value());
    write.emplace(ring.write(file.fd, out, 0));
    write->start();
  }
  CHECK(write->seen.total() == 1);
  CHECK(write->seen.errors == 0);
}

TEST_CASE("a ring of no entries, or of far too many, is refused") {
  context ctx;
  for (const unsigned entries : {0u, 4097u}) {
    auto ring = io_ring::open(ctx, {.entries = entries});
    REQUIRE_FALSE(ring.has_value());
    CHECK(ring.error().code == errc::invalid_argument);
  }
  CHECK(open_ring<thread_ring>(ctx)->uses_io_uring() == false);
}
