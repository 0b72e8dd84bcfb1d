// CRC32C beside memcpy of the same blocks, in the same rounds. One thread, blocks of 128 KiB, more than caches hold.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "report.hpp"
#include "terrace/core/crc32c.hpp"

namespace {

using namespace terrace;

constexpr std::size_t block = 128u << 10, blocks = 2048;

}  // namespace

int main(int argc, char** argv) {
  bench::report out("checksum", argc, argv);
  std::vector<std::byte> data(block * blocks, std::byte{0x5a}), copy(block * blocks);
  const double gigabytes = static_cast<double>(data.size()) / 1e9;
  std::uint32_t sum = 0;
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
  // The goal is at most 0.6 of the time of memcpy, so 1 / 0.6 of its speed.
  out.compare(
      {.name = "crc32c", .unit = "GB/s", .limit_name = "memcpy", .goal = 1.67},
      [&] { return each_block([&](const_bytes from, std::size_t) { sum ^= crc32c(from); }); }, copies);
  out.compare(
      {.name = "crc32c by table", .unit = "GB/s", .limit_name = "memcpy"},
      [&] { return each_block([&](const_bytes from, std::size_t) { sum ^= crc32c_portable(from); }); },
      copies);
  if (sum == 1 && copy[0] == std::byte{1}) return EXIT_FAILURE;  // both are looked at
  return out.finish();
}
