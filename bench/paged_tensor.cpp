// A sum over a large tensor in a cache, compared with the same sum over plain memory: with all of it in tier 0, or
// with a tenth there and the rest in RAM, in RAM as q8_0, or on disk. Where pages are brought, a second row has the
// formula of README.md as its limit: if a share f is brought, and R = speed of memory / speed of what brings it, a
// sum takes at least max(1, f R) of the time that it takes over plain memory, because it also reads in memory what
// was brought. The speeds are of the same rounds, and f is what the cache counted.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <numeric>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "huge_memory.hpp"
#include "raw_disk.hpp"
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

// The same code for both. Many partial sums: a single one would wait for its own additions.
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
std::uint64_t loads(const Cache& cache) {
  std::uint64_t sum = 0;
  for (const tier_stats& tier : cache.stats().tiers) sum += tier.loads;
  return sum;
}

constexpr double gigabytes = static_cast<double>(bytes) / 1e9;

// `link` returns how fast pages can be brought, in GB/s; it is empty if they are read in place.
template <class Cache>
void compare(bench::report& out, const char* name, result<Cache> cache, std::span<const float> values,
             const std::function<double()>& link = {}) {
  if (!cache) give_up(cache.error().message());
  auto tensor = paged_tensor<float>::make(*cache, elements);
  if (!tensor) give_up(tensor.error().message());
  if (auto stored = tensor->store(values); !stored) give_up(stored.error().message());
  std::vector<double> speeds, of_memory, bounds;
  for (int round = -1; round < out.rounds(); ++round) {
    double ours = 0;
    const std::uint64_t brought = loads(*cache);
    if (round % 2 == 0) ours = gigabytes / paged(*tensor);
    const double memory = gigabytes / plain(values);
    if (round % 2 != 0) ours = gigabytes / paged(*tensor);
    const double f = static_cast<double>(loads(*cache) - brought) / static_cast<double>(tensor->pages());
    const double below = link ? link() : memory;
    if (round < 0) continue;
    speeds.push_back(ours);
    of_memory.push_back(memory);
    bounds.push_back(memory / std::max(1.0, f * memory / below));
  }
  out.add({name, "GB/s", "plain memory"}, speeds, of_memory);
  if (link) out.add({std::string(name) + ", formula", "GB/s", "1 / max(1, f R)"}, speeds, bounds);
}

// How fast one thread, which is what the pool has, decodes pages, from and to more memory than caches hold.
double decoding(std::span<const float> values) {
  constexpr std::size_t pages = 256, slots = bytes / 10 / (page_elements * sizeof(float));
  const layer_group group = tensor_pages(element::fp32, page_elements);
  const std::size_t page = group.block_bytes(), room = q8_0::max_encoded_size(group);
  static std::vector<std::byte> encoded, raw(slots * page);
  const const_bytes from = std::as_bytes(values).first(page);
  if (encoded.empty()) {
    encoded.resize(pages * room);
    for (std::size_t i = 0; i < pages; ++i)
      if (!q8_0::encode(group, from, {encoded.data() + i * room, room})) give_up("a page cannot be encoded");
  }
  return 1e-9 * static_cast<double>(pages * page) / bench::seconds([&] {
           for (std::size_t i = 0; i < pages; ++i)
             if (!q8_0::decode(group, {encoded.data() + i * room, room},
                               {raw.data() + i % slots * page, page}))
               give_up("a page cannot be decoded");
         });
}

// How fast the disk delivers pages, eight of them in flight, as a tensor requests them.
std::function<double()> reading([[maybe_unused]] const std::string& path) {
#if __has_include(<liburing.h>)
  constexpr std::size_t page = page_elements * sizeof(float), depth = 8, buffers = bytes / 10 / page;
  const auto raw = std::make_shared<bench::raw_disk>(path);
  const auto memory = std::make_shared<bench::memory>(bench::huge_memory(buffers * page));
  return [raw, memory,
          job = bench::disk_job{true, page, depth, bench::shuffled_pieces(bytes, page, 256), buffers}] {
    return 1e-9 * static_cast<double>(job.order.size() * page) /
           bench::seconds([&] { raw->run(job, memory->get()); });
  };
#else
  return {};
#endif
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
            values, [&] { return decoding(values); });
  if (out.wanted("a tenth in tier 0, the rest on disk")) {
    auto cache = tiered_cache<tier<ram>, tier<nvme>, lru>::open(ctx, layout, {.capacity = tenth},
                                                                {.capacity = bytes + 64_MiB, .path = path});
    const auto link = cache ? reading(path) : nullptr;
    compare(out, "a tenth in tier 0, the rest on disk", std::move(cache), values, link);
  }
  return out.finish();
}
