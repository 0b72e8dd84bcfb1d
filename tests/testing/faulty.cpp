#include "terrace/testing/faulty.hpp"

#include <array>
#include <chrono>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "catch.hpp"
#include "terrace/execution/sync_wait.hpp"
#include "terrace/testing/medium_conformance.hpp"
#include "terrace/testing/virtual_clock.hpp"

using namespace terrace;
using namespace std::chrono_literals;

namespace {

constexpr std::size_t size = 256;
using buffer = std::array<std::byte, size>;

buffer filled(int with) {
  buffer b;
  b.fill(static_cast<std::byte>(with));
  return b;
}
// Bytes that differ.
std::size_t differences(const buffer& a, const buffer& b) {
  std::size_t n = 0;
  for (std::size_t i = 0; i < size; ++i) n += a[i] != b[i] ? 1 : 0;
  return n;
}

// A medium over a device, with one extent whose bytes are all 1.
struct workbench {
  explicit workbench(bool keep = false)
      : medium(std::move(*faulty::open(ctx, {.capacity = 8 * size, .device = &device, .keep = keep}))),
        at(*medium->reserve(size)) {
    REQUIRE(write(1));
  }
  result<void> write(int with) {
    const buffer b = filled(with);
    return ctx.sync_wait(medium->write(at, b));
  }
  result<void> read(buffer& into) { return ctx.sync_wait(medium->read(at, into)); }

  virtual_clock clock;
  context ctx{{.codec_threads = 0, .time = &clock}};
  faulty_device device{8 * size};
  std::unique_ptr<faulty> medium;
  extent at;
};

// How a transfer that somebody may stop has ended.
struct watched {
  struct receiver {
    using receiver_concept = ex::receiver_t;
    watched* w;
    void set_value() noexcept { w->value = true; }
    void set_error(const error&) noexcept { w->failed = true; }
    void set_stopped() noexcept { w->stopped = true; }
    auto get_env() const noexcept { return ex::prop{ex::get_stop_token, w->stop.get_token()}; }
  };
  bool ended() const { return value || failed || stopped; }
  ex::inplace_stop_source stop;
  bool value = false, failed = false, stopped = false;
};

}  // namespace

TEST_CASE("a faulty medium without faults keeps the contract of a medium, whatever its calls take") {
  for (const auto longest : {0ms, 5ms}) {
    virtual_clock clock;
    context ctx{{.codec_threads = 0, .time = &clock}};
    faulty_device device(64_KiB);
    device.longest = longest;
    device.heeds_stop = longest == 0ms;
    auto m = faulty::open(ctx, {.capacity = 64_KiB, .device = &device});
    REQUIRE(m);
    const auto violated = medium_conformance(ctx, **m);
    INFO(violated.value_or(""));
    CHECK_FALSE(violated);
  }
}

TEST_CASE("each fault does what it says to a read, and to the one that the script names alone") {
  workbench w;
  buffer b;
  const auto nth = [&](fault what) {  // the second of two reads
    w.device.script(device_call::read, 1, what, 64);
    REQUIRE(w.read(b));
    REQUIRE(b == filled(1));
    return w.read(b);
  };
  const auto eio = nth(fault::io_error);
  REQUIRE_FALSE(eio);
  CHECK(eio.error().system == EIO);
  CHECK(differences(b, filled(1)) == size);
  const auto cut_short = nth(fault::short_transfer);
  REQUIRE_FALSE(cut_short);
  CHECK(differences(b, filled(1)) == size - size / 4);
  REQUIRE(nth(fault::bit_flip));
  CHECK(differences(b, filled(1)) == 1);
  REQUIRE(nth(fault::torn));
  CHECK(differences(b, filled(1)) == size - size / 4);
  const auto before = w.ctx.now();
  REQUIRE(nth(fault::stall));
  CHECK(b == filled(1));
  CHECK(w.ctx.now() - before == w.device.stall);
  CHECK(w.device.faults() == 5);
  CHECK(w.device.seen(device_call::read).failed == 2);
  CHECK(w.device.in_flight() == 0);
}

TEST_CASE("a write that fails leaves garbage or a part, and a flip on the way down stays") {
  workbench w;
  buffer b;
  w.device.script(device_call::write, 0, fault::no_space);
  const auto full = w.write(2);
  REQUIRE_FALSE(full);
  CHECK(full.error().system == ENOSPC);
  w.device.script(device_call::write, 0, fault::torn, 64);
  REQUIRE(w.write(2));
  REQUIRE(w.read(b));
  CHECK(differences(b, filled(2)) == size - size / 4);
  w.device.script(device_call::write, 0, fault::bit_flip);
  REQUIRE(w.write(3));
  for (int time = 0; time < 2; ++time) {
    REQUIRE(w.read(b));
    CHECK(differences(b, filled(3)) == 1);
  }
}

