// Scattered blocks gathered into one run, and scattered again, compared with one cudaMemcpyAsync of as many bytes:
// between pinned RAM and VRAM, and within VRAM. GB/s count each byte once.
#include "terrace/cuda/gather.cuh"

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "../report.hpp"
#include "device.cuh"

namespace {

using namespace terrace;

constexpr std::size_t total = std::size_t{256} << 20;

struct buffers {
  std::byte* run = bench::allocate<std::byte>(total);
  std::byte* vram = bench::allocate<std::byte>(total);
  std::byte* pinned = bench::allocate<std::byte>(total, bench::place::pinned);
  std::int32_t* indices = bench::allocate<std::int32_t>(total / 1024);
};

void measure(bench::report& out, const buffers& b, std::size_t block, std::uint32_t ctas) {
  const auto count = static_cast<std::uint32_t>(total / block);
  std::vector<std::int32_t> order(count);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), std::mt19937(1));
  bench::check(cudaMemcpy(b.indices, order.data(), count * sizeof(std::int32_t), cudaMemcpyDefault));
  const auto rate = [&](const cuda::block_addresses& from, const cuda::block_addresses& to) {
    return static_cast<double>(total) / 1e9 / bench::device_seconds([&] {
             bench::check(cuda::gather<8>(from, to, count, block, nullptr, ctas));
           });
  };
  const std::string size = std::to_string(block / 1024) + " KiB, " + std::to_string(ctas) + " CTAs";
  const cuda::block_addresses run{.base = b.run, .stride = block};
  const cuda::block_addresses pinned{.base = b.pinned, .indices = b.indices, .stride = block};
  const cuda::block_addresses vram{.base = b.vram, .indices = b.indices, .stride = block};
  if (ctas <= 32) {
    out.compare(
        {.name = "pinned to VRAM, " + size, .unit = "GB/s", .limit_name = "one memcpy", .goal = 0.9},
        [&] { return rate(pinned, run); }, [&] { return bench::copy_bandwidth(b.run, b.pinned, total); });
    out.compare(
        {.name = "VRAM to pinned, " + size, .unit = "GB/s", .limit_name = "one memcpy", .goal = 0.9},
        [&] { return rate(run, pinned); }, [&] { return bench::copy_bandwidth(b.pinned, b.run, total); });
  } else {
    out.compare(
        {.name = "VRAM to VRAM, " + size, .unit = "GB/s", .limit_name = "one memcpy", .goal = 0.9},
        [&] { return rate(vram, run); }, [&] { return bench::copy_bandwidth(b.run, b.vram, total); });
  }
}

}  // namespace

int main(int argc, char** argv) {
  bench::need_device();
  bench::report out("cuda_gather", argc, argv);
  const buffers b;
  for (const std::size_t block : {8u << 10, 32u << 10, 256u << 10})
    for (const std::uint32_t ctas : {4u, 8u, 16u, 1024u}) measure(out, b, block, ctas);
  return out.finish();
}
