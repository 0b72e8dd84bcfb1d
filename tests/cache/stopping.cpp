// Whoever waits may change its mind at any point. Each case runs once to count the points where it could: whenever a
// device call begins or ends, and whenever everybody sleeps. Then it is stopped at each of them in turn, and after that
// everything must have been given back and every block must be right.
#include <algorithm>
#include <chrono>
#include <cstddef>
#include <functional>
#include <limits>
#include <optional>
#include <span>
#include <vector>

#include "catch.hpp"
#include "pattern.hpp"
#include "terrace/attention/stream.hpp"
#include "terrace/execution/sync_wait.hpp"
#include "terrace/medium/ram.hpp"
#include "terrace/policy/lru.hpp"
#include "terrace/testing/archetypes.hpp"
#include "terrace/testing/faulty.hpp"
#include "terrace/testing/simulation_model.hpp"
#include "terrace/testing/virtual_clock.hpp"
#include "terrace/tiered_cache.hpp"

using namespace terrace;

namespace {

constexpr std::size_t slot = pattern::block_bytes;
constexpr std::size_t never = std::numeric_limits<std::size_t>::max();

// A stop source that counts the points which it is told of, and asks at the k-th.
struct counting_stop_source {
  explicit counting_stop_source(std::size_t at) : k(at) {}
  void point() {
    if (points++ == k) source.request_stop();
  }
  ex::inplace_stop_source source;
  std::size_t k, points = 0;
};

// How an operation ended.
struct ending {
  struct receiver {
    using receiver_concept = ex::receiver_t;
    ending* e;
    void set_value() noexcept { e->value = true; }
    void set_value(lease l) noexcept {
      e->value = true;
      e->held.emplace(std::move(l));
    }
    void set_value(reservation r) noexcept {
      e->value = true;
      e->room.emplace(std::move(r));
    }
    void set_error(block_error) noexcept { e->failed = true; }
    void set_error(error) noexcept { e->failed = true; }
    void set_stopped() noexcept { e->stopped = true; }
    auto get_env() const noexcept { return ex::prop{ex::get_stop_token, e->token}; }
  };
  explicit ending(ex::inplace_stop_token t) : token(t) {}
  bool over() const { return value || failed || stopped; }
  ex::inplace_stop_token token;
  std::optional<lease> held;
  std::optional<reservation> room;
  bool value = false, failed = false, stopped = false;
};

// Two devices whose calls take different times each; blocks are staged where the codec is none of identity.
template <class Codec>
struct workbench {
  using type = tiered_cache<tier<ram>, tier<faulty, Codec>, tier<faulty, Codec>, lru>;
  static constexpr std::size_t blocks = 20;

  explicit workbench(counting_stop_source& s) : stop(s) {
    cache_options tuning;
    tuning.staging_buffers = 2;
    auto opened =
        type::open(ctx, pattern::layout(1), {.capacity = 10 * slot}, {.capacity = 12 * slot, .device = &near},
                   {.capacity = 24 * slot, .device = &far}, {}, tuning);
    REQUIRE(opened);
    cache.emplace(std::move(*opened));
    tokens.emplace(cache->make_sequence());
    for (std::size_t i = 0; i < blocks; ++i) REQUIRE(pattern::append(*tokens, 16, 1, 1));
    settle();
    for (faulty_device* d : {&near, &far}) {
      d->shortest = std::chrono::milliseconds(1);
      d->longest = std::chrono::milliseconds(9);
      d->on_progress = [this](device_call) { stop.point(); };
    }
  }
  ~workbench() { near.on_progress = far.on_progress = nullptr; }

  void settle() {
    while (near.in_flight() + far.in_flight() != 0 || !ctx.idle())
      ctx.wait(ctx.now() + std::chrono::hours(1));
  }
  template <class Over>
  void run_until(Over over) {
    while (!over()) {
      stop.point();
      if (!over()) ctx.wait(ctx.now() + std::chrono::hours(1));
    }
  }
  std::vector<block_id> ids() const { return pattern::sealed(*tokens, 0); }

