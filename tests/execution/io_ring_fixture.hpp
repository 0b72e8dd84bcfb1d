#pragma once
// What the tests of rings share: both back ends, files and pipes, and operations that a test stops when it likes.
#include <unistd.h>

#include <cstddef>
#include <cstdio>
#include <memory>
#include <optional>
#include <random>
#include <utility>
#include <vector>

#include "catch.hpp"
#include "execution/posting.hpp"
#include "terrace/execution/ex.hpp"
#include "terrace/execution/io_ring.hpp"

namespace ring_test {

using terrace::context;
using terrace::errc;
using terrace::error;
using terrace::io_ring;
using terrace::mutable_bytes;
namespace ex = terrace::ex;

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

inline bool no_io_uring(const io_ring& ring) {
  if (ring.uses_io_uring()) return false;
  WARN("skipped: io_uring is not available here");
  return true;
}

inline std::vector<std::byte> random_bytes(std::size_t size, std::size_t seed) {
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

inline void drive(context& ctx, const outcome& until) {
  while (until.total() == 0) REQUIRE(ctx.wait(forever));
}

}  // namespace ring_test
