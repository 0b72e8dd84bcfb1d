// Decode steps over KV that is ten times larger than the memory for it, by Terrace and by what one would write
// without it, on the same budget of bytes: the same KV in a file, the same queries, attention kernels, work items and
// threads.
//   stream        Terrace: a tier in RAM over nvme; with most of that RAM as a second tier, read in place; and with
//                 q8_0 on disk, which is not the same work: half of the bytes to bring, at a loss
//   blocking      an LRU cache of blocks, with a read (O_DIRECT) that is waited for at each miss
//   mapped        a mapped file and the kernel's paging, with the advice that serves it best
// A step's floor is max(compute alone, bytes from disk / speed of a raw io_uring loop), of the same round. The loop
// reads layer after layer, in the order of the file that the others read. Terrace's blocks are written all layers of
// a token together, and it places those of a layer behind one another as far as there is room. A note says how long
// the disk takes if they lie as they were written, and how long Terrace's transfers take alone.
//
// The page cache of a host below a virtual disk may answer faster than a disk would; it does so for all contestants.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "blocking.hpp"
#include "floor.hpp"
#include "mapped.hpp"
#include "problem.hpp"
#include "report.hpp"
#include "scratch_path.hpp"
#include "streamed.hpp"
#include "terrace/medium/nvme.hpp"
#include "terrace/terrace.hpp"

