#include "terrace/medium/directory.hpp"

#include <sys/stat.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <set>
#include <string>
#include <vector>

#include "catch.hpp"
#include "sandbox.hpp"
#include "terrace/execution/for_each.hpp"
#include "terrace/execution/sync_wait.hpp"
#include "watcher.hpp"

using namespace terrace;
using sandbox::folder;

namespace {

using bytes = std::vector<std::byte>;

bytes pattern(std::size_t n, unsigned tag) {
  bytes b(n);
  for (std::size_t i = 0; i < n; ++i) b[i] = static_cast<std::byte>(i / 256 + i * 7 + tag);
  return b;
}

bytes read_back(context& ctx, directory& m, extent e) {
  bytes b(e.bytes);
  REQUIRE(ctx.sync_wait(m.read(e, b)));
  return b;
}

std::set<std::string> names(const std::string& path) {
  std::set<std::string> found;
  for (const auto& entry : std::filesystem::directory_iterator(path))
    found.insert(entry.path().filename().string());
  return found;
}

}  // namespace

TEST_CASE("directory: files are the owner's alone and gone at the end") {
  const folder f;
  {
    context ctx;
    auto m = directory::open(ctx, {.capacity = 1_MiB, .path = f / "cold"});
    REQUIRE(m);
    CHECK(sandbox::mode_of(f / "cold") == 0700);
    CHECK(sandbox::mode_of((*m)->folder()) == 0700);
    for (unsigned i = 0; i < 3; ++i) {
      const auto e = (*m)->reserve(5000);
      REQUIRE(ctx.sync_wait((*m)->write(*e, pattern(5000, i))));
    }
    CHECK(names((*m)->folder()).size() == 3);
    for (const auto& name : names((*m)->folder()))
      CHECK(sandbox::mode_of((*m)->folder() + "/" + name) == 0600);
  }
  CHECK(f.empty());  // the directory that it made goes as well
}

TEST_CASE("directory: a foreign file is never touched") {
  const folder f;
  std::filesystem::create_directory(f / "cold");
  std::ofstream(f / "cold/00000000") << "mine";
  std::ofstream(f / "cold/00000000.new") << "mine too";
  {
    context ctx;
    auto one = directory::open(ctx, {.capacity = 1_MiB, .path = f / "cold"});
    auto two = directory::open(ctx, {.capacity = 1_MiB, .path = f / "cold"});
    REQUIRE(one);
    REQUIRE(two);
    CHECK((*one)->folder() != (*two)->folder());
    const auto first = (*one)->reserve(100), second = (*two)->reserve(100);
    REQUIRE(ctx.sync_wait((*one)->write(*first, pattern(100, 1))));
    REQUIRE(ctx.sync_wait((*two)->write(*second, pattern(100, 2))));
    CHECK(read_back(ctx, **one, *first) == pattern(100, 1));
    CHECK(read_back(ctx, **two, *second) == pattern(100, 2));
  }
  CHECK(names(f / "cold") == std::set<std::string>{"00000000", "00000000.new"});
  CHECK(std::filesystem::file_size(f / "cold/00000000") == 4);
}

TEST_CASE("directory: of a store the labelled extents stay, with nothing else beside them") {
  const folder f;
  std::string kept;
  const auto open = [&](context& ctx) {
    return directory::open(ctx, {.capacity = 1_MiB, .path = f.path, .keep = true});
  };
  {
    context ctx;
    auto m = open(ctx);
    REQUIRE(m);
    kept = (*m)->folder();
    CHECK(sandbox::mode_of(kept + "/index") == 0600);
    const auto e = (*m)->reserve(9000), gone = (*m)->reserve(100), unnamed = (*m)->reserve(200);
    REQUIRE(ctx.sync_wait((*m)->write(*e, pattern(9000, 1))));
    REQUIRE(ctx.sync_wait((*m)->write(*gone, pattern(100, 2))));
    REQUIRE(ctx.sync_wait((*m)->write(*unnamed, pattern(200, 3))));
    REQUIRE((*m)->label(*e, {.key = {1, 2}, .encoded = 9000}));
    REQUIRE((*m)->label(*gone, {.key = {3, 4}, .encoded = 100}));
    REQUIRE(ctx.sync_wait((*m)->sync()));
    (*m)->release(*gone);
  }
  std::ofstream(kept + "/00000007.new") << "unfinished";
  std::ofstream(kept + "/notes") << "mine";
  context ctx;
  auto m = open(ctx);
  REQUIRE(m);
  CHECK(names(kept) == std::set<std::string>{"00000000", "index", "notes"});
  CHECK((*m)->used() == 3 * 4096);
  std::vector<extent> found;
  (*m)->scan([&](extent at, const extent_header& h) {
    CHECK(h.key == block_key{1, 2});
    found.push_back(at);
    return true;
  });
  REQUIRE(found.size() == 1);
  std::vector<std::byte> back(9000);
  REQUIRE(ctx.sync_wait((*m)->read(found[0], back)));
  CHECK(back == pattern(9000, 1));
}