TEST_CASE("random faults come as often as they should, the same for the same seed") {
  const auto failures = [](std::uint64_t seed) {
    virtual_clock clock;
    context ctx{{.codec_threads = 0, .time = &clock}};
    faulty_device device(size, seed);
    device.rates = {.io_error = 0.25};
    auto m = faulty::open(ctx, {.capacity = size, .device = &device});
    const auto at = (*m)->reserve(size);
    std::string which;
    buffer b;
    for (int i = 0; i < 1000; ++i) which += ctx.sync_wait((*m)->read(*at, b)) ? '.' : 'x';
    return which;
  };
  const std::string first = failures(1);
  const auto count = std::count(first.begin(), first.end(), 'x');
  CHECK(count > 200);
  CHECK(count < 300);
  CHECK(failures(1) == first);
  CHECK(failures(2) != first);
}

TEST_CASE("calls that are held end one by one, in any order; a buffer in use holds garbage") {
  workbench w;
  w.device.hold = true;
  buffer a = filled(0), b = filled(0);
  watched first, second;
  auto op_a = ex::connect(w.medium->read(w.at, a), watched::receiver{&first});
  auto op_b = ex::connect(w.medium->read(w.at, b), watched::receiver{&second});
  ex::start(op_a);
  ex::start(op_b);
  CHECK(w.ctx.poll() == 0);
  CHECK(w.device.in_flight() == 2);
  CHECK(differences(a, filled(0)) == size);
  CHECK(differences(a, filled(1)) == size);
  CHECK(w.medium->let_go(1));
  CHECK(w.ctx.poll() == 1);
  CHECK(second.value);
  CHECK(b == filled(1));
  CHECK_FALSE(first.ended());
  CHECK_FALSE(w.medium->let_go(1));
  CHECK(w.medium->let_go());
  w.ctx.poll();
  CHECK(first.value);
}

TEST_CASE("a transfer that is asked to stop ends at once, or as if nobody had asked") {
  for (const bool heeds : {true, false}) {
    workbench w;
    w.device.heeds_stop = heeds;
    w.device.script(device_call::read, 0, fault::stall);
    buffer b;
    watched asked;
    auto operation = ex::connect(w.medium->read(w.at, b), watched::receiver{&asked});
    ex::start(operation);
    asked.stop.request_stop();
    w.ctx.poll();
    CHECK(asked.ended() == heeds);
    CHECK(w.device.in_flight() == (heeds ? 0 : 1));
    w.ctx.wait(w.ctx.now() + 2h);
    CHECK(asked.stopped == heeds);
    CHECK(asked.value == !heeds);
    CHECK(w.device.stalled() == 0);
  }
}

TEST_CASE("a transfer that is asked to stop when it is about to end ends as it would have") {
  workbench w;
  buffer b;
  watched asked;
  int told = 0;
  w.device.on_progress = [&](device_call) {
    if (++told == 2) asked.stop.request_stop();
  };
  auto operation = ex::connect(w.medium->read(w.at, b), watched::receiver{&asked});
  ex::start(operation);
  w.ctx.poll();
  CHECK(told == 2);
  CHECK(asked.value);
  CHECK(b == filled(1));
  CHECK(w.device.in_flight() == 0);
}

TEST_CASE("a store has after a power cut what was synced, and of the rest old, new or both") {
  int old = 0, fresh = 0, mixed = 0;
  for (std::uint64_t seed = 0; seed < 60; ++seed) {
    virtual_clock clock;
    faulty_device device(8 * size, seed);
    const extent_header header{.key = {1, 2}, .encoded = size, .raw = size};
    {
      context ctx{{.codec_threads = 0, .time = &clock}};
      auto m = std::move(*faulty::open(ctx, {.capacity = 8 * size, .device = &device, .keep = true}));
      const extent kept = *m->reserve(size), other = *m->reserve(size);
      buffer b = filled(7);
      REQUIRE(ctx.sync_wait(m->write(kept, b)));
      REQUIRE(m->label(kept, header));
      REQUIRE(ctx.sync_wait(m->sync()));
      b = filled(8);
      REQUIRE(ctx.sync_wait(m->write(kept, b)));  // after the sync
      REQUIRE(m->label(other, header));           // likewise
      device.cut_power();
      CHECK_FALSE(ctx.sync_wait(m->read(kept, b)));
    }
    context ctx{{.codec_threads = 0, .time = &clock}};
    auto m = std::move(*faulty::open(ctx, {.capacity = 8 * size, .device = &device, .keep = true}));
    std::vector<extent> found;
    m->scan([&](extent at, const extent_header& h) {
      CHECK(h.key == header.key);
      found.push_back(at);
      return true;
    });
    REQUIRE(found.size() == 1);
    CHECK(m->used() == size);
    buffer b;
    REQUIRE(ctx.sync_wait(m->read(found[0], b)));
    const bool is_old = b == filled(7), is_new = b == filled(8);
    old += is_old;
    fresh += is_new;
    mixed += !is_old && !is_new;
    CHECK(differences(b, filled(7)) + differences(b, filled(8)) == size);
    m->release(found[0]);
  }
  CHECK(old > 5);
  CHECK(fresh > 5);
  CHECK(mixed > 5);
}

