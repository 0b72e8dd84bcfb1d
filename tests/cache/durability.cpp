// Blocks that outlive their cache, under their names.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "catch.hpp"
#include "medium/sandbox.hpp"
#include "pattern.hpp"
#include "terrace/codec/q8_0.hpp"
#include "terrace/medium/directory.hpp"
#include "terrace/medium/nvme.hpp"
#include "terrace/policy/lru.hpp"
#include "terrace/testing/faulty.hpp"
#include "terrace/tiered_cache.hpp"

using namespace terrace;

namespace {

constexpr std::size_t slot = pattern::block_bytes;
using ladder = tiered_cache<tier<ram>, tier<ram>, tier<nvme>, tier<directory>, lru>;

block_key key_of(std::uint64_t block) { return {.low = block + 1, .high = ~block}; }

// A cache over a folder that stays.
struct kept_cache {
  explicit kept_cache(const sandbox::folder& f, std::size_t nvme_blocks = 256,
                      std::size_t directory_blocks = 256, cache_options tuning = {},
                      kv_layout layout = pattern::layout(1))
      : opened(ladder::open(ctx, layout, {.capacity = 40 * slot}, {.capacity = 16 * slot},
                            {.capacity = nvme_blocks * slot, .path = f / "kv", .keep = true},
                            {.capacity = directory_blocks * slot, .path = f / "cold", .keep = true}, {},
                            tuning)) {}
  kept_cache(kept_cache&&) = delete;
  ladder& cache() { return *opened; }

  // A sequence of its own: appends blocks, names them first..., and returns how many of them have found room.
  std::size_t write(std::uint64_t first, std::size_t blocks) {
    sequence s = cache().make_sequence();
    for (std::size_t i = 0; i < blocks; ++i) {
      if (!pattern::append(s, 16, 1, static_cast<std::uint32_t>(first))) return i;
      REQUIRE(cache().name(pattern::sealed(s, 0)[i], key_of(first + i)));
    }
    return blocks;
  }
  bool flush() { return ctx.sync_wait(cache().flush()).has_value(); }
  enum class answer { missing, lost, wrong, right };
  answer read(std::uint64_t first, std::size_t block) {
    const auto id = cache().find(key_of(first + block));
    if (!id) return answer::missing;
    const auto held = ctx.sync_wait(cache().acquire({&*id, 1}));
    if (!held) return answer::lost;
    return pattern::holds(cache().layout().groups[0], (*held)[0].data, 0, block,
                          static_cast<std::uint32_t>(first), 16)
               ? answer::right
               : answer::wrong;
  }

  context ctx{{.codec_threads = 0}};
  result<ladder> opened;
};
using answer = kept_cache::answer;

bool durable(kept_cache& c, std::uint64_t number) {
  const block_id id = *c.cache().find(key_of(number));
  return c.cache().control().copy(id.index, 2).durable || c.cache().control().copy(id.index, 3).durable;
}

void flip(const std::string& path, std::uint64_t at) {
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekg(static_cast<std::streamoff>(at));
  const auto byte = static_cast<char>(file.get() ^ 8);
  file.seekp(static_cast<std::streamoff>(at));
  file.put(byte);
}

}  // namespace

TEST_CASE("what was flushed is found after reopening, from either tier, and is right") {
  const sandbox::folder f;
  {
    kept_cache c(f, 64, 256);  // more blocks than nvme holds
    REQUIRE(c.opened);
    CHECK(c.write(1000, 100) == 100);
    CHECK(c.flush());
    CHECK(c.cache().stats().tiers[3].stores > 0);
  }
  for (int time = 0; time < 2; ++time) {
    kept_cache c(f, 64, 256);
    REQUIRE(c.opened);
    for (std::size_t i = 0; i < 100; ++i) REQUIRE(c.read(1000, i) == answer::right);
    CHECK(c.read(1000, 100) == answer::missing);
    CHECK(c.cache().stats().blocks == 100);
  }
}

