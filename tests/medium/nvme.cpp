#include "terrace/medium/nvme.hpp"

#include <fcntl.h>
#include <sys/stat.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "catch.hpp"
#include "sandbox.hpp"
#include "terrace/execution/sync_wait.hpp"

using namespace terrace;
using sandbox::folder;

namespace {

struct buffer {
  explicit buffer(std::size_t n) : size(n), data(static_cast<std::byte*>(std::aligned_alloc(4096, n))) {}
  mutable_bytes all() const { return {data.get(), size}; }
  void fill(unsigned tag) {
    for (std::size_t i = 0; i < size; ++i) data.get()[i] = static_cast<std::byte>(i / 512 + i * 3 + tag);
  }
  bool equals(const buffer& b) const { return std::memcmp(data.get(), b.data.get(), size) == 0; }
  struct freed {
    void operator()(std::byte* p) const { std::free(p); }
  };
  std::size_t size;
  std::unique_ptr<std::byte, freed> data;
};

void round_trip(context& ctx, nvme& m, std::size_t bytes = 64_KiB) {
  const auto e = m.reserve(bytes);
  REQUIRE(e);
  buffer out(bytes), in(bytes);
  out.fill(5);
  REQUIRE(ctx.sync_wait(m.write(*e, out.all())));
  REQUIRE(ctx.sync_wait(m.read(*e, in.all())));
  CHECK(in.equals(out));
  m.release(*e);
}

// What a file takes on its disk.
std::size_t on_disk(const std::string& path) {
  struct stat what {};
  REQUIRE(::stat(path.c_str(), &what) == 0);
  return static_cast<std::size_t>(what.st_blocks) * 512;
}

// Whether files in this folder take O_DIRECT.
bool takes_direct_io(const folder& f) {
  const int fd = ::open((f / "probe").c_str(), O_RDWR | O_CREAT | O_DIRECT, 0600);
  if (fd >= 0) ::close(fd);
  ::unlink((f / "probe").c_str());
  return fd >= 0;
}

}  // namespace

TEST_CASE("nvme: capacities that cannot be are refused, and leave no file") {
  context ctx;
  const folder f;
  for (const std::size_t capacity : {std::size_t{0}, std::size_t{4095}})
    CHECK(nvme::open(ctx, {.capacity = capacity, .path = f / "kv"}).error().code == errc::invalid_argument);
  for (const std::size_t capacity : {std::size_t{1} << 62, ~std::size_t{0}})
    CHECK(nvme::open(ctx, {.capacity = capacity, .path = f / "kv"}).error().code == errc::io_error);
  CHECK(f.empty());
}

TEST_CASE("nvme: its space is claimed at once, in whole pages") {
  context ctx;
  const folder f;
  auto m = nvme::open(ctx, {.capacity = 1_MiB + 1, .path = f / "kv"});
  REQUIRE(m);
  CHECK((*m)->capacity() == 1_MiB);
  struct stat what {};
  REQUIRE(::stat((f / "kv").c_str(), &what) == 0);
  CHECK(what.st_size >= static_cast<off_t>(1_MiB));
  CHECK(static_cast<std::size_t>(what.st_blocks) * 512 >= 1_MiB);
}

TEST_CASE("nvme: a file that was there is emptied and made private, and all goes at the end") {
  context ctx;
  const folder f;
  std::ofstream(f / "kv") << "something of an earlier run";
  REQUIRE(::chmod((f / "kv").c_str(), 0666) == 0);
  {
    auto m = nvme::open(ctx, {.capacity = 64_KiB, .path = f / "kv"});
    REQUIRE(m);
    CHECK(sandbox::mode_of(f / "kv") == 0600);
    buffer in(4096);
    const auto e = (*m)->reserve(4096);
    REQUIRE(ctx.sync_wait((*m)->read(*e, in.all())));
    for (const std::byte b : in.all()) REQUIRE(b == std::byte{0});
  }
  CHECK(f.empty());
}

TEST_CASE("nvme: without a path the file has no name") {
  context ctx;
  const folder f;
  const char* const before = std::getenv("TMPDIR");
  const std::string kept = before != nullptr ? before : "";
  ::setenv("TMPDIR", f.path.c_str(), 1);
  auto m = nvme::open(ctx, {.capacity = 1_MiB});
  if (before != nullptr)
    ::setenv("TMPDIR", kept.c_str(), 1);
  else
    ::unsetenv("TMPDIR");
  REQUIRE(m);
  CHECK(f.empty());
  round_trip(ctx, **m);
}