TEST_CASE("directory: the capacity bounds the files together") {
  const folder f;
  context ctx;
  auto m = directory::open(ctx, {.capacity = 40 * 4096 + 4095, .path = f.path});
  REQUIRE(m);
  CHECK((*m)->capacity() == 40 * 4096);
  CHECK_FALSE((*m)->reserve(0));
  CHECK_FALSE((*m)->reserve(40 * 4096 + 1));
  std::vector<extent> held;
  while (auto e = (*m)->reserve(4097)) held.push_back(*e);
  CHECK(held.size() == 20);
  CHECK((*m)->used() == 40 * 4096);
  (*m)->release(held.back());
  CHECK((*m)->used() == 38 * 4096);
  CHECK((*m)->reserve(8192));
}

TEST_CASE("directory: released files leave, and their numbers come back") {
  const folder f;
  context ctx;
  auto m = directory::open(ctx, {.capacity = 1_MiB, .path = f.path});
  REQUIRE(m);
  // A file that is written while an older one of the medium is being removed is not the one that goes.
  std::optional<extent> before;
  for (unsigned i = 0; i < 300; ++i) {
    const auto e = (*m)->reserve(100);
    REQUIRE(e);
    if (before) (*m)->release(*before);
    REQUIRE(ctx.sync_wait((*m)->write(*e, pattern(100, i))));
    REQUIRE(read_back(ctx, **m, *e) == pattern(100, i));
    CHECK(e->node < 50);  // not a new one each time
    before = e;
  }
}

TEST_CASE("directory: a number is not used again before its file is gone") {
  const folder f;
  context ctx;
  auto m = directory::open(ctx, {.capacity = 1_MiB, .path = f.path});
  REQUIRE(m);
  for (unsigned round = 0; round < 10; ++round) {
    std::vector<extent> held;
    for (unsigned i = 0; i < 20; ++i) {
      held.push_back(*(*m)->reserve(100));
      REQUIRE(ctx.sync_wait((*m)->write(held.back(), pattern(100, i))));
    }
    for (const extent& e : held) (*m)->release(e);
    held.clear();
    // Some are gone by now and some are not: whichever these are, no file may be left to be removed later.
    for (unsigned i = 0; i < 20; ++i) {
      held.push_back(*(*m)->reserve(100));
      bytes into(100);
      CHECK_FALSE(ctx.sync_wait((*m)->read(held.back(), into)));
    }
    for (const extent& e : held) (*m)->release(e);
  }
}

