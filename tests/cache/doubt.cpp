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

// No descriptor can be opened as long as it lives.
class no_descriptors {
 public:
  no_descriptors() {
    ::getrlimit(RLIMIT_NOFILE, &before_);
    rlimit none = before_;
    none.rlim_cur = 0;
    REQUIRE(::setrlimit(RLIMIT_NOFILE, &none) == 0);
  }
  ~no_descriptors() { ::setrlimit(RLIMIT_NOFILE, &before_); }

 private:
  rlimit before_{};
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
  using type = tiered_cache<tier<ram>, tier<scripted>, tier<scripted>, lru>;
  constexpr std::size_t block = pattern::block_bytes;
  virtual_clock clock;
  context ctx{{.codec_threads = 0, .time = &clock}};
  medium_script near, far;
  auto opened =
      type::open(ctx, pattern::layout(1), {.capacity = 4 * block}, {.capacity = 8 * block, .script = &near},
                 {.capacity = 64 * block, .script = &far});
  REQUIRE(opened);
  sequence tokens = opened->make_sequence();
  const auto append = [&] { return pattern::append(tokens, 16, 1, 1).has_value(); };
  const auto pass = [&](milliseconds time) {
    for (const auto until = ctx.now() + time; ctx.now() < until;) ctx.wait(until);
  };
  near.fail_reads = always;
  for (int i = 0; i < 40; ++i) REQUIRE(append());
  // The near tier is full of what cannot be moved, and is passed by; nothing is lost for that.
  CHECK(opened->stats().tiers[1].resident_bytes == 8 * block);
  CHECK(opened->stats().tiers[1].lost + opened->stats().dropped == 0);
  CHECK(opened->stats().tiers[2].stores > 20);
  SECTION("each copy is tried once in a pause, and pauses double: not at once, and for ever") {
    const unsigned at_first = near.reads;
    CHECK(at_first <= 2 * 8);
    for (int i = 0; i < 20; ++i) {
      REQUIRE(append());
      pass(milliseconds(100));
    }
    CHECK(near.reads > at_first);
    CHECK(near.reads <= at_first + 9 * 8);  // 10 ms, 20, 40 ...: nine in two seconds
    CHECK(opened->stats().tiers[1].resident_bytes == 8 * block);
  }
  SECTION("what can be read again is moved") {
    near.fail_reads = 0;
    pass(milliseconds(10'000));
    const unsigned before = near.reads;
    for (int i = 0; i < 8; ++i) REQUIRE(append());
    REQUIRE(ctx.sync_wait(opened->flush()));
    CHECK(near.reads == before + 8);
  }
  near.fail_reads = 0;
  const auto ids = pattern::sealed(tokens, 0);
  for (std::size_t i = 0; i < ids.size(); ++i) {
    const auto held = ctx.sync_wait(opened->acquire(std::span(ids).subspan(i, 1)));
    REQUIRE(held);
    CHECK(pattern::holds(opened->layout().groups[0], (*held)[0].data, 0, i, 1, 16));
  }
}

TEST_CASE("a copy that comes up beside a doubtful one farther down is not let go for it") {
  using type = tiered_cache<tier<ram>, tier<scripted>, tier<scripted>, lru>;
  constexpr std::size_t block = pattern::block_bytes;
  virtual_clock clock;
  context ctx{{.codec_threads = 0, .time = &clock}};
  medium_script near, far;
  auto opened =
      type::open(ctx, pattern::layout(1), {.capacity = 4 * block}, {.capacity = 16 * block, .script = &near},
                 {.capacity = 64 * block, .script = &far});
  REQUIRE(opened);
  sequence tokens = opened->make_sequence();
  for (int i = 0; i < 30; ++i) REQUIRE(pattern::append(tokens, 16, 1, 1));
  REQUIRE(ctx.sync_wait(opened->flush()));
  const auto ids = pattern::sealed(tokens, 0);
  planner& control = opened->control();
  const auto read = [&](std::size_t i) {
    const auto held = ctx.sync_wait(opened->acquire(std::span(ids).subspan(i, 1)));
    return held && pattern::holds(opened->layout().groups[0], (*held)[0].data, 0, i, 1, 16);
  };
  REQUIRE(control.copy(ids[0].index, 2).readable());
  REQUIRE_FALSE(control.copy(ids[0].index, 1).present());
  far.fail_reads = 1;
  CHECK_FALSE(read(0));
  CHECK(control.copy(ids[0].index, 2).doubtful);
  // Computed anew it is in tier 0 alone, and is stored: no copy far down that nobody has read makes that needless.
  auto anew = opened->restore(ids[0]);
  REQUIRE(anew);
  std::move(*anew).complete();
  CHECK_FALSE(control.copy(ids[0].index, 2).present());
  REQUIRE(ctx.sync_wait(opened->flush()));
  CHECK(control.copy(ids[0].index, 1).present());
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
      const no_descriptors now;
      const auto lost = read();
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
