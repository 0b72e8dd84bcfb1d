// Media that keep: what is found again, and what a crash or a stranger may have left.
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "catch.hpp"
#include "sandbox.hpp"
#include "terrace/execution/sync_wait.hpp"
#include "terrace/medium/directory.hpp"
#include "terrace/medium/nvme.hpp"

using namespace terrace;
using sandbox::folder;

namespace {

struct alignas(4096) page {
  std::array<std::byte, 4096> bytes{};
};

template <class M>
result<std::unique_ptr<M>> open(context& ctx, const std::string& path, std::size_t capacity = 1_MiB) {
  return M::open(ctx, {.capacity = capacity, .path = path, .keep = true});
}
template <class M>
std::map<std::uint64_t, extent> found_in(M& m) {
  std::map<std::uint64_t, extent> found;
  m.scan([&](extent at, const extent_header& h) {
    found[h.key.low] = at;
    return true;
  });
  return found;
}
// Writes a page of `tag`s under that key.
template <class M>
extent put(context& ctx, M& m, unsigned tag) {
  page p;
  p.bytes.fill(std::byte(tag));
  const auto e = m.reserve(4096);
  REQUIRE(e);
  REQUIRE(ctx.sync_wait(m.write(*e, p.bytes)));
  REQUIRE(m.label(*e, {.key = {tag, 0}, .encoded = 4096, .checksum = tag}));
  return *e;
}
template <class M>
bool holds(context& ctx, M& m, extent e, unsigned tag) {
  page p;
  REQUIRE(ctx.sync_wait(m.read(e, p.bytes)));
  return std::all_of(p.bytes.begin(), p.bytes.end(), [&](std::byte b) { return b == std::byte(tag); });
}

std::vector<char> bytes_at(const std::string& path, std::size_t at, std::size_t n) {
  std::vector<char> bytes(n);
  std::ifstream file(path, std::ios::binary);
  file.seekg(static_cast<std::streamoff>(at));
  file.read(bytes.data(), static_cast<std::streamsize>(n));
  return bytes;
}
void write_at(const std::string& path, std::size_t at, const std::vector<char>& bytes) {
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(static_cast<std::streamoff>(at));
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

}  // namespace

TEMPLATE_TEST_CASE("a store: labelled extents are found again, the room of the others is free", "", nvme,
                   directory) {
  const folder f;
  {
    context ctx;
    auto m = open<TestType>(ctx, f / "kv");
    REQUIRE(m);
    CHECK((*m)->keeps());
    CHECK(found_in(**m).empty());
    for (unsigned tag = 1; tag <= 60; ++tag) put(ctx, **m, tag);
    const extent gone = put(ctx, **m, 61);
    REQUIRE((*m)->reserve(4096));  // not labelled
    REQUIRE(ctx.sync_wait((*m)->sync()));
    (*m)->release(gone);
  }
  context ctx;
  auto m = open<TestType>(ctx, f / "kv");
  REQUIRE(m);
  const auto found = found_in(**m);
  CHECK(found.size() == 60);
  for (const auto& [tag, at] : found) CHECK(holds(ctx, **m, at, static_cast<unsigned>(tag)));
  CHECK((*m)->used() == 60 * 4096);
  // All the rest can be used, and nothing of it is what was found.
  while (const auto e = (*m)->reserve(4096)) {
    page p;
    REQUIRE(ctx.sync_wait((*m)->write(*e, p.bytes)));
  }
  for (const auto& [tag, at] : found) CHECK(holds(ctx, **m, at, static_cast<unsigned>(tag)));
  for (const auto& [tag, at] : found) (*m)->release(at);
}

TEMPLATE_TEST_CASE("a store: what the visitor does not take is released, and does not come back", "", nvme,
                   directory) {
  const folder f;
  {
    context ctx;
    auto m = open<TestType>(ctx, f / "kv");
    REQUIRE(m);
    for (unsigned tag = 1; tag <= 9; ++tag) put(ctx, **m, tag);
    REQUIRE(ctx.sync_wait((*m)->sync()));
  }
  for (const std::size_t expected : {9u, 4u}) {
    context ctx;
    auto m = open<TestType>(ctx, f / "kv");
    REQUIRE(m);
    std::size_t seen = 0;
    (*m)->scan([&](extent, const extent_header& h) {
      ++seen;
      return h.key.low % 2 == 0;
    });
    CHECK(seen == expected);
    CHECK((*m)->used() == 4 * 4096);
  }
}

TEMPLATE_TEST_CASE("a store: what was unlabelled is not found again, and is readable until it is released",
                   "", nvme, directory) {
  const folder f;
  {
    context ctx;
    auto m = open<TestType>(ctx, f / "kv");
    REQUIRE(m);
    const extent one = put(ctx, **m, 1), two = put(ctx, **m, 2);
    REQUIRE(ctx.sync_wait((*m)->sync()));
    (*m)->unlabel(one);
    (*m)->unlabel(one);
    REQUIRE(ctx.sync_wait((*m)->sync()));
    CHECK(holds(ctx, **m, one, 1));
    (*m)->release(one);
    CHECK(holds(ctx, **m, two, 2));
  }
  context ctx;
  auto m = open<TestType>(ctx, f / "kv");
  REQUIRE(m);
  const auto found = found_in(**m);
  REQUIRE(found.size() == 1);
  CHECK(found.begin()->first == 2);
}

TEMPLATE_TEST_CASE("a store: every place of the table is used, and none twice", "", nvme, directory) {
  const folder f;
  std::size_t places = 0;
  for (unsigned round = 0; round < 3; ++round) {
    context ctx;
    auto m = open<TestType>(ctx, f / "kv", 256_KiB);
    REQUIRE(m);
    std::vector<extent> held;
    for (const auto& [tag, at] : found_in(**m)) {
      CHECK(holds(ctx, **m, at, static_cast<unsigned>(tag)));
      held.push_back(at);
    }
    CHECK(held.size() == places);
    unsigned tag = 64 * round;
    while ((*m)->used() + 4096 <= (*m)->capacity()) held.push_back(put(ctx, **m, ++tag));
    REQUIRE(ctx.sync_wait((*m)->sync()));
    for (std::size_t i = round; i < held.size(); i += 3) (*m)->release(std::exchange(held[i], {}));
    places = static_cast<std::size_t>(
        std::count_if(held.begin(), held.end(), [](const extent& e) { return e.bytes != 0; }));
  }
}

TEST_CASE("a store: the room that its table takes in memory is that of the headers in use") {
  const folder f;
  constexpr std::size_t capacity = 32_GiB, headers = capacity / 4096;
  const auto place = [](std::size_t i) { return superblock::bytes + i * extent_header::bytes; };
  const std::string index = f / "kv/kv-store/index";
  const auto resident = [] {
    std::size_t pages = 0;
    std::ifstream("/proc/self/statm") >> pages >> pages;
    return pages * static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  };
  {
    context ctx;
    auto m = open<directory>(ctx, f / "kv", capacity);
    REQUIRE(m);
    for (unsigned tag = 1; tag <= 3; ++tag) put(ctx, **m, tag);
    REQUIRE(ctx.sync_wait((*m)->sync()));
  }
  // Two of the three lie where nothing is near them: the last place of all, and the middle.
  for (const auto& [from, to] : {std::pair{std::size_t{0}, headers - 1}, {std::size_t{1}, headers / 2 + 3}}) {
    write_at(index, place(to), bytes_at(index, place(from), extent_header::bytes));
    write_at(index, place(from), std::vector<char>(extent_header::bytes));
  }
  for (const std::size_t expected : {3u, 5u}) {
    const std::size_t before = resident();
    context ctx;
    auto m = open<directory>(ctx, f / "kv", capacity);
    REQUIRE(m);
    CHECK(resident() < before + 64_MiB);  // the whole table is 1 GiB
    const auto found = found_in(**m);
    CHECK(found.size() == expected);
    for (const auto& [tag, at] : found) CHECK(holds(ctx, **m, at, static_cast<unsigned>(tag)));
    put(ctx, **m, static_cast<unsigned>(expected) + 1);
    put(ctx, **m, static_cast<unsigned>(expected) + 2);
    REQUIRE(ctx.sync_wait((*m)->sync()));
    struct stat what {};
    REQUIRE(::stat(index.c_str(), &what) == 0);
    CHECK(what.st_blocks * 512 < 1 << 20);  // holes stay holes
  }
}

// The header in the first place of an index, as `change` makes it.
template <class F>
void forge(const std::string& index, F change) {
  const auto view = [](const std::vector<char>& b) { return std::as_bytes(std::span(b)); };
  const auto of = decode_superblock(view(bytes_at(index, 0, superblock::bytes)));
  REQUIRE(of);
  auto h = decode_extent_header(view(bytes_at(index, superblock::bytes, extent_header::bytes)), *of);
  REQUIRE(h);
  change(*h);
  const extent_header_bytes forged = encode(*h);
  const char* const first = reinterpret_cast<const char*>(forged.data());
  write_at(index, superblock::bytes, {first, first + forged.size()});
}

TEST_CASE("a store: a file with a number far beyond the others takes no room for those between") {
  const folder f;
  constexpr std::size_t capacity = 64_GiB;
  constexpr std::uint64_t far = 2 * capacity / 4096 - 7;
  const auto peak = [] {
    rusage used{};
    ::getrusage(RUSAGE_SELF, &used);
    return static_cast<std::size_t>(used.ru_maxrss) << 10;
  };
  {
    context ctx;
    auto m = open<directory>(ctx, f / "kv", capacity);
    REQUIRE(m);
    put(ctx, **m, 1);
    REQUIRE(ctx.sync_wait((*m)->sync()));
  }
  forge(f / "kv/kv-store/index", [](extent_header& h) { h.place = far; });
  char name[16];
  std::snprintf(name, sizeof name, "%08x", static_cast<unsigned>(far));
  std::filesystem::rename(f / "kv/kv-store/00000000", f / ("kv/kv-store/" + std::string(name)));
  REQUIRE(::chmod((f / ("kv/kv-store/" + std::string(name))).c_str(), 0666) == 0);
  const std::size_t before = peak();
  for (unsigned round = 0; round < 2; ++round) {
    context ctx;
    auto m = open<directory>(ctx, f / "kv", capacity);
    REQUIRE(m);
    auto found = found_in(**m);
    REQUIRE(found.size() == 1 + 2 * round);
    for (const auto& [tag, at] : found) CHECK(holds(ctx, **m, at, static_cast<unsigned>(tag)));
    CHECK(sandbox::mode_of(f / ("kv/kv-store/" + std::string(name))) == 0600);
    put(ctx, **m, 2 + 2 * round);
    put(ctx, **m, 3 + 2 * round);
    REQUIRE(ctx.sync_wait((*m)->sync()));
    if (round == 1) (*m)->release(found.at(1));
  }
  CHECK(peak() < before + 64_MiB);
  CHECK_FALSE(std::filesystem::exists(f / ("kv/kv-store/" + std::string(name))));
}

TEMPLATE_TEST_CASE("a store: a forged last number ends it, and no sync says otherwise", "", nvme, directory) {
  const folder f;
  {
    context ctx;
    auto m = open<TestType>(ctx, f / "kv");
    REQUIRE(m);
    put(ctx, **m, 1);
    REQUIRE(ctx.sync_wait((*m)->sync()));
  }
  const bool one_file = std::filesystem::is_regular_file(f / "kv");
  forge(one_file ? f / "kv" : f / "kv/kv-store/index",
        [](extent_header& h) { h.sequence = extent_header::last_number; });
  context ctx;
  auto m = open<TestType>(ctx, f / "kv");
  REQUIRE(m);
  CHECK(found_in(**m).size() == 1);
  const auto e = (*m)->reserve(4096);
  REQUIRE(e);
  CHECK_FALSE((*m)->label(*e, {.key = {2, 0}, .encoded = 4096}));
}

TEST_CASE("a store: an opening that fails removes no file of it") {
  const folder f;
  const auto files = [&] {
    const std::filesystem::directory_iterator all(f / "kv/kv-store");
    return std::distance(begin(all), end(all));
  };
  {
    context ctx;
    auto m = open<directory>(ctx, f / "kv");
    REQUIRE(m);
    for (unsigned tag = 1; tag <= 4; ++tag) put(ctx, **m, tag);
    REQUIRE(ctx.sync_wait((*m)->sync()));
  }
  std::filesystem::remove(f / "kv/kv-store/00000002");  // so that its header has to go, durably
  CHECK(files() == 4);
  sandbox::without_call(SYS_fdatasync, [&] {
    context ctx;
    CHECK(open<directory>(ctx, f / "kv").error().code == errc::io_error);
  });
  CHECK(files() == 4);
  context ctx;
  auto m = open<directory>(ctx, f / "kv");
  REQUIRE(m);
  CHECK(found_in(**m).size() == 3);
}

TEST_CASE("a store: one that finds no room on the disk leaves no file") {
  sandbox::with_small_disk(64_KiB, [](const std::string& path) {
    context ctx;
    const auto m = open<nvme>(ctx, path + "/kv");
    REQUIRE_FALSE(m);
    CHECK(m.error().system == ENOSPC);
    CHECK(std::filesystem::is_empty(path));
    CHECK(open<nvme>(ctx, path + "/kv", 32_KiB));
    CHECK_FALSE(std::filesystem::is_empty(path));
  });
}

TEST_CASE("a store: of headers for the same room the latest is right") {
  const folder f;
  std::vector<char> old;
  {
    context ctx;
    auto m = open<nvme>(ctx, f / "kv");
    REQUIRE(m);
    const extent before = put(ctx, **m, 1);
    REQUIRE(ctx.sync_wait((*m)->sync()));
    old = bytes_at(f / "kv", superblock::bytes, extent_header::bytes);
    REQUIRE(old[0] == 'e');
    (*m)->release(before);
    const extent after = put(ctx, **m, 2);
    REQUIRE(after.offset == before.offset);
    REQUIRE(ctx.sync_wait((*m)->sync()));
  }
  // As if the old header had been in another place, and a crash had come before it was taken back.
  write_at(f / "kv", superblock::bytes + 5 * extent_header::bytes, old);
  context ctx;
  auto m = open<nvme>(ctx, f / "kv");
  REQUIRE(m);
  const auto found = found_in(**m);
  REQUIRE(found.size() == 1);
  CHECK(found.begin()->first == 2);
}

TEST_CASE("a store: a file that a crash left without a superblock becomes one; a stranger's does not") {
  const folder f;
  std::ofstream(f / "kv") << std::string(70000, '\0');
  context ctx;
  CHECK(open<nvme>(ctx, f / "kv"));
  // The power went before its first sector was written; the rest was.
  write_at(f / "kv", 0, std::vector<char>(512));
  CHECK(open<nvme>(ctx, f / "kv"));
  std::ofstream(f / "letters") << "dear all";
  CHECK(open<nvme>(ctx, f / "letters").error().code == errc::corrupt);
  CHECK(bytes_at(f / "letters", 0, 8) == std::vector<char>{'d', 'e', 'a', 'r', ' ', 'a', 'l', 'l'});
  CHECK(open<nvme>(ctx, "").error().code == errc::invalid_argument);
  CHECK(open<nvme>(ctx, f / "small", 8192).error().code == errc::invalid_argument);
}

TEST_CASE("a store: its size is fixed") {
  const folder f;
  context ctx;
  auto files = open<directory>(ctx, f / "files");
  REQUIRE(files);
  CHECK((*files)->resize(2_MiB).error().code == errc::unavailable);
  CHECK((*files)->capacity() == 1_MiB);
  CHECK(open<directory>(ctx, f / "large", ~std::size_t{0}).error().code == errc::invalid_argument);
  auto m = open<nvme>(ctx, f / "kv");
  REQUIRE(m);
  CHECK((*m)->resize(2_MiB).error().code == errc::unavailable);
  CHECK(std::filesystem::file_size(f / "kv") == 1_MiB);
  CHECK((*m)->capacity() < 1_MiB);
  CHECK((*m)->capacity() > 900_KiB);
  CHECK(sandbox::mode_of(f / "kv") == 0600);
}

TEMPLATE_TEST_CASE("a store: random damage to its head is refused or does no harm", "", nvme, directory) {
  const folder f;
  {
    context ctx;
    auto m = open<TestType>(ctx, f / "kv");
    REQUIRE(m);
    for (unsigned tag = 1; tag <= 40; ++tag) put(ctx, **m, tag);
    REQUIRE(ctx.sync_wait((*m)->sync()));
  }
  const std::string head = std::is_same_v<TestType, nvme> ? f / "kv" : f / "kv/kv-store/index";
  const std::vector<char> good = bytes_at(head, 0, 10 * 1024);
  std::mt19937 random(7);
  context ctx;
  for (int round = 0; round < 100; ++round) {
    std::vector<char> bad = good;
    for (auto n = random() % 6 + 1; n != 0; --n) bad[random() % bad.size()] = static_cast<char>(random());
    write_at(head, 0, bad);
    auto m = open<TestType>(ctx, f / "kv");
    if (m) {
      for (const auto& [tag, at] : found_in(**m)) REQUIRE((tag >= 1 && tag <= 40 && at.bytes == 4096));
      REQUIRE((*m)->used() <= 40 * 4096);
    }
  }
}
