// Syncs that fail or hang: flush says so in time, and what has a name is kept elsewhere. And what a sync that was under
// way has not made durable, though it seems so.
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "keeper.hpp"
#include "small_cache.hpp"
#include "terrace/execution/elide.hpp"
#include "terrace/testing/faulty.hpp"
#include "terrace/testing/virtual_clock.hpp"

using namespace terrace;
using std::chrono::milliseconds;
using state = tier_health::state;

namespace {

// Two tiers that keep below a few slots.
struct fixture {
  using type = tiered_cache<tier<ram>, tier<keeper>, tier<keeper>, lru>;
  explicit fixture(milliseconds pause = std::chrono::hours(1)) {
    cache_options o;
    o.transfers.deadline = milliseconds(5);
    o.transfers.health.first_pause = pause;
    o.transfers.health.longest_pause = pause;
    opened.emplace(
        type::open(ctx, pattern::layout(1), {.capacity = 8 * pattern::block_bytes},
                   {.capacity = 64 * pattern::block_bytes, .script = &media[0], .syncs = &syncs[0]},
                   {.capacity = 64 * pattern::block_bytes, .script = &media[1], .syncs = &syncs[1]}, {}, o));
    REQUIRE(*opened);
    tokens.emplace(cache().make_sequence());
  }
  type& cache() { return **opened; }
  void append_named(std::size_t blocks) {
    for (std::size_t i = 0; i < blocks; ++i) {
      REQUIRE(pattern::append(*tokens, 16, 1, 1));
      const block_id id = pattern::sealed(*tokens, 0).back();
      REQUIRE(cache().name(id, {.low = ++names, .high = 7}));
    }
  }
  result<void> flush() { return ctx.sync_wait(cache().flush()); }
  bool durable(std::size_t tier) {
    for (const block_id id : pattern::sealed(*tokens, 0))
      if (!cache().control().copy(id.index, tier).durable) return false;
    return true;
  }

  virtual_clock clock;
  context ctx{{.codec_threads = 0, .time = &clock}};
  medium_script media[2];
  sync_script syncs[2];
  std::optional<result<type>> opened;
  std::optional<sequence> tokens;
  std::uint64_t names = 0;
};

}  // namespace

TEST_CASE("a flush whose sync hangs fails when its deadline passes, and the next one at once") {
  fixture f;
  f.append_named(4);
  f.syncs[0].hold = true;
  const auto late = f.flush();
  REQUIRE_FALSE(late);
  CHECK(late.error().code == errc::deadline);
  CHECK_FALSE(f.durable(1));
  const tier_health health = f.cache().health(1);
  CHECK(health.now == state::set_aside);
  CHECK(health.last.code == errc::deadline);
  CHECK(f.cache().health().now == cache_health::verdict::degraded);
  CHECK(f.syncs[0].syncs == 1);

  // What has a name goes to the other tier that keeps.
  CHECK(f.flush());
  CHECK(f.durable(2));
  CHECK(f.syncs[0].syncs == 1);

  // The hung one ends at last, and has done its work: the tier is well again.
  f.syncs[0].release();
  f.ctx.poll();
  CHECK(f.cache().health(1).healthy);
  CHECK(f.flush());
}

TEST_CASE("an owner that was away finds that a sync ended, not that it is late") {
  fixture f;
  f.append_named(4);
  f.syncs[0].hold = true;
  std::optional<result<void>> told;
  struct receiver {
    using receiver_concept = ex::receiver_t;
    std::optional<result<void>>* to;
    void set_value() noexcept { to->emplace(); }
    void set_error(error e) noexcept { to->emplace(propagate(e)); }
    void set_stopped() noexcept { to->emplace(fail(errc::stopped, "stopped")); }
    ex::env<> get_env() const noexcept { return {}; }
  };
  auto flush = ex::connect(f.cache().flush(), receiver{&told});
  ex::start(flush);
  while (f.syncs[0].syncs == 0 && f.ctx.poll() != 0) {
  }
  REQUIRE(f.syncs[0].syncs == 1);

  f.clock.advance(std::chrono::hours(1));
  f.ctx.poll();
  CHECK_FALSE(told);  // it has been looked for once
  f.syncs[0].release();
  while (!told && f.ctx.poll() != 0) {
  }
  REQUIRE(told);
  CHECK(*told);
  CHECK(f.durable(1));
  CHECK(f.cache().health(1).healthy);
}

