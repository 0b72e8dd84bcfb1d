// When a tier is set aside and when it is tried again, on a clock of numbers.
#include "terrace/cache/tier_health.hpp"

#include "catch.hpp"

using namespace terrace;
using namespace std::chrono_literals;
using work = circuit_breaker::work;
using state = tier_health::state;

namespace {

constexpr error full{errc::io_error, "no space", 28};
constexpr error late{errc::deadline, "late"};

struct clocked {
  circuit_breaker breaker{{.tolerated = 2, .tolerated_reads = 4, .first_pause = 10ms, .longest_pause = 50ms}};
  tier_health::time_point now{1000ms};

  const tier_health& health() const { return breaker.health(); }
  void fail(work w, const error& why = full, int times = 1) {
    for (int i = 0; i < times; ++i) breaker.failed(w, why, now);
  }
  bool stores() const { return breaker.admits_store(now); }
  bool loads() const { return breaker.admits_load(now); }
  void probe(work w) {
    CHECK(breaker.begun(w, now));
    CHECK(health().now == state::probing);
    CHECK_FALSE(breaker.begun(w, now));
  }
  /// Fails the next probe, and says how long the pause after it is.
  std::chrono::nanoseconds pause_after_failed_probe(work w) {
    now = health().next_retry;
    probe(w);
    breaker.failed(w, full, now, true);
    REQUIRE(health().now == state::set_aside);
    return health().next_retry - now;
  }
};

}  // namespace

TEST_CASE("a few failures in a row are tolerated, and are no health either") {
  clocked c;
  CHECK(c.health().healthy);
  c.fail(work::write, full, 2);
  CHECK(c.health().now == state::working);
  CHECK_FALSE(c.health().healthy);
  CHECK(c.health().in_a_row == 2);
  CHECK(c.stores());
  c.breaker.succeeded(work::read);  // says nothing of writes
  CHECK(c.health().in_a_row == 2);
  c.breaker.succeeded(work::write);
  CHECK(c.health().healthy);
  c.fail(work::write, full, 2);
  CHECK(c.health().now == state::working);
  c.fail(work::write);
  CHECK(c.health().now == state::set_aside);
  CHECK_FALSE(c.stores());
  CHECK(c.loads());
  CHECK(c.health().failures == 5);
  CHECK(c.health().times_aside == 1);
  CHECK(c.health().last == full);
  CHECK(c.health().aside_since == c.now);
  CHECK(c.health().next_retry == c.now + 10ms);
}

TEST_CASE("one probe at a time; it heals, or the pause doubles up to its longest") {
  clocked c;
  c.fail(work::write, full, 3);
  const auto since = c.now;
  c.now = c.health().next_retry - 1ns;
  CHECK_FALSE(c.stores());
  c.now += 1ns;
  CHECK(c.stores());
  c.probe(work::write);
  CHECK_FALSE(c.stores());
  c.breaker.failed(work::write, full, c.now, true);
  CHECK(c.health().next_retry - c.now == 20ms);
  CHECK(c.pause_after_failed_probe(work::write) == 40ms);
  CHECK(c.pause_after_failed_probe(work::write) == 50ms);
  CHECK(c.pause_after_failed_probe(work::write) == 50ms);
  CHECK(c.health().aside_since == since);
  CHECK(c.health().times_aside == 1);

  c.now = c.health().next_retry;
  c.probe(work::write);
  c.breaker.succeeded(work::write, true);
  CHECK(c.health().healthy);
  CHECK(c.health().now == state::working);
  c.fail(work::write, full, 3);
  CHECK(c.health().next_retry - c.now == 10ms);  // it begins anew
  CHECK(c.health().times_aside == 2);
}

TEST_CASE("a probe that says nothing leaves the tier as it was, to be probed at once") {
  clocked c;
  c.fail(work::write, full, 3);
  c.now = c.health().next_retry;
  c.probe(work::write);
  c.breaker.withdrawn();
  CHECK(c.health().now == state::set_aside);
  CHECK(c.stores());
}

TEST_CASE("what was under way when a tier was set aside does not lengthen its pause, but may heal it") {
  clocked c;
  c.fail(work::write, full, 3);
  const auto retry = c.health().next_retry;
  c.now += 5ms;
  c.fail(work::write, full, 10);
  CHECK(c.health().next_retry == retry);
  c.breaker.succeeded(work::write);
  CHECK(c.health().now == state::working);
}

TEST_CASE("what fails while the probe is under way is not the probe") {
  clocked c;
  c.fail(work::write, full, 3);
  c.now = c.health().next_retry;
  c.probe(work::write);
  c.fail(work::write, full, 5);
  c.fail(work::read, late, 5);
  CHECK(c.health().now == state::probing);
  CHECK_FALSE(c.stores());
  c.breaker.succeeded(work::write, true);
  CHECK(c.health().now == state::working);
  CHECK(c.health().answers);
}

