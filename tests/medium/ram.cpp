#include "terrace/medium/ram.hpp"

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