TEST_CASE("nvme: long names") {
  context ctx;
  const folder f;
  const std::string longest(255, 'k');
  CHECK(nvme::open(ctx, {.capacity = 64_KiB, .path = f / longest}));
  CHECK(f.empty());
  const auto one_more = nvme::open(ctx, {.capacity = 64_KiB, .path = f / (longest + "v")});
  CHECK(one_more.error().system == ENAMETOOLONG);
  const auto huge = nvme::open(ctx, {.capacity = 64_KiB, .path = f / std::string(1 << 20, '/') + "kv"});
  CHECK(huge.error().code == errc::io_error);
  CHECK(huge.error().system == ENAMETOOLONG);
  CHECK(f.empty());
}

TEST_CASE("nvme: what is not a plain file is refused and stays as it was") {
  context ctx;
  const folder f;
  std::ofstream(f / "target") << "mine";
  std::filesystem::create_symlink(f / "target", f / "link");
  std::filesystem::create_symlink(f / "nowhere", f / "dangling");
  std::filesystem::create_directory(f / "folder");
  REQUIRE(::mkfifo((f / "pipe").c_str(), 0600) == 0);
  const auto open = [&](const char* name) {
    return nvme::open(ctx, {.capacity = 64_KiB, .path = f / name}).error();
  };
  CHECK(open("link") == error{errc::io_error, "", ELOOP});
  CHECK(open("dangling") == error{errc::io_error, "", ELOOP});
  CHECK(open("folder") == error{errc::io_error, "", EISDIR});
  CHECK(open("pipe").code == errc::invalid_argument);
  CHECK(open("no/such/folder") == error{errc::io_error, "", ENOENT});
  CHECK(std::filesystem::file_size(f / "target") == 4);
  for (const char* name : {"link", "dangling", "folder", "pipe"})
    CHECK(std::filesystem::exists(std::filesystem::symlink_status(f / name)));
  CHECK_FALSE(std::filesystem::exists(f / "nowhere"));
}

TEST_CASE("nvme: goes past the page cache where the file system lets it, and through it elsewhere") {
  context ctx;
  for (const char* parent : {"/tmp", "/dev/shm"}) {
    if (::access(parent, W_OK) != 0) {
      WARN("skipped: there is no " << parent << " to write to");
      continue;
    }
    CAPTURE(parent);
    const folder f(parent);
    auto direct = nvme::open(ctx, {.capacity = 1_MiB, .path = f / "direct"});
    auto cached = nvme::open(ctx, {.capacity = 1_MiB, .path = f / "cached", .direct = false});
    REQUIRE(direct);
    REQUIRE(cached);
    CHECK((*direct)->direct() == takes_direct_io(f));
    CHECK_FALSE((*cached)->direct());
    round_trip(ctx, **direct);
    round_trip(ctx, **cached);
  }
}

TEST_CASE("nvme: a disk that is too small says so when it is opened") {
  sandbox::with_small_disk(64_KiB, [](const std::string& path) {
    context ctx;
    const auto m = nvme::open(ctx, {.capacity = 1_MiB, .path = path + "/kv"});
    REQUIRE_FALSE(m);
    CHECK(m.error() == error{errc::io_error, "", ENOSPC});
    CHECK(std::string(m.error().text) == "the disk of an nvme tier has no room for its capacity");
    CHECK(std::filesystem::is_empty(path));
    CHECK(nvme::open(ctx, {.capacity = 32_KiB, .path = path + "/kv"}));
  });
}

TEST_CASE("nvme: a limit on file sizes is an error, at opening and later") {
  context ctx;
  const folder f;
  {
    const sandbox::file_size_limit limit(64_KiB);
    CHECK(nvme::open(ctx, {.capacity = 1_MiB, .path = f / "kv"}).error() == error{errc::io_error, "", EFBIG});
    CHECK(f.empty());
  }
  auto m = nvme::open(ctx, {.capacity = 1_MiB, .path = f / "kv"});
  REQUIRE(m);
  const auto first = (*m)->reserve(64_KiB);
  const auto second = (*m)->reserve(64_KiB);
  REQUIRE(second->offset >= 64_KiB);
  buffer out(64_KiB), in(64_KiB);
  out.fill(1);
  {
    const sandbox::file_size_limit limit(64_KiB);
    CHECK(ctx.sync_wait((*m)->write(*first, out.all())));
    const auto refused = ctx.sync_wait((*m)->write(*second, out.all()));
    REQUIRE_FALSE(refused);
    CHECK(refused.error() == error{errc::io_error, "", EFBIG});
  }
  CHECK(ctx.sync_wait((*m)->write(*second, out.all())));  // it is over once the cause is
  REQUIRE(ctx.sync_wait((*m)->read(*second, in.all())));
  CHECK(in.equals(out));
}

TEST_CASE("nvme: where io_uring is refused threads read and write") {
  sandbox::without_io_uring([] {
    context ctx;
    auto m = nvme::open(ctx, {.capacity = 1_MiB});
    REQUIRE(m);
    CHECK_FALSE((*m)->uses_io_uring());
    round_trip(ctx, **m);
    round_trip(ctx, **m, 1_MiB);
  });
}