TEST_CASE("where the only tier that keeps cannot sync, flush says so each time, and nothing is lost") {
  fixture f(milliseconds(0));
  f.media[1].fail_writes = 1u << 30;
  f.append_named(4);
  f.syncs[0].fail = 3;
  for (int i = 0; i < 2; ++i) {
    const auto failed = f.flush();
    REQUIRE_FALSE(failed);
    CHECK(failed.error().code == errc::io_error);
    CHECK_FALSE(f.cache().health(1).healthy);
  }
  const auto ids = pattern::sealed(*f.tokens, 0);
  for (const block_id& id : ids) CHECK(f.ctx.sync_wait(f.cache().acquire({&id, 1})));
  for (int i = 0; i < 10 && !f.flush(); ++i) {
  }
  CHECK(f.durable(1));
  CHECK(f.cache().health(1).healthy);
}

TEST_CASE("a sync that failed is tried again without a flush, and then the tier takes blocks again") {
  fixture f(milliseconds(1));
  f.append_named(2);
  f.syncs[0].fail = 2;
  REQUIRE_FALSE(f.flush());
  CHECK(f.cache().health(1).now == state::set_aside);
  while (!f.cache().health(1).healthy) f.ctx.wait(f.ctx.now() + std::chrono::seconds(10));
  CHECK(f.syncs[0].syncs == 3);
  const std::uint64_t before = f.cache().stats().tiers[1].stores;
  f.append_named(2);
  CHECK(f.flush());
  CHECK(f.cache().stats().tiers[1].stores == before + 2);
  CHECK(f.durable(1));
}

TEST_CASE("a cache ends well while a sync hangs that ends at last") {
  fixture f;
  f.append_named(2);
  f.syncs[0].hold = true;
  REQUIRE_FALSE(f.flush());
  f.tokens.reset();
  f.syncs[0].release();  // posted; the cache's end waits for it
  f.opened.reset();
  CHECK(f.syncs[0].syncs == 1);
}

TEST_CASE("a keeper that says that no sync will succeed any more is not asked again, and health says why") {
  fixture f(milliseconds(1));
  f.append_named(4);
  f.syncs[0].fail = 1u << 30;
  REQUIRE_FALSE(f.flush());
  f.syncs[0].for_good = true;
  for (const auto until = f.ctx.now() + std::chrono::seconds(1); f.ctx.now() < until;) f.ctx.wait(until);
  CHECK(f.syncs[0].syncs == 2);  // one probe
  CHECK(f.cache().health(1).last.code == errc::unavailable);
  CHECK(f.cache().health(1).next_retry == tier_health::time_point::max());
  CHECK(f.flush());  // the other tier keeps
  CHECK(f.durable(2));
  CHECK(f.syncs[0].syncs == 2);
}

namespace {

// One block with a name, in tier 0 and on a device, and a sync of that under way.
struct renewal {
  using type = tiered_cache<tier<ram>, tier<faulty>, lru>;
  static constexpr block_key name{.low = 1, .high = 7};

