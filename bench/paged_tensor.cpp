// A sum over a large tensor in a cache, beside the same sum over plain memory: all of it in tier 0; a tenth there and the
// rest in RAM, there as q8_0, or on disk. With a share f outside and R = speed of memory / speed of the tier below, no
// more than 1 / max(1 - f, f * R) of plain memory's speed can be had.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <span>
#include <string>

#include "huge_memory.hpp"
#include "report.hpp"
#include "scratch_path.hpp"
#include "terrace/codec/q8_0.hpp"
#include "terrace/medium/nvme.hpp"
#include "terrace/terrace.hpp"

namespace {

using namespace terrace;

constexpr std::size_t elements = std::size_t{1} << 28,
                      page_elements = std::size_t{1} << 18;  // 1 GiB, pages of 1 MiB
constexpr std::size_t bytes = elements * sizeof(float);

[[noreturn]] void give_up(const std::string& why) {
  std::fprintf(stderr, "paged_tensor: %s\n", why.c_str());
  std::exit(1);
}

// The same code for both. Many sums: a single one would wait for its own additions.
float sum_of(std::span<const float> values) {
  float sums[64] = {};
  for (std::size_t i = 0; i < values.size(); i += 64)
    for (std::size_t k = 0; k < 64; ++k) sums[k] += values[i + k];
  return std::accumulate(sums, sums + 64, 0.0f);
}

volatile float sink;

double plain(std::span<const float> values) {
  return bench::seconds([&] {
    float sum = 0;
    for (std::size_t at = 0; at < elements; at += page_elements)
      sum += sum_of(values.subspan(at, page_elements));
    sink = sum;
  });
}

double paged(const paged_tensor<float>& tensor) {
  return bench::seconds([&] {
    float sum = 0;
    auto done = tensor.for_each_page([&](std::size_t, std::span<const float> page) { sum += sum_of(page); });
    if (!done) give_up(done.error().message());
    sink = sum;
  });
}

template <class Cache>
void compare(bench::report& out, const char* name, result<Cache> cache, std::span<const float> values) {
  if (!cache) give_up(cache.error().message());
  auto tensor = paged_tensor<float>::make(*cache, elements);
  if (!tensor) give_up(tensor.error().message());
  if (auto stored = tensor->store(values); !stored) give_up(stored.error().message());
  constexpr double gigabytes = static_cast<double>(bytes) / 1e9;
  out.compare(
      {name, "GB/s", "plain memory"}, [&] { return gigabytes / paged(*tensor); },
      [&] { return gigabytes / plain(values); });
}

}  // namespace

int main(int argc, char** argv) {
  bench::report out("paged_tensor", argc, argv);
  const std::string path = bench::scratch_path("tensor");
  const kv_layout layout{{tensor_pages(element::fp32, page_elements)}};
  const bench::memory memory = bench::huge_memory(bytes);
  const std::span<float> values(reinterpret_cast<float*>(memory.get()), elements);
  std::fill(values.begin(), values.end(), 0.5f);
  context ctx;
  constexpr std::size_t tenth = bytes / 10;
  if (out.wanted("all in tier 0"))
    compare(out, "all in tier 0",
            tiered_cache<tier<ram>, lru>::open(ctx, layout, {.capacity = bytes + 16_MiB}), values);
  if (out.wanted("a tenth in tier 0, the rest in RAM"))
    compare(out, "a tenth in tier 0, the rest in RAM",
            tiered_cache<tier<ram>, tier<ram>, lru>::open(ctx, layout, {.capacity = tenth},
                                                          {.capacity = bytes + 16_MiB}),
            values);
  if (out.wanted("a tenth in tier 0, the rest as q8_0"))
    compare(out, "a tenth in tier 0, the rest as q8_0",
            tiered_cache<tier<ram>, tier<ram, q8_0>, lru>::open(ctx, layout, {.capacity = tenth},
                                                                {.capacity = bytes / 2}),
            values);
  if (out.wanted("a tenth in tier 0, the rest on disk"))
    compare(out, "a tenth in tier 0, the rest on disk",
            tiered_cache<tier<ram>, tier<nvme>, lru>::open(ctx, layout, {.capacity = tenth},
                                                           {.capacity = bytes + 64_MiB, .path = path}),
            values);
  return out.finish();
}
