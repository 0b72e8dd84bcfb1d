// What a flush waits for: what was sealed before it, and nothing that came later.
#include <array>
#include <functional>
#include <memory>
#include <optional>
#include <utility>

#include "keeper.hpp"
#include "small_cache.hpp"

using namespace terrace;

namespace {

// A flush that is watched from outside.
struct watched_flush {
  struct receiver {
    using receiver_concept = ex::receiver_t;
    watched_flush* f;
    void set_value() noexcept { f->told.emplace(); }
    void set_error(error e) noexcept { f->told.emplace(propagate(e)); }
    void set_stopped() noexcept { f->told.emplace(fail(errc::stopped, "stopped")); }
    ex::env<> get_env() const noexcept { return {}; }
  };
  template <class Cache>
  explicit watched_flush(Cache& cache) : operation(cache.flush().connect(receiver{this})) {
    ex::start(operation);
  }
  watched_flush(watched_flush&&) = delete;
  bool done() const { return told.has_value(); }

  std::optional<result<void>> told;
  flush_sender::operation<receiver> operation;
};

// Does something when a flush has ended, whichever way.
struct at_end {
  using receiver_concept = ex::receiver_t;
  std::function<void()>* end;
  ex::inplace_stop_token token;
  void set_value() noexcept { (*end)(); }
  void set_error(error) noexcept { (*end)(); }
  void set_stopped() noexcept { (*end)(); }
  auto get_env() const noexcept { return ex::prop{ex::get_stop_token, token}; }
};

// Slots below which a tier keeps. Stores of named blocks are on their way until they are released.
struct kept_cache {
  using type = tiered_cache<tier<ram>, tier<keeper>, lru>;
  kept_cache()
      : opened(type::open(ctx, pattern::layout(1), {.capacity = 32 * pattern::block_bytes},
                          {.capacity = 256 * pattern::block_bytes, .script = &script, .syncs = &syncs})) {
    REQUIRE(opened);
    tokens.emplace(opened->make_sequence());
  }
  void append_named() {
    REQUIRE(pattern::append(*tokens, 16, 1, 1));
    REQUIRE(opened->name(pattern::sealed(*tokens, 0).back(), {.low = ++names, .high = 7}));
  }
  bool durable(std::size_t block) {
    return opened->control().copy(pattern::sealed(*tokens, 0)[block].index, 1).durable;
  }

  virtual_clock clock;
  context ctx{{.codec_threads = 0, .time = &clock}};
  medium_script script;
  sync_script syncs;
  result<type> opened;
  std::optional<sequence> tokens;
  std::uint64_t names = 0;
};

}  // namespace

TEST_CASE("a flush does not wait for what a writer goes on sealing") {
  small_cache<> f(18, 256);
  f.script.hold = true;
  REQUIRE(f.append(2));
  watched_flush flush(f.cache());
  CHECK_FALSE(flush.done());
  int written = 2;
  for (; !flush.done() && written < 64; ++written) {
    f.script.release_all();
    REQUIRE(f.append(1));  // on its way before those before it have arrived: there is no moment of rest
    f.ctx.poll();
    REQUIRE(f.script.in_flight != 0);
  }
  REQUIRE(flush.done());
  CHECK(*flush.told);
  CHECK(written <= 6);
  CHECK(f.copy(0, 1) == block_copy::state::resident);
  CHECK(f.copy(1, 1) == block_copy::state::resident);

  // Nor is a later one answered by what the first has waited for.
  watched_flush next(f.cache());
  f.ctx.poll();
  CHECK_FALSE(next.done());
  f.settle();
  REQUIRE(next.done());
  CHECK(*next.told);
}

TEST_CASE("of two flushes that end together, the first one's completion may have the other stopped") {
  kept_cache c;
  c.syncs.hold = true;
  c.append_named();
  watched_flush first(*c.opened);
  c.ctx.poll();
  using operation = flush_sender::operation<at_end>;
  ex::inplace_stop_source stop;
  std::array<std::unique_ptr<operation>, 2> pair;
  std::array<std::function<void()>, 2> end;
  std::array<int, 2> ended{};
  for (std::size_t i = 0; i < 2; ++i) {
    end[i] = [&, i] {
      ++ended[i];
      if (pair[1 - i] != nullptr) {  // the first of the two: the other ends meanwhile, and is gone
        stop.request_stop();
        c.ctx.poll();
      }
      pair[i].reset();
    };
    pair[i].reset(new operation(c.opened->flush().connect(at_end{&end[i], stop.get_token()})));
  }
  for (auto& p : pair) p->start();
  c.append_named();
  c.syncs.release();
  for (int i = 0; i < 100 && (ended[0] == 0 || ended[1] == 0); ++i) c.ctx.poll();
  CHECK(ended == std::array{1, 1});
  CHECK(first.done());
}