TEST_CASE("what was forgotten is gone after reopening, and its room can be used") {
  const sandbox::folder f;
  {
    kept_cache c(f);
    REQUIRE(c.opened);
    CHECK(c.write(1000, 50) == 50);
    CHECK(c.flush());
    for (std::uint64_t i = 0; i < 25; ++i) c.cache().forget(key_of(1000 + i));
    CHECK(c.read(1000, 3) == answer::missing);
  }
  kept_cache c(f);
  REQUIRE(c.opened);
  for (std::size_t i = 0; i < 50; ++i) REQUIRE(c.read(1000, i) == (i < 25 ? answer::missing : answer::right));
  for (std::uint64_t i = 25; i < 50; ++i) c.cache().forget(key_of(1000 + i));
  CHECK(c.cache().stats().tiers[2].resident_bytes == 0);
  CHECK(c.cache().stats().tiers[3].resident_bytes == 0);
  CHECK(c.write(5000, 60) == 60);
  CHECK(c.flush());
}

TEST_CASE("a copy that is not what its header says is no reason to drop another one") {
  const sandbox::folder f, alone;
  {
    kept_cache c(f, 64, 256);
    REQUIRE(c.opened);
    CHECK(c.write(1000, 100) == 100);
    CHECK(c.flush());
  }
  // What nvme has, by itself, and of that what the directory has as well.
  std::filesystem::copy(f / "kv", alone / "kv");
  std::vector<std::size_t> in_nvme;
  {
    kept_cache c(alone, 64, 256);
    for (std::size_t i = 0; i < 100; ++i)
      if (c.read(1000, i) == answer::right) in_nvme.push_back(i);
  }
  REQUIRE(in_nvme.size() > 40);
  // As after a crash, when the numbers of files had been used again and their headers were still there.
  std::size_t files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(f / "cold/kv-store"))
    if (entry.path().filename() != "index") {
      flip(entry.path(), 77);
      ++files;
    }
  REQUIRE(in_nvme.size() + files > 100);  // some have two copies
  kept_cache c(f, 64, 256);
  REQUIRE(c.opened);
  CHECK(c.cache().stats().blocks == 100);
  CHECK(c.write(5000, 100) == 100);  // makes nvme let go what it can
  static_cast<void>(c.flush());
  for (const std::size_t i : in_nvme) REQUIRE(c.read(1000, i) == answer::right);
}

TEST_CASE("a copy that cannot be read at opening stays, for the next read of it may succeed") {
  using type = tiered_cache<tier<ram>, tier<faulty>, tier<faulty>, lru>;
  faulty_device near{64 * slot}, far{256 * slot};
  context ctx{{.codec_threads = 0}};
  const auto open = [&] {
    return type::open(ctx, pattern::layout(1), {.capacity = 40 * slot},
                      {.capacity = near.capacity(), .device = &near, .keep = true},
                      {.capacity = far.capacity(), .device = &far, .keep = true});
  };
  {
    auto cache = open();
    REQUIRE(cache);
    sequence s = cache->make_sequence();
    for (std::uint64_t i = 0; i < 100; ++i) {
      REQUIRE(pattern::append(s, 16, 1, 1));
      REQUIRE(cache->name(pattern::sealed(s, 0)[i], key_of(i)));
    }
    REQUIRE(ctx.sync_wait(cache->flush()));
  }
  far.rates.io_error = 1;
  auto cache = open();
  REQUIRE(cache);
  far.rates.io_error = 0;
  std::size_t in_both = 0;
  for (std::uint64_t i = 0; i < 100; ++i) {
    const auto id = cache->find(key_of(i));
    REQUIRE(id);
    const auto& near_copy = cache->control().copy(id->index, 1);
    const auto& far_copy = cache->control().copy(id->index, 2);
    if (!near_copy.present() || !far_copy.present()) continue;
    ++in_both;
    REQUIRE(far_copy.doubtful);
    REQUIRE(cache->report_damaged(*id, 1));
    const auto held = ctx.sync_wait(cache->acquire({&*id, 1}));
    REQUIRE(held);
    REQUIRE(pattern::holds(cache->layout().groups[0], (*held)[0].data, 0, i, 1, 16));
    REQUIRE_FALSE(far_copy.doubtful);
  }
  REQUIRE(in_both > 10);
  CHECK(cache->stats().tiers[2].failed_reads == in_both);
}

