#include "terrace/cuda/gather.cuh"

#include <cstdint>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "catch.hpp"
#include "cuda_emulated/emulator.hpp"

using namespace terrace;
using cuda::block_addresses;

namespace {

// Blocks that are allocated one by one, each of exactly its bytes, so that a sanitizer sees every step beside them.
struct scattered {
  scattered(std::uint32_t count, std::size_t bytes, std::size_t skew, unsigned seed) {
    std::mt19937 random(seed);
    for (std::uint32_t i = 0; i < count; ++i) {
      memory.emplace_back(new std::byte[skew + bytes]);
      for (std::size_t b = 0; b < skew + bytes; ++b) memory.back()[b] = static_cast<std::byte>(random());
      pointers.push_back(memory.back().get() + skew);
    }
  }
  block_addresses addresses() const { return {.pointers = pointers.data()}; }

  std::vector<std::unique_ptr<std::byte[]>> memory;
  std::vector<void*> pointers;
};

bool gathers(std::uint32_t count, std::size_t bytes, std::size_t skew_from, std::size_t skew_to,
             std::uint32_t ctas) {
  const scattered from(count, bytes, skew_from, 1), to(count, bytes, skew_to, 2);
  if (!cuda::gather(from.addresses(), to.addresses(), count, bytes, nullptr, ctas)) return false;
  for (std::uint32_t i = 0; i < count; ++i)
    if (std::memcmp(from.pointers[i], to.pointers[i], bytes) != 0) return false;
  return emulator::take_faults().empty();
}

}  // namespace

TEST_CASE("gather copies blocks of any size at any alignment") {
  for (const std::size_t bytes : {1u, 15u, 16u, 17u, 4096u, 32768u, 32784u, 100001u})
    for (const std::size_t skew : {0u, 1u, 2u, 4u}) {
      CAPTURE(bytes, skew);
      CHECK(gathers(3, bytes, skew, 0, 8));
      CHECK(gathers(3, bytes, skew, skew, 2));
    }
}

TEST_CASE("any number of blocks of threads copies the whole") {
  for (const std::uint32_t ctas : {0u, 1u, 5u, 1000u}) CHECK(gathers(7, 40000, 0, 0, ctas));
  emulator::on_each_machine([] { CHECK(gathers(5, 20000, 0, 0, 3)); });
}

TEST_CASE("nothing is gathered where there are no blocks or no bytes") {
  CHECK(cuda::gather({}, {}, 0, 4096, nullptr));
  CHECK(cuda::gather({}, {}, 12, 0, nullptr));
  CHECK(emulator::take_faults().empty());
}

TEST_CASE("blocks go from slots to a run and back") {
  constexpr std::size_t bytes = 1040, slots = 9, count = 4;
  std::vector<cuda::vec16> pool(slots * bytes / 16), run(count * bytes / 16), back(pool.size());
  auto* const words = reinterpret_cast<std::uint32_t*>(pool.data());
  std::iota(words, words + pool.size() * 4, 0u);
  const std::vector<std::int32_t> indices{8, 0, 5, 3};
  const auto at = [](auto& v) { return reinterpret_cast<std::byte*>(v.data()); };

  REQUIRE(cuda::gather({.base = at(pool), .indices = indices.data(), .stride = bytes},
                       {.base = at(run), .stride = bytes}, count, bytes, nullptr));
  for (std::size_t i = 0; i < count; ++i)
    CHECK(std::memcmp(at(run) + i * bytes, at(pool) + static_cast<std::size_t>(indices[i]) * bytes, bytes) ==
          0);

  REQUIRE(cuda::gather({.base = at(run), .stride = bytes},
                       {.base = at(back), .indices = indices.data(), .stride = bytes}, count, bytes,
                       nullptr));
  for (std::size_t slot = 0; slot < slots; ++slot) {
    const bool taken = slot == 8 || slot == 0 || slot == 5 || slot == 3;
    CHECK((std::memcmp(at(back) + slot * bytes, at(pool) + slot * bytes, bytes) == 0) == taken);
  }
  CHECK(emulator::take_faults().empty());
}

TEST_CASE("a stream may run the kernel later") {
  const scattered from(2, 64, 0, 1), to(2, 64, 0, 2);
  std::vector<std::function<void()>> stream;
  const auto at_once = std::exchange(
      emulator::submit(), [&](auto, std::function<void()> work) { stream.push_back(std::move(work)); });
  REQUIRE(cuda::gather(from.addresses(), to.addresses(), 2, 64, nullptr));
  emulator::submit() = at_once;
  REQUIRE(stream.size() == 1);
  CHECK(std::memcmp(from.pointers[1], to.pointers[1], 64) != 0);
  stream.front()();
  CHECK(std::memcmp(from.pointers[1], to.pointers[1], 64) == 0);
}
