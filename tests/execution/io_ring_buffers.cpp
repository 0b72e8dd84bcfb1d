// Buffers that are registered with a ring, and what is not.
#include <linux/capability.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdio>
#include <thread>
#include <vector>

#include "catch.hpp"
#include "execution/io_ring_fixture.hpp"
#include "terrace/execution/io_ring.hpp"
#include "terrace/execution/sync_wait.hpp"

using namespace ring_test;

namespace {
// Pages that a test can put others in the place of.
struct mapped_pages {
  explicit mapped_pages(std::size_t n) : size(n), data(map(nullptr, 0)) { REQUIRE(data != MAP_FAILED); }
  mapped_pages(const mapped_pages&) = delete;
  ~mapped_pages() { ::munmap(data, size); }
  void replace() { REQUIRE(map(data, MAP_FIXED) == data); }
  mutable_bytes all() const { return {static_cast<std::byte*>(data), size}; }
  mutable_bytes part(std::size_t from, std::size_t n) const { return all().subspan(from, n); }
  void* map(void* at, int flags) const {
    return ::mmap(at, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
  }
  std::size_t size;
  void* data;
};

bool goes_through(context& ctx, io_ring& ring, int fd, mutable_bytes buffer, std::size_t seed) {
  const auto bytes = random_bytes(buffer.size(), seed);
  std::copy(bytes.begin(), bytes.end(), buffer.begin());
  if (!ctx.sync_wait(ring.write(fd, buffer, 0))) return false;
  std::fill(buffer.begin(), buffer.end(), std::byte{0});
  if (!ctx.sync_wait(ring.read(fd, buffer, 0))) return false;
  return std::equal(bytes.begin(), bytes.end(), buffer.begin());
}
}  // namespace

TEMPLATE_TEST_CASE("buffers inside of registered memory, across its ends and elsewhere", "", kernel_ring,
                   thread_ring) {
  context ctx;
  auto ring = open_ring<TestType>(ctx);
  temporary_file file;
  const mapped_pages pages(1 << 20);
  const bool registered = ring->register_buffer(pages.part(256 << 10, 512 << 10));
  if (!ring->uses_io_uring()) CHECK_FALSE(registered);
  std::size_t seed = 0;
  for (const std::size_t from : {0u, 255u << 10, 256u << 10, 300'000u, (768u << 10) - 100, 768u << 10})
    for (const std::size_t size : {1u, 100u, 101u, 4096u, 200'000u})
      CHECK(goes_through(ctx, *ring, file.fd, pages.part(from, size), ++seed));
  CHECK(goes_through(ctx, *ring, file.fd, pages.part(256 << 10, 512 << 10), ++seed));
  CHECK(goes_through(ctx, *ring, file.fd, pages.all(), ++seed));
  auto done = ctx.sync_wait(ring->read(-1, pages.part(256 << 10, 10), 0));
  CHECK(done.error().system == EBADF);
}

TEST_CASE("memory that is no longer registered can be replaced by other pages") {
  context ctx;
  auto ring = open_ring<kernel_ring>(ctx);
  if (no_io_uring(*ring)) return;
  temporary_file file;
  mapped_pages pages(64 << 10);
  if (!ring->register_buffer(pages.all())) {
    WARN("skipped: this kernel registers no buffers");
    return;
  }
  CHECK(goes_through(ctx, *ring, file.fd, pages.all(), 1));
  ring->unregister_buffer(pages.part(0, 4096));  // not what was registered
  ring->unregister_buffer(pages.all());
  ring->unregister_buffer(pages.all());
  pages.replace();
  CHECK(goes_through(ctx, *ring, file.fd, pages.all(), 2));
  REQUIRE(ring->register_buffer(pages.all()));
  CHECK(goes_through(ctx, *ring, file.fd, pages.all(), 3));
}

TEST_CASE("what cannot be registered is transferred all the same") {
  context ctx;
  auto ring = open_ring<kernel_ring>(ctx);
  if (no_io_uring(*ring)) return;
  temporary_file file;
  const mapped_pages pages(64 << 12);
  CHECK_FALSE(ring->register_buffer({}));
  CHECK_FALSE(ring->register_buffer({pages.all().data(), (std::size_t{1} << 30) + 1}));
  unsigned registered = 0;
  for (std::size_t i = 0; i < 64; ++i) registered += ring->register_buffer(pages.part(i << 12, 4096)) ? 1 : 0;
  CHECK(registered < 64);  // the table has an end
  for (std::size_t i = 0; i < 64; ++i) CHECK(goes_through(ctx, *ring, file.fd, pages.part(i << 12, 4096), i));
}

TEST_CASE("a limit on locked memory keeps buffers from being registered, not from being used") {
  rlimit before{};
  ::getrlimit(RLIMIT_MEMLOCK, &before);
  rlimit little = before;
  little.rlim_cur = 64 << 10;
  REQUIRE(::setrlimit(RLIMIT_MEMLOCK, &little) == 0);
  bool registered = true, worked = false, has_ring = false;
  std::thread([&] {  // capabilities belong to a thread
    __user_cap_header_struct whose{_LINUX_CAPABILITY_VERSION_3, 0};
    __user_cap_data_struct none[2]{};
    ::syscall(SYS_capset, &whose, none);
    context ctx;
    auto ring = io_ring::open(ctx, {.entries = 8});
    std::FILE* const file = std::tmpfile();
    has_ring = ring && (*ring)->uses_io_uring() && file != nullptr;
    if (has_ring) {
      std::vector<std::byte> buffer(1 << 20);
      registered = (*ring)->register_buffer(buffer);
      worked = goes_through(ctx, **ring, ::fileno(file), buffer, 1);
    }
    if (file != nullptr) std::fclose(file);
  })
      .join();
  ::setrlimit(RLIMIT_MEMLOCK, &before);
  if (!has_ring) {
    WARN("skipped: there is no io_uring without privileges here");
    return;
  }
  CHECK_FALSE(registered);
  CHECK(worked);
}