TEST_CASE("a name that was forgotten, or given to another block, is what it was at the flush") {
  const sandbox::folder f, copy;
  kept_cache c(f);
  REQUIRE(c.opened);
  sequence s = c.cache().make_sequence();  // refers to the blocks to the end
  for (std::uint32_t tag : {1u, 2u, 3u}) REQUIRE(pattern::append(s, 16, 1, tag));
  const auto ids = pattern::sealed(s, 0);
  for (std::size_t i = 0; i < 3; ++i) REQUIRE(c.cache().name(ids[i], key_of(i)));
  REQUIRE(c.flush());
  c.cache().forget(key_of(0));
  c.cache().forget(key_of(1));
  REQUIRE(c.cache().name(ids[1], key_of(0)));
  REQUIRE(c.flush());
  c.cache().forget(key_of(2));
  REQUIRE(c.flush());  // of nothing but that
  // As a crash would leave it: with the cache still at work.
  std::filesystem::copy(
      f.path, copy.path,
      std::filesystem::copy_options::recursive | std::filesystem::copy_options::overwrite_existing);
  kept_cache after(copy);
  REQUIRE(after.opened);
  CHECK_FALSE(after.cache().find(key_of(1)));
  CHECK_FALSE(after.cache().find(key_of(2)));
  const auto id = after.cache().find(key_of(0));
  REQUIRE(id);
  const auto held = after.ctx.sync_wait(after.cache().acquire({&*id, 1}));
  REQUIRE(held);
  CHECK(pattern::holds(after.cache().layout().groups[0], (*held)[0].data, 0, 1, 2, 16));
}

// The nvme tier has a block under a name that the directory's block has got since. When both are opened, the newer one
// counts, and a flush must not say so before the older one is gone for good: the newer one may be forgotten, and that
// may survive a crash sooner than the rest.
TEST_CASE("a block that another has replaced while it was not looked at does not come back") {
  const sandbox::folder f, after_a_crash;
  const auto write = [](auto& ctx, auto& cache, std::uint32_t tag) {
    cache->forget(key_of(1));
    sequence s = cache->make_sequence();
    REQUIRE(pattern::append(s, 16, 1, tag));
    REQUIRE(cache->name(pattern::sealed(s, 0)[0], key_of(1)));
    REQUIRE(ctx.sync_wait(cache->flush()));
  };
  using over_nvme = tiered_cache<tier<ram>, tier<nvme>, lru>;
  using over_directory = tiered_cache<tier<ram>, tier<directory>, lru>;
  const auto open_nvme = [](context& ctx, const sandbox::folder& where) {
    return over_nvme::open(ctx, pattern::layout(1), {.capacity = 16 * slot},
                           {.capacity = 256 * slot, .path = where / "kv", .keep = true});
  };
  {
    context ctx{{.codec_threads = 0}};
    auto cache = open_nvme(ctx, f);
    REQUIRE(cache);
    write(ctx, cache, 1);
  }
  {
    context ctx{{.codec_threads = 0}};
    auto cache = over_directory::open(ctx, pattern::layout(1), {.capacity = 16 * slot},
                                      {.capacity = 256 * slot, .path = f / "cold", .keep = true});
    REQUIRE(cache);
    write(ctx, cache, 2);
    write(ctx, cache, 3);  // its naming is above that of the nvme tier's
  }
  {
    kept_cache c(f);
    REQUIRE(c.opened);
    CHECK(c.cache().find(key_of(1)));
    CHECK(c.flush());
    std::filesystem::copy_file(f / "kv", after_a_crash / "kv");
  }
  context ctx{{.codec_threads = 0}};
  auto cache = open_nvme(ctx, after_a_crash);
  REQUIRE(cache);
  CHECK_FALSE(cache->find(key_of(1)));
}

TEST_CASE("a full store says so, and keeps what it has acknowledged") {
  const sandbox::folder f;
  std::size_t acknowledged = 0;
  {
    kept_cache c(f, 40, 40);
    REQUIRE(c.opened);
    for (; acknowledged < 400; acknowledged += 5) {
      if (c.write(acknowledged * 100, 5) != 5 || !c.flush()) break;
    }
    CHECK(acknowledged >= 40);
    CHECK(acknowledged < 200);
    CHECK(std::filesystem::file_size(f / "kv") <= 40 * slot);
  }
  kept_cache c(f, 40, 40);
  REQUIRE(c.opened);
  for (std::size_t first = 0; first < acknowledged; first += 5)
    for (std::size_t i = 0; i < 5; ++i) REQUIRE(c.read(first * 100, i) == answer::right);
}