namespace equal_memory {

using two_tiers = tiered_cache<tier<ram>, tier<nvme>, step_aware>;
using encoded_below = tiered_cache<tier<ram>, tier<nvme, q8_0>, step_aware>;
using three_tiers = tiered_cache<tier<ram>, tier<ram>, tier<nvme>, step_aware>;

constexpr int steps_a_round = 2;
const cache_options patient{
    .transfers = {.deadline = std::chrono::hours(1)}};  // in case the bench is stopped for a while

template <class Cache>
std::unique_ptr<streamed<Cache>> stream_over(context& ctx, const problem& p, result<Cache> cache) {
  if (!cache) give_up(cache.error().message());
  return std::make_unique<streamed<Cache>>(ctx, p, std::move(*cache));
}

// A file with all sealed blocks, by layer and position. It has no name, so nothing of it is left however the program
// ends; `path` leads to it through its descriptor.
class kv_file {
 public:
  explicit kv_file(const problem& p) {
    const std::string name = bench::scratch_path("equal-memory");
    file_ = ::open(name.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (file_ < 0) give_up("there is no room for a file of KV");
    ::unlink(name.c_str());
    std::vector<std::byte> piece(problem::piece * p.block_bytes);
    for (std::uint32_t layer = 0; layer < problem::layers; ++layer)
      for (std::uint32_t first = 0; first < problem::blocks_a_layer; first += problem::piece) {
        for (std::uint32_t b = 0; b < problem::piece; ++b)
          p.write_block(layer, first + b, problem::block_tokens, piece.data() + b * p.block_bytes);
        if (::write(file_, piece.data(), piece.size()) != static_cast<ssize_t>(piece.size()))
          give_up("there is no room for a file of KV");
      }
    if (::fsync(file_) != 0) give_up("the file of KV cannot be written");
    ::posix_fadvise(file_, 0, 0, POSIX_FADV_DONTNEED);
  }
  kv_file(const kv_file&) = delete;
  ~kv_file() { ::close(file_); }
  std::string path() const { return "/proc/self/fd/" + std::to_string(file_); }

 private:
  int file_ = -1;
};

struct measured {
  std::string name;
  std::unique_ptr<contestant> who;
  bool ours;
  double tolerance = 1e-6;         // relative, to the first one's result
  std::vector<double> rates = {};  // steps a second, one for each round
  std::vector<double> times = {};  // ms, of each step
  std::vector<float> result = std::vector<float>(problem::layers * problem::width);
};

double relative_error(std::span<const float> x, std::span<const float> reference) {
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double d = static_cast<double>(x[i]) - static_cast<double>(reference[i]);
    difference += d * d;
    norm += static_cast<double>(reference[i]) * static_cast<double>(reference[i]);
  }
  return std::sqrt(difference / norm);
}

double percentile_95(std::vector<double> samples) {
  std::sort(samples.begin(), samples.end());
  return samples[std::min(samples.size() - 1, samples.size() * 95 / 100)];
}

std::string text_of(const char* format, auto... values) {
  char text[200];
  std::snprintf(text, sizeof text, format, values...);
  return text;
}

constexpr double mib(std::size_t bytes) { return static_cast<double>(bytes) / (1 << 20); }

// Tries each advice over one layer and keeps the best, then settles the budget.
std::string settle(bench::report& out, mapped& file, std::span<float> result) {
  std::string tried = "mapped, seconds a layer:";
  const mapped::advice* best = nullptr;
  double least = 0;
  for (const mapped::advice& how : mapped::all_advice) {
    const double took = file.try_out(how);
    tried += text_of(" %s %.2f;", how.name, took);
    if (best == nullptr || took < least) best = &how, least = took;
  }
  out.note(tried);
  file.try_out(*best);
  file.settle_budget(result);
  out.note(text_of("mapped: %.1f MiB stay from step to step", mib(file.kept_bytes())));
  return text_of("mapped, %s", best->name);
}

constexpr std::array names{"tier 0 over nvme", "RAM read in place over nvme", "tier 0 over nvme as q8_0"};

void run(bench::report& out) {
  if (std::ranges::none_of(names, [&](std::string name) { return out.wanted(name + ", p95"); })) return;
  const problem p;
  context ctx;  // the owner computes too, beside one thread of the pool
  const kv_file file(p);
  std::vector<measured> all;
  auto two = stream_over(
      ctx, p,
      two_tiers::open(ctx, p.layout, {.capacity = p.budget}, {.capacity = p.kv_bytes + 64_MiB}, {}, patient));
  auto& first = *two;
  all.push_back({names[0], std::move(two), true});
  const std::size_t windows = p.budget / 4;
  all.push_back(
      {names[1],
       stream_over(ctx, p,
                   three_tiers::open(ctx, p.layout, {.capacity = windows}, {.capacity = p.budget - windows},
                                     {.capacity = p.kv_bytes + 64_MiB}, {}, patient)),
       true});
  all.push_back({names[2],
                 stream_over(ctx, p,
                             encoded_below::open(ctx, p.layout, {.capacity = p.budget},
                                                 {.capacity = p.kv_bytes}, {}, patient)),
                 true, 0.05});
  all.push_back({"blocking, LRU", std::make_unique<blocking>(ctx, p, file.path(), 1), false});
  all.push_back({"blocking, LRU, 1 MiB a read",
                 std::make_unique<blocking>(ctx, p, file.path(), problem::piece), false});
  {
    auto kernel = std::make_unique<mapped>(ctx, p, file.path());
    std::vector<float> result(problem::layers * problem::width);
    std::string name = settle(out, *kernel, result);
    all.push_back({std::move(name), std::move(kernel), false});
  }
  compute_alone compute(ctx, p);
  disk_alone disk(p, file.path());

  std::vector<double> floors, computes, disks, by_tokens, transfers;
  std::vector<std::uint64_t> read(all.size());
  for (int round = -1; round < out.rounds(); ++round) {
    for (std::size_t i = 0; i < all.size(); ++i) {
      measured& r = all[round % 2 == 0 ? i : all.size() - 1 - i];
      double took = 0;
      for (int n = 0; n < steps_a_round; ++n) {
        const double step = bench::seconds([&] { r.who->step(r.result); });
        took += step;
        if (round >= 0) r.times.push_back(1e3 * step);
      }
      if (round >= 0) r.rates.push_back(steps_a_round / took);
    }
    if (round < 0) {
      for (std::size_t i = 0; i < all.size(); ++i) read[i] = all[i].who->bytes_read();
      continue;
    }
    const auto steps = static_cast<double>((round + 1) * steps_a_round);
    const double bytes = static_cast<double>(all[0].who->bytes_read() - read[0]) / steps;
    computes.push_back(compute.seconds());
    disks.push_back(disk.seconds_for(bytes, disk_alone::order::of_layers));
    by_tokens.push_back(disk.seconds_for(bytes, disk_alone::order::of_tokens));
    transfers.push_back(bench::seconds([&] { first.transfers_alone(); }));
    floors.push_back(1 / std::max(computes.back(), disks.back()));
  }

  const double steps = out.rounds() * steps_a_round;
  for (std::size_t i = 0; i < all.size(); ++i) {
    const measured& r = all[i];
    if (r.who->peak_bytes() > p.budget) give_up(r.name + " took more than the budget");
    out.note(text_of("%s: %.1f of %.1f MiB, %.0f MiB a step from disk, relative to the first one %.1e",
                     r.name.c_str(), mib(r.who->peak_bytes()), mib(p.budget),
                     static_cast<double>(r.who->bytes_read() - read[i]) / steps / (1 << 20),
                     relative_error(r.result, all[0].result)));
    if (relative_error(r.result, all[0].result) > r.tolerance) give_up(r.name + " has another result");
  }
  const auto ms = [](const std::vector<double>& seconds) { return 1e3 * bench::median(seconds); };
  out.note(
      text_of("ms: compute alone %.0f; the first one's bytes by a raw loop, layer after layer %.0f, token "
              "after token %.0f; its transfers alone %.0f",
              ms(computes), ms(disks), ms(by_tokens), ms(transfers)));
  for (const measured& ours : all) {
    if (!ours.ours) continue;
    for (const measured& theirs : all)
      if (!theirs.ours) out.add({ours.name, "tokens/s", theirs.name}, ours.rates, theirs.rates);
    if (&ours == &all[0] && bench::has_raw_disk)
      out.add({ours.name, "tokens/s", "the floor"}, ours.rates, floors);
    for (const measured& theirs : all)
      if (!theirs.ours)
        out.add({ours.name + ", p95", "ms a step", theirs.name, bench::better::smaller},
                percentile_95(ours.times), percentile_95(theirs.times));
  }
}

}  // namespace equal_memory

int main(int argc, char** argv) {
  bench::report out("equal_memory", argc, argv);
  equal_memory::run(out);
  return out.finish();
}