TEST_CASE("a sync that fails makes nothing durable, and the next one does") {
  for (const bool again : {false, true}) {
    virtual_clock clock;
    faulty_device device(8 * size);
    {
      context ctx{{.codec_threads = 0, .time = &clock}};
      auto m = std::move(*faulty::open(ctx, {.capacity = 8 * size, .device = &device, .keep = true}));
      const extent at = *m->reserve(size);
      const buffer b = filled(7);
      REQUIRE(ctx.sync_wait(m->write(at, b)));
      REQUIRE(m->label(at, {.key = {1, 2}, .encoded = size, .raw = size}));
      device.script(device_call::sync, 0, fault::io_error);
      REQUIRE_FALSE(ctx.sync_wait(m->sync()));
      if (again) REQUIRE(ctx.sync_wait(m->sync()));
      device.cut_power();
    }
    context ctx{{.codec_threads = 0, .time = &clock}};
    auto m = std::move(*faulty::open(ctx, {.capacity = 8 * size, .device = &device, .keep = true}));
    int found = 0;
    m->scan([&](extent, const extent_header&) { return ++found, false; });
    CHECK(found == (again ? 1 : 0));
  }
}

TEST_CASE(
    "of two syncs under way, the one that ends well first covers both, and the other takes nothing back") {
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    virtual_clock clock;
    faulty_device device(8 * size, seed);
    {
      context ctx{{.codec_threads = 0, .time = &clock}};
      auto m = std::move(*faulty::open(ctx, {.capacity = 8 * size, .device = &device, .keep = true}));
      const extent at = *m->reserve(size);
      REQUIRE(ctx.sync_wait(m->write(at, filled(7))));
      REQUIRE(m->label(at, {.key = {1, 2}, .encoded = size, .raw = size}));
      device.hold = true;
      if (seed % 2 != 0) device.script(device_call::sync, 0, fault::io_error);
      watched first, second;
      auto one = ex::connect(m->sync(), watched::receiver{&first});
      ex::start(one);
      device.hold = false;
      REQUIRE(ctx.sync_wait(m->write(at, filled(8))));
      device.hold = true;
      auto two = ex::connect(m->sync(), watched::receiver{&second});
      ex::start(two);
      CHECK(m->let_go(1));
      ctx.poll();
      REQUIRE(second.value);
      if (seed % 4 < 2) {
        CHECK(m->let_go());
        ctx.poll();
        REQUIRE(first.ended());
      }
      device.cut_power();
      while (m->let_go()) ctx.poll();
    }
    context ctx{{.codec_threads = 0, .time = &clock}};
    device.hold = false;
    auto m = std::move(*faulty::open(ctx, {.capacity = 8 * size, .device = &device, .keep = true}));
    std::optional<extent> found;
    m->scan([&](extent at, const extent_header&) { return found = at, true; });
    REQUIRE(found);
    buffer b;
    REQUIRE(ctx.sync_wait(m->read(*found, b)));
    CHECK(b == filled(8));
    m->release(*found);
  }
}

TEST_CASE("a faulty medium is opened over a device that fits, holding what is asked for") {
  context ctx;
  CHECK_FALSE(faulty::open(ctx, {.capacity = 64}));
  faulty_device device(size);
  CHECK_FALSE(faulty::open(ctx, {.capacity = 2 * size, .device = &device}));
  CHECK(faulty::open(ctx, {.capacity = size, .device = &device, .keep = true, .contents = {.layout = 1}}));
  CHECK_FALSE(
      faulty::open(ctx, {.capacity = size, .device = &device, .keep = true, .contents = {.layout = 2}}));
}