TEST_CASE("another model, layout, codec, capacity or version is refused, and left as it is") {
  const sandbox::folder f;
  {
    kept_cache c(f);
    REQUIRE(c.opened);
    CHECK(c.write(1000, 10) == 10);
    CHECK(c.flush());
    kept_cache second(f);  // while the first has it
    REQUIRE_FALSE(second.opened);
    CHECK(second.opened.error().code == errc::unavailable);
  }
  const auto refused = [&](errc why, auto&&... how) {
    kept_cache c(f, how...);
    return !c.opened && c.opened.error().code == why;
  };
  CHECK(refused(errc::invalid_argument, 256u, 256u, cache_options{.model = {1, 0, 1}}));
  CHECK(refused(errc::invalid_argument, 256u, 256u, cache_options{.model = {0, 1, 2}}));
  CHECK(refused(errc::invalid_argument, 256u, 256u, cache_options{}, pattern::layout(2)));
  CHECK(refused(errc::invalid_argument, 128u, 256u));
  CHECK(refused(errc::invalid_argument, 256u, 128u));
  flip(f / "kv", 8);
  CHECK(refused(errc::unavailable));
  flip(f / "kv", 8);
  flip(f / "kv", 50);
  CHECK(refused(errc::corrupt));
  flip(f / "kv", 50);
  {
    kept_cache c(f);
    REQUIRE(c.opened);
    for (std::size_t i = 0; i < 10; ++i) CHECK(c.read(1000, i) == answer::right);
  }
  REQUIRE(::truncate((f / "kv").c_str(), 100 * 4096) == 0);
  CHECK(refused(errc::corrupt));
  REQUIRE(::truncate((f / "kv").c_str(), 100) == 0);
  CHECK(refused(errc::corrupt));
  std::ofstream(f / "kv") << "somebody's letters";
  CHECK(refused(errc::corrupt));
  CHECK(std::filesystem::file_size(f / "kv") == 18);
}

TEST_CASE("damage on disk loses blocks, and serves none wrong") {
  const sandbox::folder f;
  {
    kept_cache c(f, 64, 256);
    REQUIRE(c.opened);
    CHECK(c.write(1000, 100) == 100);
    CHECK(c.flush());
  }
  // One bit in every 3000 bytes behind the superblock, and in every file.
  for (std::uint64_t at = 4096 + 77; at < 64 * slot; at += 3001) flip(f / "kv", at);
  for (const auto& entry : std::filesystem::directory_iterator(f / "cold/kv-store"))
    if (entry.path().filename() != "index" && entry.path().filename() < "00000008") flip(entry.path(), 1234);
  kept_cache c(f, 64, 256);
  REQUIRE(c.opened);
  std::size_t right = 0;
  for (std::size_t i = 0; i < 100; ++i) {
    const answer a = c.read(1000, i);
    REQUIRE(a != answer::wrong);
    right += a == answer::right ? 1 : 0;
  }
  CHECK(right > 10);
  CHECK(right < 95);
}

