// Copies that cannot be read this time: they stay, are asked for again, and save nothing meanwhile.
#include <sys/resource.h>

#include <chrono>
#include <filesystem>
#include <optional>
#include <span>
#include <vector>

#include "medium/sandbox.hpp"
#include "small_cache.hpp"
#include "terrace/medium/directory.hpp"
#include "terrace/medium/nvme.hpp"
#include "terrace/testing/faulty.hpp"

using namespace terrace;
using std::chrono::milliseconds;

namespace {

constexpr unsigned always = 1u << 30;

cache_options patience(milliseconds deadline) {
  cache_options o;
  o.transfers.deadline = deadline;
  return o;
}

// Four slots, and sixteen blocks below; all of them saved, and the first four in tier 0 no more.
struct fixture : small_cache<> {
  explicit fixture(cache_options tuning = {}) : small_cache<>(6, 64, tuning) {
    REQUIRE(append(16));
    REQUIRE(ctx.sync_wait(cache().flush()));
    REQUIRE_FALSE(in_tier_0(3));
  }
  std::optional<error> why_lost(std::size_t block) {
    const auto all = ids();
    const auto held = ctx.sync_wait(cache().acquire(std::span(all).subspan(block, 1)));
    if (held || held.error().lost.size() != 1) return std::nullopt;
    return held.error().lost[0].cause;
  }
  bool doubtful(std::size_t block) { return cache().control().copy(ids()[block].index, 1).doubtful; }
  void compute_anew(std::size_t block) {
    auto anew = cache().restore(ids()[block]);
    REQUIRE(anew);
    write(anew->data(), block);
    std::move(*anew).complete();
  }
  // Reads others until it has left tier 0.
  void drive_out(std::size_t block) {
    for (std::size_t i = 6; i < 16; ++i) REQUIRE(read(i));
    REQUIRE_FALSE(in_tier_0(block));
  }
};

// No descriptor can be opened as long as it lives. Nothing may be asserted meanwhile: a sanitizer wants descriptors
// for that.
class no_descriptors {
 public:
  no_descriptors() {
    ::getrlimit(RLIMIT_NOFILE, &before_);
    rlimit none = before_;
    none.rlim_cur = 0;
    ::setrlimit(RLIMIT_NOFILE, &none);
  }
  ~no_descriptors() { ::setrlimit(RLIMIT_NOFILE, &before_); }

 private:
  rlimit before_{};
};

// Two tiers below tier 0 that fail as they are told, and a sequence that is written through them.
struct three_tiers {
  using type = tiered_cache<tier<ram>, tier<scripted>, tier<scripted>, lru>;
  static constexpr std::size_t block = pattern::block_bytes;

  explicit three_tiers(std::size_t near_blocks)
      : opened(type::open(ctx, pattern::layout(1), {.capacity = 4 * block},
                          {.capacity = near_blocks * block, .script = &near},
                          {.capacity = 64 * block, .script = &far})),
        tokens(opened.value().make_sequence()) {}
  three_tiers(three_tiers&&) = delete;

  bool append() { return pattern::append(tokens, 16, 1, 1).has_value(); }
  bool read(std::size_t i) {
    const std::vector<block_id> ids = pattern::sealed(tokens, 0);
    const auto held = ctx.sync_wait(opened->acquire(std::span(ids).subspan(i, 1)));
    return held && pattern::holds(opened->layout().groups[0], (*held)[0].data, 0, i, 1, 16);
  }

  virtual_clock clock;
  context ctx{{.codec_threads = 0, .time = &clock}};
  medium_script near, far;
  result<type> opened;
  sequence tokens;
};

}  // namespace

TEST_CASE("a read that fails says nothing of the next one: the copy stays, and is asked for again") {
  fixture f;
  f.script.fail_reads = 1;
  const auto cause = f.why_lost(3);
  REQUIRE(cause);
  CHECK(cause->code == errc::io_error);
  CHECK(f.copy(3, 1) == block_copy::state::resident);
  CHECK(f.doubtful(3));
  CHECK(f.cache().stats().tiers[1].lost == 0);
  CHECK(f.cache().stats().tiers[1].failed_reads == 1);
  CHECK(f.read(3));
  CHECK_FALSE(f.doubtful(3));
}

