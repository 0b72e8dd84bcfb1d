#include "terrace/execution/io_ring.hpp"

#include <fcntl.h>
#include <linux/capability.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <optional>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "catch.hpp"
#include "terrace/execution/for_each.hpp"
#include "terrace/execution/sender_traits.hpp"
#include "terrace/execution/sync_wait.hpp"

using terrace::const_bytes;
using terrace::context;
using terrace::errc;
using terrace::error;
using terrace::io_ring;
using terrace::mutable_bytes;
namespace ex = terrace::ex;

namespace {

constexpr auto forever = context::clock::time_point::max();

// The two back ends. Where the machine refuses io_uring, both run on threads.
struct kernel_ring {
  static constexpr bool force_fallback = false;
};
struct thread_ring {
  static constexpr bool force_fallback = true;
};
template <class Kind>
std::unique_ptr<io_ring> open_ring(context& ctx, unsigned entries = 256) {
  auto ring = io_ring::open(ctx, {.entries = entries, .force_fallback = Kind::force_fallback});
  REQUIRE(ring.has_value());
  return std::move(*ring);
}

struct temporary_file {
  temporary_file() : stream(std::tmpfile()), fd(stream != nullptr ? ::fileno(stream) : -1) {
    REQUIRE(fd >= 0);
  }
  temporary_file(const temporary_file&) = delete;
  ~temporary_file() { std::fclose(stream); }
  std::FILE* stream;
  int fd;
};

// A read from an empty pipe stays in flight for as long as the test wants. Only io_uring reads pipes.
struct pipe_pair {
  pipe_pair() { REQUIRE(::pipe(ends) == 0); }
  pipe_pair(const pipe_pair&) = delete;
  ~pipe_pair() {
    for (const int end : ends) ::close(end);
  }
  int reader() const { return ends[0]; }
  void send(const char* text, std::size_t size) const {
    REQUIRE(::write(ends[1], text, size) == ::ssize_t(size));
  }
  int ends[2] = {-1, -1};
};
bool no_io_uring(const io_ring& ring) {
  if (ring.uses_io_uring()) return false;
  WARN("skipped: io_uring is not available here");
  return true;
}

std::vector<std::byte> pattern(std::size_t size, std::size_t seed) {
  std::vector<std::byte> bytes(size);
  std::minstd_rand random(static_cast<unsigned>(seed + 1));
  for (auto& b : bytes) b = static_cast<std::byte>(random());
  return bytes;
}

struct outcome {
  int values = 0, errors = 0, stops = 0;
  error last;
  int total() const { return values + errors + stops; }
};
struct probe {
  using receiver_concept = ex::receiver_t;
  using env_type = ex::prop<ex::get_stop_token_t, ex::inplace_stop_token>;
  outcome* seen;
  ex::inplace_stop_token token;
  void set_value() noexcept { ++seen->values; }
  void set_error(error e) noexcept {
    ++seen->errors;
    seen->last = e;
  }
  void set_stopped() noexcept { ++seen->stops; }
  env_type get_env() const noexcept { return env_type{ex::get_stop_token, token}; }
};
using operation = ex::connect_result_t<terrace::io_sender, probe>;

// An operation with its own stop source, which a test can start, stop and destroy when it likes.
struct transfer {
  explicit transfer(const terrace::io_sender& sender)
      : state(std::in_place, terrace::elide{[&] {
                return sender.connect(probe{&seen, stop.get_token()});
              }}) {}
  void start() { ex::start(*state); }
  outcome seen;
  ex::inplace_stop_source stop;
  std::optional<operation> state;
};

void drive(context& ctx, const outcome& until) {
  while (until.total() == 0) REQUIRE(ctx.wait(forever));
}

}  // namespace

