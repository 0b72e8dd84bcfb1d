#include "terrace/medium/ram.hpp"

#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "catch.hpp"
#include "terrace/execution/sync_wait.hpp"

using namespace terrace;

namespace {
struct freed {
  void operator()(std::byte* p) const { std::free(p); }
};
using owned_memory = std::unique_ptr<std::byte, freed>;
owned_memory pages(std::size_t count) {
  return owned_memory(static_cast<std::byte*>(std::aligned_alloc(4096, count * 4096)));
}

// How many of these bytes take memory.
std::size_t resident(const std::byte* from, std::size_t bytes) {
  const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  std::vector<unsigned char> pages(bytes / page);
  REQUIRE(::mincore(const_cast<std::byte*>(from), bytes, pages.data()) == 0);
  const auto there = std::count_if(pages.begin(), pages.end(), [](unsigned char p) { return (p & 1) != 0; });
  return static_cast<std::size_t>(there) * page;
}

// An arena of `blocks` blocks of 1 MiB, all in use and touched. Block i lies at i MiB, and holds i.
struct full_arena {
  explicit full_arena(std::size_t blocks) : medium(*ram::open(ctx, {.capacity = blocks * 1_MiB})) {
    for (std::size_t i = 0; i < blocks; ++i) {
      held.push_back(*medium->reserve(1_MiB));
      std::memset(medium->address(held[i]), static_cast<int>(i), 1_MiB);
    }
  }
  const std::byte* begin() { return medium->address(held[0]); }
  std::size_t resident() { return ::resident(begin(), held.size() * 1_MiB); }
  bool intact(std::size_t i) {
    const std::byte* const at = medium->address(held[i]);
    return std::all_of(at, at + 1_MiB, [&](std::byte b) { return b == static_cast<std::byte>(i); });
  }
  context ctx;
  std::unique_ptr<ram> medium;
  std::vector<extent> held;
};
}  // namespace

TEST_CASE("ram: extents lie in memory that the caller owns, and it stays the caller's") {
  context ctx;
  const owned_memory memory = pages(4);
  std::memset(memory.get(), 1, 4 * 4096);
  {
    auto m = ram::open(ctx, {.capacity = 1_GiB, .memory = {memory.get(), 4 * 4096}});
    REQUIRE(m);
    CHECK((*m)->capacity() == 4 * 4096);
    std::vector<extent> held;
    while (auto e = (*m)->reserve(4096)) held.push_back(*e);
    REQUIRE(held.size() == 4);
    for (const extent& e : held) {
      CHECK((*m)->address(e) >= memory.get());
      CHECK((*m)->address(e) + 4096 <= memory.get() + 4 * 4096);
      std::memset((*m)->address(e), 2, 4096);
    }
  }
  for (std::size_t i = 0; i < 4 * 4096; ++i) REQUIRE(memory.get()[i] == std::byte{2});
}

TEST_CASE("ram: the caller's memory must begin at a page, and may end anywhere") {
  context ctx;
  const owned_memory memory = pages(3);
  CHECK(ram::open(ctx, {.memory = {memory.get() + 64, 4096}}).error().code == errc::invalid_argument);
  auto m = ram::open(ctx, {.memory = {memory.get(), 2 * 4096 + 100}});
  REQUIRE(m);
  CHECK((*m)->capacity() == 2 * 4096);  // the rest holds no whole page
}

TEST_CASE("ram: capacities that cannot be are refused in a sentence") {
  context ctx;
  for (const std::size_t capacity : {std::size_t{0}, std::size_t{1}, std::size_t{4095}}) {
    const auto m = ram::open(ctx, {.capacity = capacity});
    REQUIRE_FALSE(m);
    CHECK(m.error().code == errc::invalid_argument);
    CHECK(std::string(m.error().text) == "a ram tier needs at least 4 KiB");
  }
  CHECK(ram::open(ctx, {.capacity = 1_MiB, .most_capacity = ~std::size_t{0}}));  // as far as it goes
  const auto m = ram::open(ctx, {.capacity = std::size_t{1} << 62});
  REQUIRE_FALSE(m);
  CHECK(m.error().code == errc::out_of_memory);
  CHECK(m.error().system == ENOMEM);
}

TEST_CASE("ram: capacity beyond the last whole page is not used") {
  context ctx;
  auto m = ram::open(ctx, {.capacity = 3 * 4096 + 4095});
  REQUIRE(m);
  CHECK((*m)->capacity() == 3 * 4096);
  CHECK_FALSE((*m)->reserve(3 * 4096 + 1));
  CHECK((*m)->reserve(3 * 4096));
}

TEST_CASE("ram: addresses suit direct I/O, and the arena begins at a huge page") {
  context ctx;
  auto m = ram::open(ctx, {.capacity = 8_MiB});
  REQUIRE(m);
  const auto first = (*m)->reserve(1);
  const auto second = (*m)->reserve(5000);
  REQUIRE(first);
  REQUIRE(second);
  CHECK(reinterpret_cast<std::uintptr_t>((*m)->address(*first)) % 2_MiB == 0);
  CHECK((*m)->address(*second) - (*m)->address(*first) == 4096);
  CHECK((*m)->used() == 3 * 4096);
}