TEST_CASE("wrong bytes stay wrong: that copy is given up") {
  fixture f;
  f.script.flip_reads = 1;
  const auto cause = f.why_lost(3);
  REQUIRE(cause);
  CHECK(cause->code == errc::corrupt);
  CHECK(f.copy(3, 1) == block_copy::state::absent);
  CHECK(f.cache().stats().tiers[1].lost == 1);
}

TEST_CASE("what is computed anew is stored in place of what could not be read") {
  fixture f;
  f.script.fail_reads = 1;
  REQUIRE(f.why_lost(3));
  const unsigned writes = f.script.writes;
  f.compute_anew(3);
  f.settle();
  CHECK(f.script.writes == writes + 1);
  CHECK(f.copy(3, 1) == block_copy::state::resident);
  CHECK_FALSE(f.doubtful(3));
  CHECK(f.cache().stats().tiers[1].lost == 1);
  f.drive_out(3);
  CHECK(f.read(3));
}

TEST_CASE(
    "while a doubtful copy is being read, what is computed anew stays in tier 0, and is stored after that") {
  fixture f(patience(milliseconds(5)));
  const bool ends_well = GENERATE(false, true);
  f.script.hold = true;
  f.script.fail_reads = ends_well ? 0 : 1;
  REQUIRE(f.why_lost(3)->code == errc::deadline);
  CHECK(f.doubtful(3));
  f.script.hold = false;
  f.compute_anew(3);
  const unsigned writes = f.script.writes;
  for (std::size_t i = 6; i < 16; ++i) REQUIRE(f.read(i));
  CHECK(f.in_tier_0(3));
  CHECK(f.script.writes == writes);
  f.script.release_all();
  f.settle();
  CHECK(f.script.writes == writes + (ends_well ? 0 : 1));
  CHECK_FALSE(f.doubtful(3));
  CHECK(f.cache().stats().pins == 0);
  f.drive_out(3);
  CHECK(f.read(3));
}

