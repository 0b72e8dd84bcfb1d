// The codecs that quantise, compared with memcpy of the raw bytes in the same rounds. One thread, blocks of 128 KiB.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "report.hpp"
#include "terrace/codec/ecsq.hpp"
#include "terrace/codec/fp8.hpp"
#include "terrace/codec/q4_0.hpp"
#include "terrace/codec/q8_0.hpp"

namespace {

using namespace terrace;

// Gaussian values, in more blocks than any cache holds.
constexpr std::size_t blocks = 512;

template <element_type T>
std::vector<std::byte> gaussian(const layer_group& group) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<T> some(1u << 16);
  for (T& x : some) x = from_float<T>(normal(random));
  std::vector<std::byte> raw(blocks * group.block_bytes());
  for (std::size_t at = 0; at < raw.size(); at += some.size() * sizeof(T))
    std::memcpy(raw.data() + at, some.data(), std::min(some.size() * sizeof(T), raw.size() - at));
  return raw;
}

template <codec C, element_type T>
void measure(bench::report& out, const char* type) {
  const std::string name = std::string(C::name) + ", " + type;
  if (!out.wanted(name + ", encode") && !out.wanted(name + ", decode")) return;
  const plane p{.heads = 2, .dim = 128, .type = element_of<T>};
  const layer_group group{.tokens = 256 / sizeof(T), .k = p, .v = p};
  const std::size_t block = group.block_bytes(), encoded_bytes = C::max_encoded_size(group);
  const std::vector<std::byte> raw = gaussian<T>(group);
  std::vector<std::byte> copy(raw.size()), encoded(blocks * encoded_bytes);
  std::vector<std::size_t> sizes(blocks);
  const double gigabytes = static_cast<double>(raw.size()) / 1e9;
  const auto each_block = [&](auto work) {
    return gigabytes / bench::seconds([&] {
             for (std::size_t b = 0; b < blocks; ++b)
               if (!work(b)) std::exit(1);
           });
  };
  const auto copies = [&] {
    return each_block([&](std::size_t b) {
      std::memcpy(copy.data() + b * block, raw.data() + b * block, block);
      return true;
    });
  };
  const auto encodes = [&] {
    return each_block([&](std::size_t b) {
      const auto written = C::encode(group, {raw.data() + b * block, block},
                                     {encoded.data() + b * encoded_bytes, encoded_bytes});
      if (written) sizes[b] = *written;
      return written.has_value();
    });
  };
  const auto decodes = [&] {
    return each_block([&](std::size_t b) {
      return C::decode(group, {encoded.data() + b * encoded_bytes, sizes[b]},
                       {copy.data() + b * block, block})
          .has_value();
    });
  };
  static_cast<void>(encodes());  // so that there is something to decode, whatever --only leaves
  out.compare({name + ", encode", "GB/s", "memcpy of raw bytes"}, encodes, copies);
  out.compare({name + ", decode", "GB/s", "memcpy of raw bytes"}, decodes, copies);
}

}  // namespace

int main(int argc, char** argv) {
  bench::report out("codec", argc, argv);
  measure<q8_0, fp16>(out, "fp16");
  measure<q4_0, fp16>(out, "fp16");
  measure<ecsq<rope{.theta = 100000}>, fp16>(out, "fp16");
  measure<ecsq<rope{.theta = 100000}>, bf16>(out, "bf16");
  measure<fp8, fp16>(out, "fp16");
  measure<fp8, bf16>(out, "bf16");
  measure<fp8, float>(out, "fp32");
  return out.finish();
}