TEST_CASE("ram: an arena far larger than what is touched costs nothing") {
  context ctx;
  auto m = ram::open(ctx, {.capacity = 64_GiB});
  REQUIRE(m);
  const auto e = (*m)->reserve(1_GiB);
  REQUIRE(e);
  (*m)->address(*e)[1_GiB - 1] = std::byte{7};
  std::byte last{};
  (*m)->release(*e);
  const auto again = (*m)->reserve(1_GiB);
  REQUIRE(again);
  std::byte* const at = (*m)->address(*again);
  REQUIRE(ctx.sync_wait((*m)->write(*again, {at + 1_GiB - 1, 1})));
  REQUIRE(ctx.sync_wait((*m)->read(*again, {&last, 1})));
  CHECK(last == std::byte{7});
}

TEST_CASE("ram: a lowered capacity gives back what is free, and then what is released until all fits") {
  full_arena a(64);
  ram& m = *a.medium;
  REQUIRE(a.resident() == 64_MiB);
  for (std::size_t i = 16; i < 32; ++i) m.release(a.held[i]);
  CHECK(a.resident() == 64_MiB);  // it will be wanted again

  REQUIRE(m.resize(32_MiB));
  CHECK(m.capacity() == 32_MiB);
  CHECK(m.used() == 48_MiB);
  CHECK(a.resident() == 48_MiB);
  CHECK_FALSE(m.reserve(1));

  for (std::size_t i = 32; i < 64; ++i) {
    REQUIRE(a.intact(i));
    m.release(a.held[i]);
    CHECK(a.resident() == m.used());
  }
  for (std::size_t i = 0; i < 16; ++i) REQUIRE(a.intact(i));

  // All in use fits now: what is released stays, and never more is taken than the capacity.
  std::vector<extent> again;
  while (const auto e = m.reserve(700_KiB)) {
    std::memset(m.address(*e), 1, 700_KiB);
    again.push_back(*e);
  }
  for (const extent& e : again) m.release(e);
  while (const auto e = m.reserve(1_MiB)) std::memset(m.address(*e), 1, 1_MiB);
  CHECK(m.used() == 32_MiB);
  CHECK(a.resident() == 32_MiB);
}

TEST_CASE("ram: it grows where it is") {
  context ctx;
  auto opened = ram::open(ctx, {.capacity = 3_MiB, .most_capacity = 64_MiB});
  REQUIRE(opened);
  ram& m = **opened;
  const auto first = m.reserve(3_MiB);
  std::byte* const at = m.address(*first);
  std::memset(at, 7, 3_MiB);
  CHECK_FALSE(m.reserve(1));
  REQUIRE(m.resize(64_MiB));
  CHECK(m.capacity() == 64_MiB);
  CHECK(m.address(*first) == at);
  CHECK(resident(at, 64_MiB) <= 4_MiB);  // the last huge page is half ours
  const auto second = m.reserve(61_MiB);
  REQUIRE(second);
  CHECK(m.address(*second) == at + 3_MiB);
  std::memset(m.address(*second), 8, 61_MiB);
  CHECK(std::all_of(at, at + 3_MiB, [](std::byte b) { return b == std::byte{7}; }));

  const auto refused = m.resize(64_MiB + 4096);
  REQUIRE_FALSE(refused);
  CHECK(refused.error().code == errc::out_of_memory);
  CHECK(m.capacity() == 64_MiB);
}

TEST_CASE("ram: by default it grows as far as the machine has memory") {
  context ctx;
  auto m = ram::open(ctx, {.capacity = 4096});
  REQUIRE(m);
  const auto machine =
      static_cast<std::size_t>(::sysconf(_SC_PHYS_PAGES)) * static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  CHECK((*m)->resize(machine));
  CHECK_FALSE((*m)->resize(machine + 4_MiB));
}

TEST_CASE("ram: the caller's memory is a limit, and is never given back to the system") {
  context ctx;
  const owned_memory memory = pages(4);
  std::memset(memory.get(), 1, 4 * 4096);
  auto m = ram::open(ctx, {.memory = {memory.get(), 4 * 4096}});
  REQUIRE(m);
  REQUIRE((*m)->resize(4096));
  CHECK((*m)->capacity() == 4096);
  for (std::size_t i = 0; i < 4 * 4096; ++i) REQUIRE(memory.get()[i] == std::byte{1});
  CHECK((*m)->resize(4 * 4096));
  CHECK((*m)->reserve(4 * 4096));
  const auto refused = (*m)->resize(4 * 4096 + 1);
  REQUIRE_FALSE(refused);
  CHECK(refused.error().code == errc::invalid_argument);
  CHECK((*m)->capacity() == 4 * 4096);
}

#if !defined(TERRACE_SANITIZED)  // sanitizers take most of the addresses
TEST_CASE("ram: where addresses are scarce it opens all the same, and cannot grow") {
  rlimit before{};
  ::getrlimit(RLIMIT_AS, &before);
  rlimit scarce = before;
  scarce.rlim_cur = 2_GiB;
  REQUIRE(::setrlimit(RLIMIT_AS, &scarce) == 0);
  context ctx;
  auto m = ram::open(ctx, {.capacity = 1_MiB, .most_capacity = 64_GiB});
  auto modest = ram::open(ctx, {.capacity = 1_MiB});
  ::setrlimit(RLIMIT_AS, &before);
  REQUIRE(modest);
  CHECK_FALSE((*modest)->resize(4_MiB));
  REQUIRE(m);
  CHECK((*m)->reserve(1_MiB));
  CHECK_FALSE((*m)->resize(64_GiB));
  CHECK((*m)->capacity() == 1_MiB);
}
#endif