TEST_CASE("a victim that cannot be read stays, and is tried again after a pause that grows") {
  three_tiers t(8);
  const auto near_tier = [&] { return t.opened->stats().tiers[1]; };
  const auto pass = [&](milliseconds time) {
    for (const auto until = t.ctx.now() + time; t.ctx.now() < until;) t.ctx.wait(until);
  };
  t.near.fail_reads = always;
  for (int i = 0; i < 40; ++i) REQUIRE(t.append());
  // The near tier is full of what cannot be moved, and is passed by; nothing is lost for that.
  CHECK(near_tier().resident_bytes == 8 * t.block);
  CHECK(near_tier().lost + t.opened->stats().dropped == 0);
  CHECK(t.opened->stats().tiers[2].stores > 20);
  SECTION("each copy is tried once in a pause, and pauses double: not at once, and for ever") {
    const unsigned at_first = t.near.reads;
    CHECK(at_first <= 2 * 8);
    for (int i = 0; i < 20; ++i) {
      REQUIRE(t.append());
      pass(milliseconds(100));
    }
    CHECK(t.near.reads > at_first);
    CHECK(t.near.reads <= at_first + 9 * 8);  // 10 ms, 20, 40 ...: nine in two seconds
    CHECK(near_tier().resident_bytes == 8 * t.block);
  }
  SECTION("what can be read again is moved") {
    t.near.fail_reads = 0;
    pass(milliseconds(10'000));
    const unsigned before = t.near.reads;
    for (int i = 0; i < 8; ++i) REQUIRE(t.append());
    REQUIRE(t.ctx.sync_wait(t.opened->flush()));
    CHECK(t.near.reads == before + 8);
  }
  t.near.fail_reads = 0;
  for (std::size_t i = 0; i < t.tokens.length() / 16; ++i) REQUIRE(t.read(i));
}

TEST_CASE("a copy that comes up beside a doubtful one farther down is not let go for it") {
  three_tiers t(16);
  for (int i = 0; i < 30; ++i) REQUIRE(t.append());
  REQUIRE(t.ctx.sync_wait(t.opened->flush()));
  const block_id first = pattern::sealed(t.tokens, 0)[0];
  planner& control = t.opened->control();
  REQUIRE(control.copy(first.index, 2).readable());
  REQUIRE_FALSE(control.copy(first.index, 1).present());
  t.far.fail_reads = 1;
  CHECK_FALSE(t.read(0));
  CHECK(control.copy(first.index, 2).doubtful);
  // Computed anew it is in tier 0 alone, and is stored: no copy far down that nobody has read makes that needless.
  auto anew = t.opened->restore(first);
  REQUIRE(anew);
  std::move(*anew).complete();
  CHECK_FALSE(control.copy(first.index, 2).present());
  REQUIRE(t.ctx.sync_wait(t.opened->flush()));
  CHECK(control.copy(first.index, 1).present());
}

TEST_CASE(
    "a flush goes on without a named block that cannot be read, says why, and the next one tries again") {
  using type = tiered_cache<tier<ram>, tier<scripted>, tier<faulty>, lru>;
  context ctx{{.codec_threads = 0}};
  medium_script near;
  faulty_device far{64 * pattern::block_bytes};
  auto cache = type::open(ctx, pattern::layout(1), {.capacity = 4 * pattern::block_bytes},
                          {.capacity = 64 * pattern::block_bytes, .script = &near},
                          {.capacity = far.capacity(), .device = &far, .keep = true});
  REQUIRE(cache);
  sequence s = cache->make_sequence();
  for (int i = 0; i < 8; ++i) REQUIRE(pattern::append(s, 16, 1, 1));
  REQUIRE(ctx.sync_wait(cache->flush()));
  const auto ids = pattern::sealed(s, 0);
  REQUIRE_FALSE(cache->control().copy(ids[0].index, 0).present());
  REQUIRE(cache->control().copy(ids[7].index, 0).present());
  near.fail_reads = always;
  REQUIRE(cache->name(ids[0], {.low = 1, .high = 7}));
  for (int round = 0; round < 2; ++round) {
    const std::size_t readable = 7u - static_cast<unsigned>(round);
    REQUIRE(cache->name(ids[readable], {.low = 2 + readable, .high = 7}));
    const auto flushed = ctx.sync_wait(cache->flush());
    REQUIRE_FALSE(flushed);
    CHECK(flushed.error().code == errc::io_error);
    CHECK(cache->control().copy(ids[readable].index, 2).durable);
    CHECK_FALSE(cache->control().copy(ids[0].index, 2).present());
  }
  near.fail_reads = 0;
  REQUIRE(ctx.sync_wait(cache->flush()));
  CHECK(cache->control().copy(ids[0].index, 2).durable);
}

TEST_CASE("a flushed block with a name outlives a time without descriptors") {
  using type = tiered_cache<tier<ram>, tier<directory>, lru>;
  constexpr std::size_t block = pattern::block_bytes;
  const sandbox::folder folder;
  context ctx{{.codec_threads = 0}};
  auto opened = type::open(ctx, pattern::layout(1), {.capacity = 4 * block},
                           {.capacity = 64 * block, .path = folder.path, .keep = true});
  REQUIRE(opened);
  sequence tokens = opened->make_sequence();
  for (std::uint64_t i = 0; i < 16; ++i) {
    REQUIRE(pattern::append(tokens, 16, 1, 1));
    REQUIRE(opened->name(pattern::sealed(tokens, 0)[i], {.low = i + 1, .high = 7}));
  }
  REQUIRE(ctx.sync_wait(opened->flush()));
  const auto ids = pattern::sealed(tokens, 0);
  const auto read = [&] { return ctx.sync_wait(opened->acquire(std::span(ids).first(1))); };
  const auto files = [&] {
    std::size_t count = 0;
    for (const auto& entry : std::filesystem::directory_iterator(folder / "kv-store"))
      count += entry.is_regular_file() ? 1 : 0;
    return count;
  };
  const std::size_t before = files();
  SECTION("none can be opened for a while") {
    {
      const auto lost = [&] {
        const no_descriptors now;
        return read();
      }();
      REQUIRE_FALSE(lost);
      CHECK(lost.error().lost[0].cause.system == EMFILE);
    }
    CHECK(files() == before);
    const auto held = read();
    REQUIRE(held);
    CHECK(pattern::holds(opened->layout().groups[0], (*held)[0].data, 0, 0, 1, 16));
  }
  SECTION("its file is gone, or too short: that is for good") {
    const bool gone = GENERATE(false, true);
    for (const auto& entry : std::filesystem::directory_iterator(folder / "kv-store")) {
      if (entry.path().filename() == "index") continue;
      if (gone)
        std::filesystem::remove(entry.path());
      else
        std::filesystem::resize_file(entry.path(), 100);
    }
    const auto lost = read();
    REQUIRE_FALSE(lost);
    CHECK(lost.error().lost[0].cause.code == errc::corrupt);
    CHECK_FALSE(opened->control().copy(ids[0].index, 1).present());
  }
}
