#include "terrace/tiered_cache.hpp"

#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>

#include "catch.hpp"
#include "pattern.hpp"
#include "terrace/codec/q8_0.hpp"
#include "terrace/codec/zstd.hpp"
#include "terrace/execution/sync_wait.hpp"
#include "terrace/medium/directory.hpp"
#include "terrace/medium/nvme.hpp"
#include "terrace/medium/ram.hpp"
#include "terrace/policy/lru.hpp"

using namespace terrace;

namespace {
using ladder = tiered_cache<tier<ram>, tier<ram, q8_0>, tier<nvme, q8_0>, lru>;
constexpr std::size_t block = pattern::block_bytes;

struct folder {
  std::string path = (std::filesystem::temp_directory_path() / "terrace-test-XXXXXX").string();
  folder() { REQUIRE(::mkdtemp(path.data()) != nullptr); }
  ~folder() { std::filesystem::remove_all(path); }
};
}  // namespace

TEST_CASE("a cache knows its tiers") {
  context ctx;
  auto cache = ladder::open(ctx, pattern::layout(), {.capacity = 32 * block}, {.capacity = 64 * block},
                            {.capacity = 64 * block});
  REQUIRE(cache);
  STATIC_REQUIRE(ladder::tier_count == 3);
  const cache_stats s = cache->stats();
  REQUIRE(s.tiers.size() == 3);
  CHECK(s.tiers[0].medium == "ram");
  CHECK(s.tiers[0].codec == "identity");
  CHECK(s.tiers[2].medium == "nvme");
  CHECK(s.tiers[2].codec == "q8_0");
  CHECK(s.tiers[0].capacity_bytes < 32 * block);  // staging is cut from it
  CHECK(cache->health(2).healthy);
}

TEST_CASE("slots and staging together stay within the budget of tier 0") {
  context ctx;
  auto cache = ladder::open(ctx, pattern::layout(), {.capacity = 24 * block}, {.capacity = 16 * block},
                            {.capacity = 256 * block});
  REQUIRE(cache);
  sequence s = cache->make_sequence();
  for (int i = 0; i < 60; ++i) REQUIRE(pattern::append(s, 16, 2, 1));
  for (std::uint32_t row = 0; row < 2; ++row) {
    const auto ids = pattern::sealed(s, row);
    for (std::size_t i = 0; i + 4 <= ids.size(); i += 4)
      REQUIRE(ctx.sync_wait(cache->acquire(std::span(ids).subspan(i, 4))));
  }
  CHECK(cache->stats().hot_bytes_peak <= 24 * block);
  CHECK(cache->stats().tiers[2].loads > 0);
}

TEST_CASE("a lossy ladder says what fidelity a lease gives, and coding again loses nothing") {
  context ctx;
  auto cache = ladder::open(ctx, pattern::layout(1), {.capacity = 16 * block}, {.capacity = 8 * block},
                            {.capacity = 256 * block});
  REQUIRE(cache);
  sequence s = cache->make_sequence();
  for (int i = 0; i < 40; ++i) REQUIRE(pattern::append(s, 16, 1, 1));
  REQUIRE(ctx.sync_wait(cache->flush()));
  const auto ids = pattern::sealed(s, 0);
  std::vector<std::byte> first(block);
  for (int round = 0; round < 5; ++round) {
    auto held = ctx.sync_wait(cache->acquire(std::span(ids).first(1)));
    REQUIRE(held);
    CHECK((*held)[0].quality == fidelity{q8_0::loss});
    if (round == 0) std::memcpy(first.data(), (*held)[0].data, block);
    CHECK(std::memcmp(first.data(), (*held)[0].data, block) == 0);
    held->release();
    for (std::size_t i = 1; i + 4 < ids.size(); i += 4)  // drives it out again
      REQUIRE(ctx.sync_wait(cache->acquire(std::span(ids).subspan(i, 4))));
  }
}

TEST_CASE("a tier of capacity 0 is left out") {
  context ctx;
  auto cache = ladder::open(ctx, pattern::layout(), {.capacity = 16 * block}, {.capacity = 0},
                            {.capacity = 256 * block});
  REQUIRE(cache);
  sequence s = cache->make_sequence();
  for (int i = 0; i < 30; ++i) REQUIRE(pattern::append(s, 16, 2, 1));
  REQUIRE(ctx.sync_wait(cache->flush()));
  CHECK(cache->stats().tiers[1].stores == 0);
  CHECK(cache->stats().tiers[2].stores == 60);
}

