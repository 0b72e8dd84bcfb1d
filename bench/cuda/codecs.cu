// Blocks encoded and decoded within VRAM, compared with a copy within VRAM that moves as many bytes, reads and writes
// together; and between VRAM and pinned RAM, compared with one cudaMemcpyAsync of the encoded bytes. GB/s are of
// fp16.
#include "terrace/cuda/codecs.cuh"

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "../report.hpp"
#include "device.cuh"

namespace {

using namespace terrace;

template <block_encoding encoding>
void measure(bench::report& out, const char* name) {
  const plane p{.heads = 8, .dim = 128};
  const layer_group group{.tokens = 64, .k = p, .v = p};
  constexpr std::uint32_t count = 1024;
  const std::size_t block = group.block_bytes(), bytes = encoded_bytes(block, element::fp16, encoding);
  const std::size_t raw_total = count * block, encoded_total = count * bytes;
  auto* const raw = bench::allocate<std::byte>(raw_total);
  auto* const encoded = bench::allocate<std::byte>(encoded_total);
  auto* const pinned = bench::allocate<std::byte>(encoded_total, bench::place::pinned);
  auto* const from = bench::allocate<std::byte>(raw_total);
  std::vector<fp16> values(raw_total / 2);
  std::mt19937 random(1);
  for (fp16& x : values) x = to_fp16(static_cast<float>(static_cast<int>(random() % 2001) - 1000) / 300.0f);
  bench::check(cudaMemcpy(raw, values.data(), raw_total, cudaMemcpyDefault));

  const auto rate = [&](auto work) {
    return static_cast<double>(raw_total) / 1e9 / bench::device_seconds(work);
  };
  const cuda::block_addresses blocks{.base = raw, .stride = block};
  const auto encode = [&](std::byte* to, std::uint32_t ctas) {
    return rate([&] {
      bench::check(cuda::encode_blocks<fp16, encoding>(group, blocks, {.base = to, .stride = bytes}, count,
                                                       nullptr, ctas));
    });
  };
  const auto decode = [&](std::byte* stored, std::uint32_t ctas) {
    return rate([&] {
      bench::check(cuda::decode_blocks<fp16, encoding>(group, {.base = stored, .stride = bytes}, blocks,
                                                       count, nullptr, nullptr, ctas));
    });
  };
  // A copy of n bytes moves 2n; encoding moves the raw and the encoded bytes.
  const auto copy = [&] {
    const std::size_t each = (raw_total + encoded_total) / 2;
    return static_cast<double>(raw_total) / 1e9 / bench::device_seconds([&] {
             bench::check(cudaMemcpyAsync(from, raw, each, cudaMemcpyDefault, nullptr));
           });
  };
  const double share = static_cast<double>(raw_total) / static_cast<double>(encoded_total);
  const std::string codec = name;
  out.compare(
      {codec + ", encode", "GB/s of fp16", "VRAM memcpy"}, [&] { return encode(encoded, 132 * 8); }, copy);
  out.compare(
      {codec + ", decode", "GB/s of fp16", "VRAM memcpy"}, [&] { return decode(encoded, 132 * 8); }, copy);
  out.compare(
      {codec + ", encode to pinned, 16 CTAs", "GB/s of fp16", "memcpy of the codes"},
      [&] { return encode(pinned, 16); },
      [&] { return share * bench::copy_bandwidth(pinned, encoded, encoded_total); });
  out.compare(
      {codec + ", decode from pinned, 16 CTAs", "GB/s of fp16", "memcpy of the codes"},
      [&] { return decode(pinned, 16); },
      [&] { return share * bench::copy_bandwidth(encoded, pinned, encoded_total); });
  for (std::byte* const used : {raw, encoded, from}) bench::check(cudaFree(used));
  bench::check(cudaFreeHost(pinned));
}

}  // namespace

int main(int argc, char** argv) {
  bench::need_device();
  bench::report out("cuda_codecs", argc, argv);
  measure<block_encoding::q8_0>(out, "q8_0");
  measure<block_encoding::q4_0>(out, "q4_0");
  measure<block_encoding::fp8>(out, "fp8");
  return out.finish();
}