TEST_CASE("reads that fail are tried on; many in a row keep new blocks away") {
  clocked c;
  c.fail(work::read, full, 4);
  CHECK(c.stores());
  CHECK_FALSE(c.health().healthy);
  c.fail(work::read);
  CHECK_FALSE(c.stores());
  CHECK(c.loads());
  // A block that arrives heals it; that reads have not succeeded since is not forgotten.
  c.now = c.health().next_retry;
  c.probe(work::write);
  c.breaker.succeeded(work::write, true);
  CHECK(c.stores());
  c.fail(work::read, full, 5);
  CHECK(c.health().next_retry - c.now == 20ms);
  c.breaker.succeeded(work::read);
  CHECK(c.stores());
  c.fail(work::read, full, 5);
  CHECK(c.health().next_retry - c.now == 10ms);
}

TEST_CASE("where reads hang, loads are refused but for a probe") {
  clocked c;
  c.fail(work::read, late, 2);
  CHECK(c.loads());
  c.fail(work::read, late);
  CHECK_FALSE(c.loads());
  CHECK_FALSE(c.stores());
  CHECK_FALSE(c.health().answers);
  c.now = c.health().next_retry;
  CHECK(c.loads());
  c.probe(work::read);
  CHECK_FALSE(c.loads());
  CHECK_FALSE(c.stores());
  c.breaker.failed(work::read, late, c.now, true);
  CHECK(c.health().next_retry - c.now == 20ms);
  c.now = c.health().next_retry;
  c.probe(work::read);
  c.breaker.succeeded(work::read, true);
  CHECK(c.health().answers);
  CHECK(c.health().healthy);
}

TEST_CASE("one write that hangs is enough") {
  clocked c;
  c.fail(work::write, late);
  CHECK_FALSE(c.stores());
  CHECK(c.loads());
}

TEST_CASE("one bad sector does not keep a tier from answering") {
  clocked c;
  for (int i = 0; i < 10; ++i) {
    c.fail(work::read, late, 2);
    c.breaker.succeeded(work::read);
  }
  CHECK(c.loads());
  CHECK(c.stores());
}

TEST_CASE("reads that hang while writes have failed: each is healed by its own kind") {
  clocked c;
  c.fail(work::write, full, 3);
  c.fail(work::read, late, 3);
  CHECK_FALSE(c.loads());
  c.now = c.health().next_retry;
  c.probe(work::read);
  c.breaker.succeeded(work::read, true);
  CHECK(c.loads());
  CHECK(c.health().now == state::set_aside);
  CHECK(c.stores());  // the next probe
  c.probe(work::write);
  c.breaker.succeeded(work::write, true);
  CHECK(c.health().healthy);
}

TEST_CASE("a sync that failed is healed by a sync, and by nothing else") {
  clocked c;
  c.fail(work::sync);
  CHECK(c.breaker.sync_failed());
  CHECK_FALSE(c.stores());
  CHECK(c.loads());
  CHECK_FALSE(c.breaker.admits_sync(c.now));
  c.breaker.succeeded(work::write);  // one that was under way
  CHECK(c.breaker.sync_failed());
  c.now = c.health().next_retry;
  CHECK_FALSE(c.stores());
  CHECK(c.breaker.admits_sync(c.now));
  CHECK(c.pause_after_failed_probe(work::sync) == 20ms);
  c.now = c.health().next_retry;
  c.probe(work::sync);
  CHECK_FALSE(c.breaker.admits_sync(c.now));
  c.breaker.succeeded(work::sync, true);
  CHECK(c.health().healthy);
  CHECK(c.stores());

  // One that says that it is for good is believed.
  c.fail(work::sync);
  c.now = c.health().next_retry;
  c.probe(work::sync);
  c.breaker.failed(work::sync, error{errc::unavailable, "until it is opened anew"}, c.now, true);
  CHECK(c.health().next_retry == tier_health::time_point::max());
  CHECK(c.health().last.code == errc::unavailable);
  c.now += 1000h;
  CHECK_FALSE(c.breaker.admits_sync(c.now));
  CHECK_FALSE(c.stores());
  CHECK(c.loads());
  c.breaker.succeeded(work::sync);

  // A tier set aside for its writes is still synced: what it has may be made durable.
  c.fail(work::write, full, 3);
  CHECK(c.breaker.admits_sync(c.now));
  c.fail(work::sync);
  CHECK(c.breaker.sync_failed());
}