TEST_CASE("a header of a row that the layout has not is of no block, whatever its checksum says") {
  const sandbox::folder f;
  {
    kept_cache c(f);
    REQUIRE(c.opened);
    CHECK(c.write(1000, 3) == 3);
    CHECK(c.flush());
  }
  // The forger knows the format: one header gets another row, and the checksum that goes with it.
  for (const std::string& path : {f / "kv", f / "cold/kv-store/index"}) {
    CAPTURE(path);
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    superblock_bytes head{};
    file.read(reinterpret_cast<char*>(head.data()), head.size());
    const auto super = decode_superblock(head);
    REQUIRE(super);
    for (std::uint64_t at = superblock::bytes; at < superblock::bytes + 8 * extent_header::bytes;
         at += extent_header::bytes) {
      extent_header_bytes bytes{};
      file.seekg(static_cast<std::streamoff>(at));
      file.read(reinterpret_cast<char*>(bytes.data()), bytes.size());
      auto header = decode_extent_header(bytes, *super);
      if (!header) continue;
      if (header->key == key_of(1001)) header->row = 1;
      bytes = encode(*header);
      file.seekp(static_cast<std::streamoff>(at));
      file.write(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    }
  }
  kept_cache c(f);
  REQUIRE(c.opened);
  CHECK(c.read(1000, 0) == answer::right);
  CHECK(c.read(1000, 1) == answer::missing);
  CHECK(c.read(1000, 2) == answer::right);
}

TEST_CASE("names: what cannot be named is refused; without a tier that keeps they are the cache's own") {
  using plain = tiered_cache<tier<ram>, tier<nvme>, lru>;
  context ctx;
  auto cache = plain::open(ctx, pattern::layout(1), {.capacity = 40 * slot}, {.capacity = 64 * slot});
  REQUIRE(cache);
  std::optional<sequence> s(cache->make_sequence());
  REQUIRE(pattern::append(*s, 40, 1, 1));
  const auto ids = s->pages().rows[0];
  REQUIRE(ids.size() == 3);
  CHECK(cache->name(ids[0], {}).error().code == errc::invalid_argument);
  CHECK(cache->name(ids[2], key_of(2)).error().code == errc::invalid_argument);  // open
  CHECK(cache->name(ids[0], key_of(0)));
  CHECK(cache->name(ids[0], key_of(0)));  // said twice
  CHECK_FALSE(cache->name(ids[0], key_of(1)));
  CHECK_FALSE(cache->name(ids[1], key_of(0)));
  CHECK(cache->find(key_of(0)) == ids[0]);
  CHECK_FALSE(cache->find(key_of(1)));
  CHECK(ctx.sync_wait(cache->flush()));
  s.reset();
  CHECK(cache->stats().blocks == 1);  // the name's
  CHECK(ctx.sync_wait(cache->acquire({&ids[0], 1})));
  cache->forget(key_of(0));
  cache->forget(key_of(0));
  CHECK_FALSE(cache->find(key_of(0)));
  CHECK(cache->stats().blocks == 0);
}

TEST_CASE(
    "a flush says lost as long as a block with a name is, and well again when it is computed anew or "
    "forgotten") {
  const sandbox::folder f;
  std::vector<block_key> named;
  {
    kept_cache c(f);
    REQUIRE(c.write(0, 80) == 80);
    REQUIRE(c.flush());
    const auto lose = [&](std::uint64_t block) {
      const block_id id = *c.cache().find(key_of(block));
      REQUIRE_FALSE(c.cache().control().copy(id.index, 0).present());
      for (std::size_t tier = 1; tier < 4; ++tier)
        if (c.cache().control().copy(id.index, tier).present()) REQUIRE(c.cache().report_damaged(id, tier));
      return id;
    };
    const block_id first = lose(1), second = lose(2);
    REQUIRE(c.write(80, 8) == 8);
    CHECK_FALSE(c.flush());
    for (std::uint64_t block = 80; block < 88; ++block) CHECK(durable(c, block));  // all the same
    REQUIRE(c.write(88, 1) == 1);
    CHECK_FALSE(c.flush());
    CHECK(durable(c, 88));
    c.cache().forget(key_of(2));
    CHECK(c.cache().range_of(second) == std::nullopt);
    auto still = c.ctx.sync_wait(c.cache().flush());
    REQUIRE_FALSE(still);
    CHECK(still.error().code == errc::lost);

    CHECK(c.cache().range_of(first) == block_range{.layers = 1, .first_token = 16, .tokens = 16});
    kept_cache source(sandbox::folder{}, 256, 256);  // where the same block is whole
    REQUIRE(source.write(0, 2) == 2);
    const block_id whole = *source.cache().find(key_of(1));
    const auto held = source.ctx.sync_wait(source.cache().acquire({&whole, 1}));
    REQUIRE(held);
    auto anew = c.cache().restore(first);
    REQUIRE(anew);
    std::memcpy(anew->data().data(), (*held)[0].data, anew->data().size());
    std::move(*anew).complete();
    CHECK(c.flush());
  }
  kept_cache c(f);
  CHECK(c.read(0, 1) == kept_cache::answer::right);
  std::size_t names = 0;
  c.cache().for_each_name([&](block_key key, block_id id) {
    ++names;
    CHECK(c.cache().find(key) == id);
  });
  CHECK(names == 88);
}