TEST_CASE("nvme: an io_uring that cannot say what it knows is not used") {
  sandbox::without_call(SYS_io_uring_register, [] {
    context ctx;
    auto m = nvme::open(ctx, {.capacity = 1_MiB});
    REQUIRE(m);
    CHECK_FALSE((*m)->uses_io_uring());
    round_trip(ctx, **m);
  });
}

TEST_CASE("nvme: the environment can ask for the threads") {
  ::setenv("TERRACE_NO_IO_URING", "1", 1);
  context ctx;
  auto m = nvme::open(ctx, {.capacity = 1_MiB});
  ::unsetenv("TERRACE_NO_IO_URING");
  REQUIRE(m);
  CHECK_FALSE((*m)->uses_io_uring());
  round_trip(ctx, **m);
}

TEST_CASE("nvme: a raised capacity is claimed on the disk, a lowered one is given back") {
  context ctx;
  const folder f;
  auto m = nvme::open(ctx, {.capacity = 4_MiB, .path = f / "kv"});
  REQUIRE(m);
  REQUIRE((*m)->resize(16_MiB));
  CHECK((*m)->capacity() == 16_MiB);
  CHECK(on_disk(f / "kv") >= 16_MiB);
  round_trip(ctx, **m, 16_MiB);
  REQUIRE((*m)->resize(1_MiB + 5));
  CHECK((*m)->capacity() == 1_MiB);
  CHECK(on_disk(f / "kv") <= 1_MiB + 64_KiB);  // and what the file system keeps for itself
  CHECK(std::filesystem::file_size(f / "kv") == 1_MiB);
  round_trip(ctx, **m, 1_MiB);
  REQUIRE((*m)->resize(0));
  CHECK_FALSE((*m)->reserve(1));
  REQUIRE((*m)->resize(2_MiB));
  CHECK(on_disk(f / "kv") >= 2_MiB);
  round_trip(ctx, **m, 2_MiB);
}

TEST_CASE("nvme: what lies beyond a lowered capacity goes back to the disk when it is released") {
  context ctx;
  const folder f;
  auto m = nvme::open(ctx, {.capacity = 8_MiB, .path = f / "kv"});
  REQUIRE(m);
  std::vector<extent> held;
  buffer out(1_MiB), in(1_MiB);
  for (unsigned i = 0; i < 8; ++i) {
    held.push_back(*(*m)->reserve(1_MiB));
    out.fill(i);
    REQUIRE(ctx.sync_wait((*m)->write(held[i], out.all())));
  }
  (*m)->release(held[5]);
  REQUIRE((*m)->resize(2_MiB));
  CHECK(on_disk(f / "kv") <= 7_MiB + 64_KiB);
  for (const std::size_t i : {std::size_t{3}, std::size_t{4}, std::size_t{6}}) (*m)->release(held[i]);
  CHECK(on_disk(f / "kv") <= 4_MiB + 64_KiB);
  for (const unsigned i : {0u, 1u, 2u, 7u}) {
    out.fill(i);
    REQUIRE(ctx.sync_wait((*m)->read(held[i], in.all())));
    CHECK(in.equals(out));
  }
  (*m)->release(held[7]);
  (*m)->release(held[2]);
  CHECK(on_disk(f / "kv") <= 2_MiB + 64_KiB);
  CHECK(std::filesystem::file_size(f / "kv") == 2_MiB);
}

TEST_CASE("nvme: a disk that has no room for more says so, and everything stays as it was") {
  sandbox::with_small_disk(1_MiB, [](const std::string& path) {
    context ctx;
    auto opened = nvme::open(ctx, {.capacity = 256_KiB, .path = path + "/kv"});
    REQUIRE(opened);
    nvme& m = **opened;
    const auto low = m.reserve(128_KiB), high = m.reserve(128_KiB);
    buffer out(128_KiB), in(128_KiB);
    out.fill(3);
    REQUIRE(ctx.sync_wait(m.write(*high, out.all())));
    const auto refused = m.resize(2_MiB);
    REQUIRE_FALSE(refused);
    CHECK(refused.error() == error{errc::io_error, "", ENOSPC});
    CHECK(m.capacity() == 256_KiB);
    CHECK(on_disk(path + "/kv") <= 256_KiB);

    REQUIRE(m.resize(64_KiB));  // both extents reach beyond
    CHECK_FALSE(m.resize(2_MiB));
    CHECK(m.capacity() == 64_KiB);
    CHECK(on_disk(path + "/kv") <= 256_KiB);
    REQUIRE(ctx.sync_wait(m.read(*high, in.all())));
    CHECK(in.equals(out));
    m.release(*high);
    m.release(*low);
    CHECK(on_disk(path + "/kv") <= 64_KiB);
    REQUIRE(m.resize(512_KiB));
    round_trip(ctx, m, 512_KiB);
  });
}