  // Nobody holds anything: what the cache has must be right, and no more than that.
  void check(std::size_t pinned = 0) {
    near.on_progress = far.on_progress = nullptr;
    settle();
    const cache_stats s = cache->stats();
    CHECK(s.pins == pinned);
    CHECK(s.staging_bytes == 0);
    if (!tokens) {
      CHECK(s.blocks == 0);
      for (const tier_stats& t : s.tiers) CHECK(t.resident_bytes == 0);
      return;
    }
    const auto all = ids();
    CHECK(s.blocks == all.size() + pinned);
    for (std::size_t i = 0; i < all.size(); ++i) {
      const auto held = ctx.sync_wait(cache->acquire(std::span(all).subspan(i, 1)));
      REQUIRE(held);
      REQUIRE(pattern::holds(cache->layout().groups[0], (*held)[0].data, 0, i, 1, 16));
    }
  }

  counting_stop_source& stop;
  virtual_clock clock;
  context ctx{{.codec_threads = 0, .time = &clock}};
  faulty_device near{12 * slot}, far{24 * slot, 2};
  std::optional<type> cache;
  std::optional<sequence> tokens;
};

// scenario(stop) -> whether it was stopped. Returns how many points there are.
std::size_t at_every_point(const std::function<bool(counting_stop_source&)>& scenario) {
  counting_stop_source none(never);
  CHECK_FALSE(scenario(none));
  std::size_t stopped = 0;
  for (std::size_t k = 0; k <= none.points; ++k) {
    CAPTURE(k);
    counting_stop_source stop(k);
    stopped += scenario(stop) ? 1 : 0;
  }
  CHECK(stopped > 0);
  return none.points;
}

}  // namespace

TEMPLATE_TEST_CASE("an acquire may be stopped at every point", "", identity, codec_archetype) {
  const auto points = at_every_point([](counting_stop_source& stop) {
    workbench<TestType> w(stop);
    const auto ids = w.ids();
    ending end(stop.source.get_token());
    auto operation = w.cache->acquire(std::span(ids).first(6)).connect(ending::receiver{&end});
    operation.start();
    w.run_until([&] { return end.over(); });
    CHECK_FALSE(end.failed);
    CHECK(end.held.has_value() == end.value);
    end.held.reset();
    w.check();
    return end.stopped;
  });
  CHECK(points > 12);
}

TEMPLATE_TEST_CASE("an acquire of what is being prefetched may be stopped at every point", "", identity,
                   codec_archetype) {
  const auto points = at_every_point([](counting_stop_source& stop) {
    workbench<TestType> w(stop);
    const auto ids = w.ids();
    REQUIRE(w.cache->prefetch(std::span(ids).first(5)) > 0);
    ending end(stop.source.get_token());
    auto operation = w.cache->acquire(std::span(ids).subspan(2, 4)).connect(ending::receiver{&end});
    operation.start();
    w.run_until([&] { return end.over(); });
    CHECK_FALSE(end.failed);
    end.held.reset();
    w.check();
    return end.stopped;
  });
  CHECK(points > 8);
}

TEMPLATE_TEST_CASE("a request may end at every point of a flush", "", identity, codec_archetype) {
  const auto points = at_every_point([](counting_stop_source& stop) {
    workbench<TestType> w(stop);
    for (int i = 0; i < 4; ++i) REQUIRE(pattern::append(*w.tokens, 16, 1, 1));
    simulated_flush flush(*w.cache, {});
    flush.start();
    bool ended = false;
    w.run_until([&] {
      if (stop.source.stop_requested() && !std::exchange(ended, true)) w.tokens.reset();
      return flush.outcome.has_value();
    });
    CHECK(*flush.outcome);
    w.check();
    return ended;
  });
  CHECK(points > 4);
}

TEMPLATE_TEST_CASE("a flush may be stopped at every point, and holds up no other one", "", identity,
                   codec_archetype) {
  const bool stopped_first = GENERATE(false, true);
  CAPTURE(stopped_first);
  const auto points = at_every_point([&](counting_stop_source& stop) {
    workbench<TestType> w(stop);
    for (int i = 0; i < 4; ++i) REQUIRE(pattern::append(*w.tokens, 16, 1, 1));
    ex::inplace_stop_source nobody;
    ending end(stop.source.get_token()), other(nobody.get_token()), later(nobody.get_token());
    auto operation = w.cache->flush().connect(ending::receiver{&end});
    auto beside = w.cache->flush().connect(ending::receiver{&other});
    auto behind = w.cache->flush().connect(ending::receiver{&later});  // of the next round
    if (stopped_first) operation.start();
    beside.start();
    if (!stopped_first) operation.start();
    behind.start();
    w.run_until([&] { return end.over() && other.over() && later.over(); });
    CHECK(other.value);
    CHECK(later.value);
    CHECK(end.value != end.stopped);
    for (const block_id id : w.ids()) CHECK(w.cache->control().copy(id.index, 0).unsaved == false);
    w.check();
    return end.stopped;
  });
  CHECK(points > 4);
}