  renewal() {
    REQUIRE(pattern::append(*tokens, 16, 1, 1));
    id = pattern::sealed(*tokens, 0).back();
    REQUIRE(cache().name(id, name));
    settle();
    where = cache().control().where(id.index, 1);
    device.shortest = device.longest = std::chrono::seconds(1);
    begun.emplace(elide{[&] { return ex::connect(cache().flush(), receiver{&answer}); }});
    ex::start(begun->operation);
    REQUIRE(device.in_flight() == 1);
    device.shortest = device.longest = {};
  }
  type& cache() { return **opened; }
  void settle() {
    while (!ctx.idle()) ctx.wait(ctx.now() + milliseconds(1));
  }
  // The sync ends, and a flush says that all is well; then the power fails.
  bool is_there_after_a_crash() {
    settle();
    CHECK(answer == 1);
    REQUIRE(ctx.sync_wait(cache().flush()));
    device.cut_power();
    tokens.reset();
    begun.reset();
    opened.reset();
    opened.emplace(open());
    return cache().find(name).has_value();
  }

  struct receiver {
    using receiver_concept = ex::receiver_t;
    int* answer;
    void set_value() noexcept { *answer = 1; }
    void set_error(error) noexcept { *answer = 2; }
    void set_stopped() noexcept { *answer = 3; }
    ex::env<> get_env() const noexcept { return {}; }
  };
  struct flushing {
    template <class Make>
    explicit flushing(Make make) : operation(make) {}
    flush_sender::operation<receiver> operation;
  };
  result<type> open() {
    return type::open(ctx, pattern::layout(1), {.capacity = 8 * pattern::block_bytes},
                      {.capacity = 64 * pattern::block_bytes, .device = &device, .keep = true});
  }

  virtual_clock clock;
  context ctx{{.codec_threads = 0, .time = &clock}};
  faulty_device device{64 * pattern::block_bytes};
  std::optional<result<type>> opened{open()};
  std::optional<sequence> tokens{cache().make_sequence()};
  block_id id;
  extent where;
  int answer = 0;
  std::optional<flushing> begun;
};

}  // namespace

// Both tiers hang, so that the flush has only the end of a name to sync; meanwhile one of them heals.
TEST_CASE("what finds room at last while a flush that was stuck syncs is not durable with it") {
  using type = tiered_cache<tier<ram>, tier<ram>, tier<faulty>, tier<faulty>, lru>;
  constexpr std::size_t bytes = 64 * pattern::block_bytes;
  virtual_clock clock;
  context ctx{{.codec_threads = 0, .time = &clock}};
  faulty_device never{bytes}, late{bytes};
  never.heeds_stop = false;
  late.shortest = late.longest = milliseconds(50);
  const auto open = [&] {
    return type::open(ctx, pattern::layout(1), {.capacity = 8 * pattern::block_bytes}, {.capacity = bytes},
                      {.capacity = bytes, .device = &never, .keep = true},
                      {.capacity = bytes, .device = &late, .keep = true});
  };
  {
    auto cache = open();
    REQUIRE(cache);
    sequence s = cache->make_sequence();
    REQUIRE(pattern::append(s, 16, 1, 1));
    REQUIRE(cache->name(pattern::sealed(s, 0)[0], {.low = 1, .high = 7}));
    REQUIRE(ctx.sync_wait(cache->flush()));
    cache->forget({.low = 1, .high = 7});
    never.script(device_call::write, 0, fault::stall);
    late.script(device_call::write, 0, fault::stall);
    REQUIRE(pattern::append(s, 16, 1, 1));
    REQUIRE(cache->name(pattern::sealed(s, 0)[1], {.low = 2, .high = 7}));
    REQUIRE(ctx.sync_wait(cache->flush()));
    never.cut_power();
    late.cut_power();
  }
  auto cache = open();
  REQUIRE(cache);
  CHECK(cache->find({.low = 2, .high = 7}));
}

TEST_CASE("a copy that takes the place of one that was being synced is not durable with it") {
  renewal f;
  REQUIRE(f.cache().report_damaged(f.id, 1));
  while (f.cache().control().copy(f.id.index, 1).now() != block_copy::state::resident) f.ctx.poll();
  REQUIRE(f.cache().control().where(f.id.index, 1) == f.where);
  REQUIRE(f.device.in_flight() == 1);
  CHECK(f.is_there_after_a_crash());
}

