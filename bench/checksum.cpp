// CRC32C compared with memcpy and with plain reading of the same blocks, in the same rounds: one thread, blocks of
// 128 KiB, either more than caches hold or one that the nearest cache holds. And its share of a load from disk: 1 MiB
// through the nvme medium, checked and not.
#include <array>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "report.hpp"
#include "terrace/core/crc32c.hpp"
#include "terrace/execution/for_each.hpp"
#include "terrace/execution/sync_wait.hpp"
#include "terrace/medium/nvme.hpp"
#include "terrace/medium/ram.hpp"

namespace {

using namespace terrace;

constexpr std::size_t block = 128_KiB, blocks = 2048;

void in_memory(bench::report& out) {
  std::vector<std::byte> data(block * blocks, std::byte{0x5a}), copy(block * blocks);
  const double gigabytes = static_cast<double>(data.size()) / 1e9;
  std::uint64_t sum = 0;
  const auto each_block = [&](auto work) {
    return gigabytes / bench::seconds([&] {
             for (std::size_t b = 0; b < blocks; ++b) work(const_bytes(data).subspan(b * block, block), b);
           });
  };
  const auto copies = [&] {
    return each_block([&](const_bytes from, std::size_t b) {
      std::memcpy(copy.data() + b * block, from.data(), from.size());
    });
  };
  const auto reads = [&] {
    return each_block([&](const_bytes from, std::size_t) {
      std::array<std::uint64_t, 8> words, sums{};
      for (std::size_t i = 0; i < from.size(); i += sizeof words) {
        std::memcpy(words.data(), from.data() + i, sizeof words);
        for (std::size_t k = 0; k < words.size(); ++k) sums[k] += words[k];
      }
      for (const std::uint64_t s : sums) sum += s;
    });
  };
  const auto checks = [&] { return each_block([&](const_bytes from, std::size_t) { sum ^= crc32c(from); }); };
  // The goal is at most 0.6 of memcpy's time, hence 1 / 0.6 of its speed.
  out.compare({.name = "crc32c", .unit = "GB/s", .limit_name = "memcpy", .goal = 1.67}, checks, copies);
  out.compare({.name = "crc32c, against reading", .unit = "GB/s", .limit_name = "plain reading"}, checks,
              reads);
  out.compare(
      {.name = "crc32c of a block in cache", .unit = "GB/s", .limit_name = "memcpy there"},
      [&] {
        return each_block([&](const_bytes, std::size_t) { sum ^= crc32c(const_bytes(data).first(block)); });
      },
      [&] {
        return each_block([&](const_bytes, std::size_t) { std::memcpy(copy.data(), data.data(), block); });
      });
  out.compare(
      {.name = "crc32c by table", .unit = "GB/s", .limit_name = "memcpy"},
      [&] { return each_block([&](const_bytes from, std::size_t) { sum ^= crc32c_portable(from); }); },
      copies);
  if (sum == 1 && copy[0] == std::byte{1}) std::exit(EXIT_FAILURE);  // both results are used
}

// The thread that waits for the disk computes the checksums too: the worst case. A cache leaves them to its pool.
void of_a_load(bench::report& out) {
  constexpr std::size_t bytes = 1_MiB, count = 256;
  context ctx;
  auto medium = nvme::open(ctx, {.capacity = count * bytes});
  auto buffers = ram::open(ctx, {.capacity = 8 * bytes});
  if (!medium || !buffers) return out.note("no disk: nothing is loaded");
  std::byte* const memory = (*buffers)->address(*(*buffers)->reserve(8 * bytes));
  std::memset(memory, 0x5a, 8 * bytes);
  const auto extent_of = [](std::size_t i) { return extent{i * bytes, bytes, 0}; };
  for (std::size_t i = 0; i < count; ++i)
    if (!ctx.sync_wait((*medium)->write(extent_of(i), {memory, bytes})))
      return out.note("the disk takes nothing");
  std::uint32_t sum = 0;
  const auto load = [&](std::size_t depth, bool checked) {
    return 1e-9 * static_cast<double>(count * bytes) / bench::seconds([&] {
             auto all = for_each(depth, depth, [&](std::size_t slot) noexcept {
               return for_each(count / depth, 1, [&, slot](std::size_t i) noexcept {
                 const mutable_bytes buffer(memory + slot * bytes, bytes);
                 return ex::then((*medium)->read(extent_of(slot * (count / depth) + i), buffer),
                                 [&sum, checked, buffer]() noexcept {
                                   if (checked) sum ^= crc32c(buffer);
                                 });
               });
             });
             if (!ctx.sync_wait(std::move(all))) out.note("a load failed");
           });
  };
  for (const std::size_t depth : {std::size_t{1}, std::size_t{8}})
    out.compare(
        {.name = "nvme, 1 MiB checked, depth " + std::to_string(depth),
         .unit = "GB/s",
         .limit_name = "not checked"},
        [&] { return load(depth, true); }, [&] { return load(depth, false); });
  if (sum == 1) std::exit(EXIT_FAILURE);
}

}  // namespace

int main(int argc, char** argv) {
  bench::report out("checksum", argc, argv);
  in_memory(out);
  of_a_load(out);
  return out.finish();
}