TEMPLATE_TEST_CASE("what is written is read back, at any offset and size", "", kernel_ring, thread_ring) {
  context ctx;
  auto ring = open_ring<TestType>(ctx);
  temporary_file file;
  for (const std::size_t size : {std::size_t{0}, std::size_t{1}, std::size_t{4096}, std::size_t{1} << 20}) {
    for (const std::uint64_t offset : {0u, 1u, 4095u, 100'000u}) {
      const auto out = pattern(size, size + offset);
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
    CHECK(done.error().code == errc::io_error);
    CHECK(done.error().system == 0);
  }
  SECTION("the file ends before the range") {
    CHECK_FALSE(ctx.sync_wait(ring->read(file.fd, bytes, 5000)).has_value());
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
  for (std::size_t i = 0; i < blocks; ++i) out.push_back(pattern(size, i));
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
  const auto out = pattern(64, 9);
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
  const auto out = pattern(100, 1);
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
  const auto out = pattern(10'000, 3);
  std::vector<std::byte> in(out.size());
  auto both = ring->write(file.fd, out, 10) | ex::let_value([&]() noexcept { return ring->fsync(file.fd); }) |
              ex::let_value([&]() noexcept { return ring->read(file.fd, in, 10); });
  REQUIRE(ctx.sync_wait(std::move(both)).has_value());
  CHECK(in == out);
}

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
  const auto out = pattern(100, 1);
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

namespace {
template <class F>
struct work : terrace::task {
  explicit work(F f) : task(&run), function(std::move(f)) {}
  static void run(task* self) noexcept { static_cast<work*>(self)->function(); }
  F function;
};
}  // namespace

TEST_CASE("what wakes an owner that sleeps in the ring") {
  context ctx;
  auto ring = open_ring<kernel_ring>(ctx, GENERATE(1u, 256u));
  if (no_io_uring(*ring)) return;
  if (!ring->sleeps()) WARN("this kernel lets nobody sleep in a ring: on its descriptor then");
  pipe_pair pipe;
  std::vector<std::byte> in(4);
  transfer read(ring->read(pipe.reader(), in, 0));
  read.start();
  SECTION("a post of another thread, each time") {
    for (int round = 0; round < 200; ++round) {
      bool ran = false;
      work item([&] { ran = true; });
      std::thread poster([&] { ctx.post(item); });
      CHECK(ctx.wait(forever));
      poster.join();
      REQUIRE(ran);
    }
  }
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
    std::thread poster([&] { ctx.post(item); });
    CHECK(ctx.wait(forever));
    poster.join();
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
  auto wait_for_post = [&] {
    std::thread poster([&] { ctx.post(item); });
    CHECK(ctx.wait(forever));
    poster.join();
  };
  std::optional<transfer> read(std::in_place, ring->read(pipe.reader(), in, 0));
  read->start();
  wait_for_post();
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
    wait_for_post();
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
  auto wait_for_post = [&] {
    std::thread poster([&] { ctx.post(item); });
    CHECK(ctx.wait(forever));
    poster.join();
  };
  a.start();
  wait_for_post();  // in the first ring alone
  b.start();
  wait_for_post();
  pipe_of_second.send("b", 1);
  drive(ctx, b.seen);
  CHECK(b.seen.values == 1);
  CHECK(a.seen.total() == 0);
  wait_for_post();  // in the first ring alone again
  pipe_of_first.send("a", 1);
  drive(ctx, a.seen);
  CHECK(a.seen.values == 1);
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
  const auto out = pattern(64 << 10, 5);
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
  const auto out = pattern(256 << 10, 5);
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

TEST_CASE("the shared ring belongs to its context and ends with it") {
  temporary_file file;
  const auto out = pattern(1000, 5);
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

namespace {
// Pages that a test can put others in the place of.
struct mapped_pages {
  explicit mapped_pages(std::size_t n) : size(n), data(map(nullptr, 0)) { REQUIRE(data != MAP_FAILED); }
  mapped_pages(const mapped_pages&) = delete;
  ~mapped_pages() { ::munmap(data, size); }
  void replace() { REQUIRE(map(data, MAP_FIXED) == data); }
  mutable_bytes all() const { return {static_cast<std::byte*>(data), size}; }
  mutable_bytes part(std::size_t from, std::size_t n) const { return all().subspan(from, n); }
  void* map(void* at, int flags) const {
    return ::mmap(at, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
  }
  std::size_t size;
  void* data;
};

bool goes_through(context& ctx, io_ring& ring, int fd, mutable_bytes buffer, std::size_t seed) {
  const auto bytes = pattern(buffer.size(), seed);
  std::copy(bytes.begin(), bytes.end(), buffer.begin());
  if (!ctx.sync_wait(ring.write(fd, buffer, 0))) return false;
  std::fill(buffer.begin(), buffer.end(), std::byte{0});
  if (!ctx.sync_wait(ring.read(fd, buffer, 0))) return false;
  return std::equal(bytes.begin(), bytes.end(), buffer.begin());
}
}  // namespace

TEMPLATE_TEST_CASE("buffers inside of registered memory, across its ends and elsewhere", "", kernel_ring,
                   thread_ring) {
  context ctx;
  auto ring = open_ring<TestType>(ctx);
  temporary_file file;
  const mapped_pages pages(1 << 20);
  const bool registered = ring->register_buffer(pages.part(256 << 10, 512 << 10));
  if (!ring->uses_io_uring()) CHECK_FALSE(registered);
  std::size_t seed = 0;
  for (const std::size_t from : {0u, 255u << 10, 256u << 10, 300'000u, (768u << 10) - 100, 768u << 10})
    for (const std::size_t size : {1u, 100u, 101u, 4096u, 200'000u})
      CHECK(goes_through(ctx, *ring, file.fd, pages.part(from, size), ++seed));
  CHECK(goes_through(ctx, *ring, file.fd, pages.part(256 << 10, 512 << 10), ++seed));
  CHECK(goes_through(ctx, *ring, file.fd, pages.all(), ++seed));
  auto done = ctx.sync_wait(ring->read(-1, pages.part(256 << 10, 10), 0));
  CHECK(done.error().system == EBADF);
}

TEST_CASE("memory that is no longer registered can be replaced by other pages") {
  context ctx;
  auto ring = open_ring<kernel_ring>(ctx);
  if (no_io_uring(*ring)) return;
  temporary_file file;
  mapped_pages pages(64 << 10);
  if (!ring->register_buffer(pages.all())) {
    WARN("skipped: this kernel registers no buffers");
    return;
  }
  CHECK(goes_through(ctx, *ring, file.fd, pages.all(), 1));
  ring->unregister_buffer(pages.part(0, 4096));  // not what was registered
  ring->unregister_buffer(pages.all());
  ring->unregister_buffer(pages.all());
  pages.replace();
  CHECK(goes_through(ctx, *ring, file.fd, pages.all(), 2));
  REQUIRE(ring->register_buffer(pages.all()));
  CHECK(goes_through(ctx, *ring, file.fd, pages.all(), 3));
}

TEST_CASE("what cannot be registered is transferred all the same") {
  context ctx;
  auto ring = open_ring<kernel_ring>(ctx);
  if (no_io_uring(*ring)) return;
  temporary_file file;
  const mapped_pages pages(64 << 12);
  CHECK_FALSE(ring->register_buffer({}));
  CHECK_FALSE(ring->register_buffer({pages.all().data(), (std::size_t{1} << 30) + 1}));
  unsigned registered = 0;
  for (std::size_t i = 0; i < 64; ++i) registered += ring->register_buffer(pages.part(i << 12, 4096)) ? 1 : 0;
  CHECK(registered < 64);  // the table has an end
  for (std::size_t i = 0; i < 64; ++i) CHECK(goes_through(ctx, *ring, file.fd, pages.part(i << 12, 4096), i));
}

TEST_CASE("a limit on locked memory keeps buffers from being registered, not from being used") {
  rlimit before{};
  ::getrlimit(RLIMIT_MEMLOCK, &before);
  rlimit little = before;
  little.rlim_cur = 64 << 10;
  REQUIRE(::setrlimit(RLIMIT_MEMLOCK, &little) == 0);
  bool registered = true, worked = false, has_ring = false;
  std::thread([&] {  // capabilities belong to a thread
    __user_cap_header_struct whose{_LINUX_CAPABILITY_VERSION_3, 0};
    __user_cap_data_struct none[2]{};
    ::syscall(SYS_capset, &whose, none);
    context ctx;
    auto ring = io_ring::open(ctx, {.entries = 8});
    std::FILE* const file = std::tmpfile();
    has_ring = ring && (*ring)->uses_io_uring() && file != nullptr;
    if (has_ring) {
      std::vector<std::byte> buffer(1 << 20);
      registered = (*ring)->register_buffer(buffer);
      worked = goes_through(ctx, **ring, ::fileno(file), buffer, 1);
    }
    if (file != nullptr) std::fclose(file);
  })
      .join();
  ::setrlimit(RLIMIT_MEMLOCK, &before);
  if (!has_ring) {
    WARN("skipped: there is no io_uring without privileges here");
    return;
  }
  CHECK_FALSE(registered);
  CHECK(worked);
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

TEMPLATE_TEST_CASE("an engine's own loop can sleep on the context's descriptor", "", kernel_ring,
                   thread_ring) {
  context ctx;
  auto ring = open_ring<TestType>(ctx);
  temporary_file file;
  const auto out = pattern(100'000, 5);
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