TEST_CASE("directory: a shorter write keeps the rest of the file") {
  const folder f;
  context ctx;
  auto m = directory::open(ctx, {.capacity = 1_MiB, .path = f.path});
  REQUIRE(m);
  const auto e = (*m)->reserve(100'000);
  REQUIRE(ctx.sync_wait((*m)->write(*e, pattern(100'000, 1))));
  REQUIRE(ctx.sync_wait((*m)->write(*e, pattern(777, 2))));
  bytes expected = pattern(100'000, 1);
  const bytes front = pattern(777, 2);
  std::copy(front.begin(), front.end(), expected.begin());
  CHECK(read_back(ctx, **m, *e) == expected);
  REQUIRE(ctx.sync_wait((*m)->write(*e, bytes())));
  CHECK(read_back(ctx, **m, *e) == expected);
}

TEST_CASE("directory: what cannot be opened says why in one sentence and leaves nothing behind") {
  context ctx;
  const folder f;
  const auto open = [&](const std::string& path, std::size_t capacity = 1_MiB) {
    return directory::open(ctx, {.capacity = capacity, .path = path}).error();
  };
  CHECK(open(f / "cold", 0).code == errc::invalid_argument);
  CHECK(open(f / "cold", 4095).code == errc::invalid_argument);
  CHECK(f.empty());
  const error no_parent = open(f / "no/such");
  CHECK(no_parent == error{errc::io_error, "", ENOENT});
  CHECK(no_parent.message() == "the directory of a directory tier cannot be made: No such file or directory");
  CHECK(open(f / std::string(300, 'x')) == error{errc::io_error, "", ENAMETOOLONG});
  std::ofstream(f / "file") << "mine";
  CHECK(open(f / "file") == error{errc::io_error, "", ENOTDIR});
  CHECK(open("/proc") == error{errc::io_error, "", ENOENT});  // it is there, and takes nothing
  CHECK(names(f.path) == std::set<std::string>{"file"});
}

TEST_CASE("directory: a full disk is an error of the write, and over once there is room") {
  sandbox::with_small_disk(256_KiB, [](const std::string& path) {
    context ctx;
    auto m = directory::open(ctx, {.capacity = 1_GiB, .path = path});
    REQUIRE(m);
    const auto large = (*m)->reserve(1_MiB), small = (*m)->reserve(64_KiB), other = (*m)->reserve(128_KiB);
    REQUIRE(ctx.sync_wait((*m)->write(*small, pattern(64_KiB, 1))));
    const auto refused = ctx.sync_wait((*m)->write(*large, pattern(1_MiB, 2)));
    REQUIRE_FALSE(refused);
    CHECK(refused.error() == error{errc::io_error, "", ENOSPC});
    CHECK(names((*m)->folder()).size() == 1);  // nothing half-written stays
    CHECK(read_back(ctx, **m, *small) == pattern(64_KiB, 1));
    CHECK(ctx.sync_wait((*m)->write(*other, pattern(128_KiB, 3))));
    // A version that does not fit leaves the one before it whole.
    CHECK_FALSE(ctx.sync_wait((*m)->write(*other, pattern(128_KiB, 4))));
    CHECK(read_back(ctx, **m, *other) == pattern(128_KiB, 3));
  });
}

TEST_CASE("directory: a file that was taken away or cut is an error, never other bytes") {
  const folder f;
  context ctx;
  auto m = directory::open(ctx, {.capacity = 1_MiB, .path = f.path});
  REQUIRE(m);
  const auto cut = (*m)->reserve(8192), gone = (*m)->reserve(8192);
  REQUIRE(ctx.sync_wait((*m)->write(*cut, pattern(8192, 1))));
  const std::string file = (*m)->folder() + "/" + *names((*m)->folder()).begin();
  REQUIRE(::truncate(file.c_str(), 100) == 0);
  bytes into(8192);
  const auto shorter = ctx.sync_wait((*m)->read(*cut, into));
  REQUIRE_FALSE(shorter);
  CHECK(shorter.error().code == errc::corrupt);
  CHECK(ctx.sync_wait((*m)->read(*gone, into)).error() == error{errc::corrupt, "", ENOENT});
  // A symbolic link in place of a file is not followed.
  std::filesystem::remove(file);
  std::ofstream(f / "elsewhere") << "their";
  std::filesystem::create_symlink(f / "elsewhere", file);
  CHECK(ctx.sync_wait((*m)->read(*cut, into)).error() == error{errc::io_error, "", ELOOP});
  REQUIRE(ctx.sync_wait((*m)->write(*cut, pattern(8192, 2))));  // and is replaced, not written through
  CHECK(read_back(ctx, **m, *cut) == pattern(8192, 2));
  CHECK(std::filesystem::file_size(f / "elsewhere") == 5);
}

TEST_CASE("directory: a transfer that was stopped before it began is not carried out") {
  const folder f;
  context ctx;
  auto m = directory::open(ctx, {.capacity = 1_MiB, .path = f.path});
  REQUIRE(m);
  const auto e = (*m)->reserve(100);
  ex::inplace_stop_source stop;
  stop.request_stop();
  ending how{};
  const bytes from = pattern(100, 1);
  auto operation = ex::connect((*m)->write(*e, from), watcher{&how, stop.get_token()});
  ex::start(operation);
  CHECK(how == ending::none);  // never from within start(): completions run in the context
  while (how == ending::none) ctx.wait(context::clock::time_point::max());
  CHECK(how == ending::stopped);
  CHECK(names((*m)->folder()).empty());
}

TEST_CASE("directory: many transfers at once, each complete on the owner") {
  const folder f;
  context ctx;
  auto m = directory::open(ctx, {.capacity = 4_MiB, .path = f.path});
  REQUIRE(m);
  constexpr std::size_t count = 60;
  std::vector<extent> at;
  std::vector<bytes> contents, read(count);
  for (unsigned i = 0; i < count; ++i) {
    at.push_back(*(*m)->reserve(1000 + 1000 * i % 7000));
    contents.push_back(pattern(at[i].bytes, i));
    read[i].resize(at[i].bytes);
  }
  unsigned on_owner = 0;
  const auto counted = [&]() noexcept { on_owner += ctx.on_owner_thread() ? 1 : 0; };
  REQUIRE(ctx.sync_wait(for_each(count, 16, [&](std::size_t i) noexcept {
    return ex::then((*m)->write(at[i], contents[i]), counted);
  })));
  REQUIRE(ctx.sync_wait(for_each(
      count, 16, [&](std::size_t i) noexcept { return ex::then((*m)->read(at[i], read[i]), counted); })));
  CHECK(on_owner == 2 * count);
  CHECK(read == contents);
}

TEST_CASE("directory: a capacity that changes is a limit, and moves nothing") {
  context ctx;
  const folder f;
  auto opened = directory::open(ctx, {.capacity = 64_KiB, .path = f.path});
  REQUIRE(opened);
  directory& m = **opened;
  const auto first = m.reserve(32_KiB), second = m.reserve(32_KiB);
  const bytes out = pattern(32_KiB, 4);
  REQUIRE(ctx.sync_wait(m.write(*second, out)));
  REQUIRE(m.resize(40_KiB + 1));
  CHECK(m.capacity() == 40_KiB);
  CHECK(m.used() == 64_KiB);
  CHECK_FALSE(m.reserve(1));
  m.release(*first);
  CHECK_FALSE(m.reserve(8_KiB + 1));
  CHECK(m.reserve(8_KiB));
  CHECK(read_back(ctx, m, *second) == out);
  REQUIRE(m.resize(1_MiB));
  CHECK(m.reserve(900_KiB));
}
