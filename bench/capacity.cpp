// The bytes that a token of qwen2.5-14b takes in a tier, for each codec: blocks of its shape, encoded, and placed by
// the tiers' own allocator with the granule of their media, without and with the header of a kept extent. The limit
// is what the codec itself writes. The values are Gaussian; bench/kv_loss says what codecs make of a model's KV.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "report.hpp"
#include "terrace/cache/residency.hpp"
#include "terrace/codec/chain.hpp"
#include "terrace/codec/ecsq.hpp"
#include "terrace/codec/fp8.hpp"
#include "terrace/codec/zstd.hpp"
#include "terrace/medium/disk_format.hpp"
#include "terrace/medium/nvme.hpp"
#include "terrace/medium/ram.hpp"
#include "terrace/medium/space.hpp"
#include "terrace/terrace.hpp"

namespace {

using namespace terrace;

constexpr std::uint32_t layers = 48, blocks = 64;
constexpr rope turned{.theta = 1000000};

std::vector<std::byte> gaussian(std::size_t bytes) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<std::byte> raw(bytes);
  auto* const values = reinterpret_cast<fp16*>(raw.data());
  std::generate_n(values, bytes / sizeof(fp16), [&] { return to_fp16(normal(random)); });
  return raw;
}

template <codec C>
void measure(bench::report& out, const layer_group& group, const std::vector<std::byte>& raw,
             const char* name) {
  const std::size_t block = group.block_bytes();
  std::vector<std::byte> encoded(C::max_encoded_size(group));
  static_assert(ram::alignment == nvme::alignment);
  space room(2 * blocks * align_up(encoded.size(), nvme::alignment), nvme::alignment);
  std::size_t written = 0;
  for (std::uint32_t b = 0; b < blocks; ++b) {
    const auto bytes = C::encode(group, {raw.data() + b * block, block}, {encoded.data(), encoded.size()});
    if (!bytes || !room.reserve(*bytes)) std::exit(1);
    written += *bytes;
  }
  const auto a_token = [&](std::size_t bytes) {
    return static_cast<double>(bytes) * layers / (static_cast<double>(blocks) * group.tokens);
  };
  const std::string label = name;
  out.add({label, "bytes a token", "the codec's", bench::better::smaller}, a_token(room.used()),
          a_token(written));
  out.add({label + ", kept", "bytes a token", "the codec's", bench::better::smaller},
          a_token(room.used() + blocks * extent_header::bytes), a_token(written));
}

}  // namespace

int main(int argc, char** argv) {
  bench::report out("capacity", argc, argv);
  const layer_group group{.layers = layers, .k = {8, 128}, .v = {8, 128}};
  const std::vector<std::byte> raw = gaussian(blocks * group.block_bytes());
  constexpr std::size_t record = residency::bytes_per_block(3);  // in a ladder of three tiers
  char text[160];
  std::snprintf(text, sizeof text, "blocks of %u tokens, %zu bytes; a record of each in RAM: %zu bytes",
                group.tokens, group.block_bytes(), record);
  out.note(text);
  measure<identity>(out, group, raw, "identity");
  measure<fp8>(out, group, raw, "fp8");
  measure<q8_0>(out, group, raw, "q8_0");
  measure<q4_0>(out, group, raw, "q4_0");
  measure<zstd<>>(out, group, raw, "zstd");
  measure<chain<q4_0, zstd<>>>(out, group, raw, "q4_0, zstd");
  measure<ecsq<turned, 8, 7>>(out, group, raw, "ecsq 0.8, 0.7");
  measure<ecsq<turned>>(out, group, raw, "ecsq 1.2, 1.0");
  // The planner's record of a block is in RAM, however far down the block is.
  out.add({"record in RAM", "bytes a token", "KV as fp16", bench::better::smaller},
          static_cast<double>(record) * layers / group.tokens,
          static_cast<double>(group.token_bytes() * layers));
  return out.finish();
}
