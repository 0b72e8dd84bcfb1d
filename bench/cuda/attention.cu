// Decode attention with its merge, compared with plain reading of as many bytes of VRAM: GB/s of keys and values as
// they are stored. Blocks of 64 tokens lie in random order.
#include "terrace/cuda/attention.cuh"

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "../report.hpp"
#include "device.cuh"
#include "terrace/cuda/merge.cuh"

namespace {

using namespace terrace;

template <class T>
T* upload(const std::vector<T>& from) {
  T* const p = bench::allocate<T>(from.size());
  bench::check(cudaMemcpy(p, from.data(), from.size() * sizeof(T), cudaMemcpyDefault));
  return p;
}

template <std::uint32_t dim, block_encoding encoding = block_encoding::raw>
void measure(bench::report& out, const std::string& name, std::uint32_t q_heads, std::uint32_t kv_heads,
             std::uint32_t sequences, std::uint32_t tokens, std::optional<double> goal,
             bool beside_order = false) {
  if (!out.wanted(name)) return;
  constexpr std::uint32_t page_tokens = 64, split_blocks = 8;
  const plane p{.heads = kv_heads, .dim = dim};
  const layer_group group{.tokens = page_tokens, .k = p, .v = p};
  const std::uint32_t blocks = tokens / page_tokens;
  const std::size_t block = encoded_bytes(group.block_bytes(), element::fp16, encoding);
  const std::size_t total = std::size_t{sequences} * blocks * block;
  auto* const pool = bench::allocate<std::byte>(total);
  bench::check(cudaMemset(pool, 0x11, total));  // small numbers in each format

  std::vector<std::int32_t> indices(std::size_t{sequences} * blocks), indptr(sequences + 1);
  std::iota(indices.begin(), indices.end(), 0);
  std::shuffle(indices.begin(), indices.end(), std::mt19937(1));
  for (std::uint32_t s = 0; s <= sequences; ++s) indptr[s] = static_cast<std::int32_t>(s * blocks);
  const std::vector<std::int32_t> last(sequences, page_tokens);
  const std::uint32_t rows = sequences * q_heads, splits = cuda::aligned_splits_for(blocks, split_blocks);
  const std::vector<fp16> queries(std::size_t{rows} * dim, to_fp16(0.5f));
  auto* const result = bench::allocate<fp16>(std::size_t{rows} * dim);

  cuda::attention_args args;
  args.page = cuda::page_of(group, 0, encoding);
  args.table.blocks = {.base = pool, .indices = upload(indices), .stride = block};
  args.table.indptr = upload(indptr);
  args.table.last_page_len = upload(last);
  args.table.sequences = sequences;
  args.queries.values = upload(queries);
  args.queries.q_heads = q_heads;
  args.out = {.rows = bench::allocate<softmax_row>(std::size_t{rows} * splits),
              .o = bench::allocate<float>(std::size_t{rows} * splits * dim),
              .splits = splits};
  args.split_blocks = split_blocks;
  const auto rate = [&](const cuda::attention_args& a) {
    const double seconds = bench::device_seconds([&] {
      bench::check(cuda::attend<fp16, dim, encoding>(a, nullptr));
      bench::check(cuda::merge<fp16>(a.out, rows, dim, {}, {.o = result}, nullptr));
    });
    return static_cast<double>(total) / seconds / 1e9;
  };
  out.compare(
      {.name = name, .unit = "GB/s", .limit_name = "plain read", .goal = goal}, [&] { return rate(args); },
      [&] { return bench::read_bandwidth(pool, total >> 16 << 16); });
  if (beside_order) {
    std::sort(indices.begin(), indices.end());
    cuda::attention_args in_order = args;
    in_order.table.blocks.indices = upload(indices);
    out.compare(
        {.name = name + ", block table", .unit = "GB/s", .limit_name = "blocks in order"},
        [&] { return rate(args); }, [&] { return rate(in_order); });
  }
  bench::check(cudaFree(pool));
}

}  // namespace

int main(int argc, char** argv) {
  bench::need_device();
  bench::report out("cuda_attention", argc, argv);
  using enum block_encoding;
  measure<128>(out, "fp16, GQA 4, 128, 1 x 128k", 32, 8, 1, 131072, 0.85);
  measure<128>(out, "fp16, GQA 4, 128, 32 x 8k", 32, 8, 32, 8192, 0.85, true);
  measure<128>(out, "fp16, GQA 8, 128, 1 x 128k", 64, 8, 1, 131072, 0.85);
  measure<128>(out, "fp16, GQA 8, 128, 32 x 8k", 64, 8, 32, 8192, 0.85);
  measure<128>(out, "fp16, GQA 16, 128, 32 x 8k", 128, 8, 32, 8192, {});
  measure<128>(out, "fp16, MHA, 128, 8 x 8k", 32, 32, 8, 8192, {});
  measure<128, q8_0>(out, "q8_0, GQA 4, 128, 32 x 16k", 32, 8, 32, 16384, {});
  measure<128, q4_0>(out, "q4_0, GQA 4, 128, 32 x 32k", 32, 8, 32, 32768, {});
  return out.finish();
}