TEST_CASE("what is named while a flush syncs does not make it fail") {
  using type = tiered_cache<tier<ram>, tier<keeper>, lru>;
  context ctx{{.codec_threads = 0}};
  medium_script script;
  sync_script syncs;
  auto cache = type::open(ctx, pattern::layout(1), {.capacity = 4 * pattern::block_bytes},
                          {.capacity = 64 * pattern::block_bytes, .script = &script, .syncs = &syncs});
  REQUIRE(cache);
  sequence s = cache->make_sequence();
  for (int i = 0; i < 8; ++i) REQUIRE(pattern::append(s, 16, 1, 1));
  REQUIRE(ctx.sync_wait(cache->flush()));
  const auto ids = pattern::sealed(s, 0);
  REQUIRE(cache->report_damaged(ids[0], 1));
  REQUIRE_FALSE(cache->resident(ids[0]));
  REQUIRE(cache->name(ids[7], {.low = 1, .high = 7}));
  syncs.hold = true;
  watched_flush flush(*cache);
  for (int i = 0; i < 10; ++i) ctx.poll();
  REQUIRE(cache->name(ids[0], {.low = 2, .high = 7}));
  for (int i = 0; i < 10; ++i) ctx.poll();
  CHECK_FALSE(flush.done());
  syncs.release();
  for (int i = 0; i < 10; ++i) ctx.poll();
  REQUIRE(flush.done());
  CHECK(*flush.told);
  const auto next = ctx.sync_wait(cache->flush());
  REQUIRE_FALSE(next);
  CHECK(next.error().code == errc::lost);
}

TEST_CASE("a flush begins its sync when what was named before it is stored, whoever goes on") {
  kept_cache c;
  c.script.hold = true;
  c.append_named();
  c.append_named();
  watched_flush flush(*c.opened);
  for (int i = 0; i < 16 && !flush.done(); ++i) {
    c.script.release_all();
    c.append_named();
    c.ctx.poll();
    REQUIRE(c.script.in_flight != 0);
  }
  REQUIRE(flush.done());
  CHECK(*flush.told);
  CHECK(c.syncs.syncs == 1);
  CHECK(c.durable(0));
  CHECK(c.durable(1));
  CHECK_FALSE(c.durable(c.names - 1));
  c.script.hold = false;
  c.script.release_all();
  REQUIRE(c.ctx.sync_wait(c.opened->flush()));
  CHECK(c.durable(c.names - 1));
}

TEST_CASE("a block that is stored twice before it is saved holds its flush until it is") {
  small_cache<> f(18, 256);
  f.script.hold = true;
  f.script.fail_writes = 1;
  REQUIRE(f.append(2));
  const auto all = f.ids();
  SECTION("while nobody holds it") {}
  SECTION("while a lease holds it") {
    auto held = f.ctx.sync_wait(f.cache().acquire(std::span(all).first(1)));
    REQUIRE(held);
    watched_flush flush(f.cache());
    f.settle();
    REQUIRE(flush.done());
    CHECK(*flush.told);
    CHECK(f.copy(0, 1) == block_copy::state::resident);
    return;
  }
  watched_flush flush(f.cache());
  f.script.release_all();
  f.ctx.poll();
  CHECK_FALSE(flush.done());
  CHECK(f.copy(0, 1) == block_copy::state::filling);
  f.settle();
  REQUIRE(flush.done());
  CHECK(*flush.told);
  CHECK(f.copy(0, 1) == block_copy::state::resident);
}

TEST_CASE("what an earlier flush could not save, the next one waits for") {
  cache_options o;
  o.transfers.health.first_pause = o.transfers.health.longest_pause = std::chrono::hours(1);
  o.transfers.health.tolerated = 0;
  small_cache<> f(18, 256, o);
  f.script.fail_writes = 1;
  REQUIRE(f.append(1));
  CHECK_FALSE(f.ctx.sync_wait(f.cache().flush()));
  CHECK_FALSE(f.ctx.sync_wait(f.cache().flush()));
  f.clock.advance(std::chrono::hours(2));
  REQUIRE(f.append(1));
  REQUIRE(f.ctx.sync_wait(f.cache().flush()));
  CHECK(f.copy(0, 1) == block_copy::state::resident);
  CHECK(f.copy(1, 1) == block_copy::state::resident);
}