TEST_CASE("a cache over memory that the caller owns") {
  context ctx;
  auto* memory = static_cast<std::byte*>(std::aligned_alloc(4096, 16 * block));
  {
    auto cache = tiered_cache<tier<ram>, lru>::open(ctx, pattern::layout(), {.memory = {memory, 16 * block}});
    REQUIRE(cache);
    sequence s = cache->make_sequence();
    REQUIRE(pattern::append(s, 16, 2, 1));
    auto held = ctx.sync_wait(cache->acquire(pattern::sealed(s, 0)));
    REQUIRE(held);
    CHECK((*held)[0].data >= memory);
    CHECK((*held)[0].data < memory + 16 * block);
  }
  CHECK_FALSE(
      (tiered_cache<tier<ram>, lru>::open(ctx, pattern::layout(), {.memory = {memory + 1, 8 * block}})));
  {
    // A lower tier too; and a capacity beside memory is ignored, where it is tiny as well.
    auto cache = tiered_cache<tier<ram>, tier<ram>, lru>::open(ctx, pattern::layout(),
                                                               {.capacity = 1, .memory = {memory, 8 * block}},
                                                               {.memory = {memory + 8 * block, 8 * block}});
    REQUIRE(cache);
    CHECK(cache->stats().tiers[0].capacity_bytes == 8 * block);
    CHECK(cache->stats().tiers[1].capacity_bytes == 8 * block);
    sequence s = cache->make_sequence();
    for (int i = 0; i < 6; ++i) REQUIRE(pattern::append(s, 16, 2, 1));
    CHECK(cache->stats().tiers[1].stores != 0);
  }
  std::free(memory);
}

TEST_CASE("a deadline of any size is a time limit") {
  for (const auto deadline : {std::chrono::milliseconds::max(), std::chrono::milliseconds(1),
                              std::chrono::milliseconds(0), std::chrono::milliseconds::min()}) {
    cache_options tuning;
    tuning.transfers.deadline = deadline;
    CHECK(tuning.transfers.time_limit() >= std::chrono::milliseconds(0));
    CHECK(tuning.transfers.time_limit() < std::chrono::hours(24 * 365 * 51));
    if (deadline < std::chrono::milliseconds::max()) continue;
    context ctx;
    auto cache = tiered_cache<tier<ram>, tier<ram>, lru>::open(
        ctx, pattern::layout(), {.capacity = 8 * block}, {.capacity = 64 * block}, {}, tuning);
    REQUIRE(cache);
    sequence s = cache->make_sequence();
    for (int i = 0; i < 20; ++i) REQUIRE(pattern::append(s, 16, 2, 1));
    REQUIRE(ctx.sync_wait(cache->flush()));
    CHECK(ctx.sync_wait(cache->acquire(pattern::sealed(s, 0))));
    CHECK(cache->health(1).failures == 0);
  }
}

TEST_CASE("the cool file is the owner's alone and goes with the cache") {
  folder f;
  const std::string path = f.path + "/kv.bin";
  {
    context ctx;
    auto cache = ladder::open(ctx, pattern::layout(), {.capacity = 32 * block}, {.capacity = 16 * block},
                              {.capacity = 64 * block, .path = path});
    REQUIRE(cache);
    struct stat what {};
    REQUIRE(::stat(path.c_str(), &what) == 0);
    CHECK((what.st_mode & 0777) == 0600);
    CHECK(what.st_size == static_cast<off_t>(64 * block));
  }
  CHECK_FALSE(std::filesystem::exists(path));
}

TEST_CASE("what cannot be opened says why and leaves nothing behind") {
  context ctx;
  folder f;
  const auto open = [&](std::size_t hot, std::string path, kv_layout layout = pattern::layout()) {
    return ladder::open(ctx, std::move(layout), {.capacity = hot}, {.capacity = 16 * block},
                        {.capacity = 64 * block, .path = std::move(path)});
  };
  CHECK(open(32 * block, f.path + "/no/such/folder").error().code == errc::io_error);
  CHECK(open(32 * block, f.path).error().code == errc::io_error);  // a directory
  CHECK(open(32 * block, "/dev/null").error().code == errc::invalid_argument);
  CHECK(open(0, "").error().code == errc::invalid_argument);
  CHECK(open(block, "").error().code == errc::invalid_argument);
  CHECK(open(32 * block, "", {}).error().code == errc::invalid_argument);
  CHECK(open(32 * block, "", {.groups = {{.first_layer = 1, .layers = 1, .k = {1, 64}, .v = {1, 64}}}})
            .error()
            .code == errc::invalid_argument);
  CHECK(open(32 * block, "", {.groups = {{.layers = 1, .tokens = 16, .k = {1, 48}, .v = {1, 48}}}})
            .error()
            .code == errc::invalid_argument);  // q8_0 needs multiples of 32
  // A symbolic link is not followed.
  std::filesystem::create_symlink("/tmp/terrace-elsewhere", f.path + "/link");
  CHECK(open(32 * block, f.path + "/link").error().code == errc::io_error);
  CHECK_FALSE(std::filesystem::exists("/tmp/terrace-elsewhere"));
  std::filesystem::remove(f.path + "/link");
  CHECK(std::filesystem::is_empty(f.path));
}

TEST_CASE("a tier that is left out costs no staging") {
  using with_cold = tiered_cache<tier<ram>, tier<ram>, tier<directory, zstd<>>, lru>;
  context ctx;
  auto without = with_cold::open(ctx, pattern::layout(), {.capacity = 16 * pattern::block_bytes},
                                 {.capacity = 32 * pattern::block_bytes}, {.capacity = 0});
  REQUIRE(without);
  CHECK(without->stats().tiers[0].capacity_bytes == 16 * pattern::block_bytes);
}