TEST_CASE("a flush whose stop was requested before does nothing") {
  counting_stop_source stop(never);
  workbench<identity> w(stop);
  ex::inplace_stop_source source;
  source.request_stop();
  ending end(source.get_token());
  auto operation = w.cache->flush().connect(ending::receiver{&end});
  operation.start();
  CHECK(end.stopped);
}

TEMPLATE_TEST_CASE("a reservation may be stopped at every point, and its sequence is as it was", "", identity,
                   codec_archetype) {
  const auto points = at_every_point([](counting_stop_source& stop) {
    workbench<TestType> w(stop);
    ending end(stop.source.get_token());
    // Twice what tier 0 has free: blocks have to go down for it, and some of these farther.
    auto operation = w.tokens->reserve_async(9 * 16).connect(ending::receiver{&end});
    operation.start();
    w.run_until([&] { return end.over(); });
    CHECK_FALSE(end.failed);
    CHECK(end.room.has_value() == end.value);
    end.room.reset();
    CHECK(w.tokens->length() == 16 * w.blocks);
    w.check();
    CHECK(w.tokens->reserve(1));
    return end.stopped;
  });
  CHECK(points > 4);
}

TEMPLATE_TEST_CASE("the end of a suspension may be stopped at every point, and leaves it suspended", "",
                   identity, codec_archetype) {
  const auto points = at_every_point([](counting_stop_source& stop) {
    workbench<TestType> w(stop);
    w.near.on_progress = w.far.on_progress = nullptr;
    REQUIRE(pattern::append(*w.tokens, 5, 1, 1));
    REQUIRE(w.tokens->suspend());
    {
      sequence other = w.cache->make_sequence();
      for (int i = 0; i < 14; ++i) REQUIRE(pattern::append(other, 16, 1, 2));  // pushes it out of tier 0
      w.settle();
      REQUIRE_FALSE(w.cache->control().copy(w.tokens->pages().rows[0].back().index, 0).present());
    }
    for (faulty_device* d : {&w.near, &w.far}) d->on_progress = [&stop](device_call) { stop.point(); };
    ending end(stop.source.get_token());
    auto operation = w.tokens->resume().connect(ending::receiver{&end});
    operation.start();
    w.run_until([&] { return end.over(); });
    CHECK_FALSE(end.failed);
    CHECK(w.tokens->suspended() == end.stopped);
    w.near.on_progress = w.far.on_progress = nullptr;
    if (end.stopped) REQUIRE(w.ctx.sync_wait(w.tokens->resume()));
    const block_id tail = w.tokens->pages().rows[0].back();
    CHECK(pattern::holds(w.cache->layout().groups[0], w.cache->control().open_data(tail.index), 0, w.blocks,
                         1, 5));
    w.check(1);
    return end.stopped;
  });
  CHECK(points > 2);
}

TEMPLATE_TEST_CASE("a stream may be stopped at every point, and leaves its result alone", "", identity,
                   codec_archetype) {
  const auto points = at_every_point([](counting_stop_source& stop) {
    workbench<TestType> w(stop);
    auto token = w.tokens->reserve(1);
    REQUIRE(token);
    pattern::write(*token, 1, 1);
    const std::vector<float> query(64, 0.5f), untouched(64, 7.0f);
    std::vector<float> out = untouched;
    ending end(stop.source.get_token());
    {
      auto operation = stream(*w.cache, *w.tokens, *token, 0, query, out).connect(ending::receiver{&end});
      operation.start();
      w.run_until([&] { return end.over(); });
    }
    CHECK_FALSE(end.failed);
    CHECK((out == untouched) == end.stopped);
    w.check(1);
    return end.stopped;
  });
  CHECK(points > 20);
}