TEST_CASE("a name that is given again while its header was being synced is not durable with it") {
  renewal f;
  f.cache().forget(renewal::name);
  REQUIRE(f.cache().name(f.id, renewal::name));
  REQUIRE(f.device.in_flight() == 1);
  CHECK(f.is_there_after_a_crash());
}

// Two named blocks are moved from the first tier that keeps to the second. Its sync fails for the one, and the other
// arrives before it is well again.
TEST_CASE(
    "what arrives in a tier that cannot sync is made durable when it can, and makes room where it came "
    "from") {
  using type = tiered_cache<tier<ram>, tier<faulty>, tier<faulty>, lru>;
  virtual_clock clock;
  context ctx{{.codec_threads = 0, .time = &clock}};
  faulty_device near{2 * pattern::block_bytes}, far{64 * pattern::block_bytes};
  cache_options o;
  o.transfers.health.first_pause = o.transfers.health.longest_pause = milliseconds(500);
  o.transfers.inclusions[1] = inclusion::inclusive;
  auto cache = type::open(ctx, pattern::layout(1), {.capacity = 8 * pattern::block_bytes},
                          {.capacity = near.capacity(), .device = &near, .keep = true},
                          {.capacity = far.capacity(), .device = &far, .keep = true}, {}, o);
  REQUIRE(cache);
  sequence s = cache->make_sequence();
  for (const std::uint64_t name : {1u, 2u}) {
    REQUIRE(pattern::append(s, 16, 1, 1));
    REQUIRE(cache->name(pattern::sealed(s, 0).back(), {.low = name, .high = 7}));
  }
  REQUIRE(ctx.sync_wait(cache->flush()));
  const auto moved = [&](std::size_t block) {
    return cache->control().copy(pattern::sealed(s, 0)[block].index, 2);
  };
  far.script(device_call::sync, 0, fault::io_error);
  far.shortest = far.longest = milliseconds(10);
  for (int i = 0; i < 2; ++i) REQUIRE(pattern::append(s, 16, 1, 1));
  for (int i = 0; i < 20 && !moved(1).readable(); ++i) ctx.wait(ctx.now() + milliseconds(10));
  REQUIRE(moved(1).readable());
  REQUIRE(far.seen(device_call::sync).failed == 1);
  REQUIRE_FALSE(moved(0).durable);
  clock.advance(std::chrono::seconds(2));
  for (int i = 0; i < 100; ++i) ctx.wait(ctx.now() + milliseconds(10));
  CHECK(far.seen(device_call::sync).failed == 1);
  CHECK(moved(0).durable);
  CHECK(moved(1).durable);
}

TEST_CASE("a store that has no room for a header says so to each flush, until there is room") {
  using type = tiered_cache<tier<ram>, tier<faulty>, lru>;
  context ctx{{.codec_threads = 0}};
  faulty_device device{64 * pattern::block_bytes};
  auto cache =
      type::open(ctx, pattern::layout(1), {.capacity = 8 * pattern::block_bytes},
                 {.capacity = device.capacity(), .device = &device, .keep = true, .most_headers = 1});
  REQUIRE(cache);
  sequence s = cache->make_sequence();
  for (const std::uint64_t name : {1u, 2u}) {
    REQUIRE(pattern::append(s, 16, 1, 1));
    REQUIRE(cache->name(pattern::sealed(s, 0).back(), {.low = name, .high = 7}));
  }
  for (int i = 0; i < 3; ++i) {
    const auto flushed = ctx.sync_wait(cache->flush());
    REQUIRE_FALSE(flushed);
    CHECK(flushed.error().code == errc::out_of_capacity);
  }
  cache->forget({.low = 1, .high = 7});
  CHECK(ctx.sync_wait(cache->flush()));
  CHECK(cache->control().copy(pattern::sealed(s, 0)[1].index, 1).durable);
}
