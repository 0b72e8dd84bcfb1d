// The disk as an engine sees it: blocks on nvme acquired through tiered_cache, and sealed blocks written behind.
// Compared with a hand-written io_uring loop of the same transfers in the same rounds, through as much memory as the
// cache has, and with fio where that is installed.
//
// The cache verifies each block that it reads and checksums each that it writes. Its pool does that, and a note says
// how long it took. A transfer that is alone, as at depth 1, is left to the owner: there "CPU beyond the loop's" has
// the time of one such checksum, measured in the same rounds, subtracted.
#include "raw_disk.hpp"
#include "report.hpp"
#include "scratch_path.hpp"

#if __has_include(<liburing.h>)
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "huge_memory.hpp"
#include "terrace/core/crc32c.hpp"
#include "terrace/execution/for_each.hpp"
#include "terrace/medium/nvme.hpp"
#include "terrace/terrace.hpp"
#include "thread_cpu.hpp"

namespace {

using namespace terrace;
using bench::disk_job, bench::raw_disk;
using kv_cache = tiered_cache<tier<ram>, tier<nvme>, lru>;

constexpr std::size_t file_bytes = 512_MiB, bytes_a_sample = 128_MiB;
constexpr std::chrono::hours patience{1};  // a bench that was stopped for a while goes on
constexpr std::size_t hot_bytes = 48_MiB;  // less than a sample, so cyclic reads hit nothing

[[noreturn]] void give_up(const std::string& why) {
  std::fprintf(stderr, "disk_through_cache: %s\n", why.c_str());
  std::exit(1);
}

// One layer, 4 KiB a token: a block is a transfer.
kv_layout layout_of(std::size_t block) {
  return {{{.layers = 1, .tokens = static_cast<std::uint32_t>(block / 4096), .k = {8, 128}, .v = {8, 128}}}};
}

/// A cache whose tier on disk is read or written with `depth` transfers in flight.
class cached_disk {
 public:
  cached_disk(context& ctx, const disk_job& j) : job_(j), context_(ctx), cache_(open(ctx, j)) {
    cache_.use(any_prefetcher());
    if (j.reading) text_.emplace(written(file_bytes));
  }

  void run() {
    if (job_.reading)
      read();
    else
      last_ = written(bytes_a_sample);  // then drops the previous sequence
  }
  /// Blocks transferred so far.
  std::uint64_t transfers() const {
    const tier_stats disk = cache_.stats().tiers[1];
    return job_.reading ? disk.loads : disk.stores;
  }

 private:
  static kv_cache open(context& ctx, const disk_job& j) {
    const auto depth = static_cast<unsigned>(j.depth);
    auto cache = kv_cache::open(
        ctx, layout_of(j.bytes), {.capacity = hot_bytes}, {.capacity = file_bytes + 4 * j.bytes}, {},
        {.transfers = {.loads_in_flight = depth, .stores_in_flight = depth, .deadline = patience}});
    if (!cache) give_up(cache.error().message());
    return std::move(*cache);
  }
  // As an engine does, except for the computation: blocks are written in place, sealed, and written behind.
  sequence written(std::size_t bytes) {
    const auto tokens = static_cast<std::uint32_t>(job_.bytes / 4096);
    sequence text = cache_.make_sequence();
    for (std::size_t at = 0; at < bytes; at += job_.bytes) {
      auto room = text.reserve(tokens);
      if (!room) give_up(room.error().message());
      text.commit(std::move(*room), tokens);
    }
    if (auto done = context_.sync_wait(cache_.flush()); !done) give_up(done.error().message());
    return text;
  }
  void read() {
    const std::span<const block_id> blocks = text_->pages().rows[0];
    auto all = for_each(job_.order.size(), job_.depth, [&](std::size_t i) noexcept {
      return ex::then(cache_.acquire(blocks.subspan(job_.order[i], 1)), [](lease) noexcept {});
    });
    if (auto done = context_.sync_wait(std::move(all)); !done) give_up(done.error().message());
  }

  const disk_job& job_;
  context& context_;
  kv_cache cache_;
  std::optional<sequence> text_;
  std::optional<sequence> last_;
};

// GB/s of fio for the same job over all of the file, because a shorter job mostly measures its start; nothing if fio
// is not there.
std::optional<double> fio(const disk_job& j, const std::string& path) {
  const std::string command =
      "fio --name=terrace --filename=" + path +
      " --ioengine=io_uring --direct=1 --iomem_align=2m --rw=" + (j.reading ? "randread" : "randwrite") +
      " --bs=" + std::to_string(j.bytes) + " --iodepth=" + std::to_string(j.depth) +
      " --size=" + std::to_string(file_bytes) + " --io_size=" + std::to_string(file_bytes) +
      " --output-format=json 2>/dev/null";
  std::FILE* const pipe = ::popen(command.c_str(), "r");
  if (pipe == nullptr) return {};
  double most = 0;  // what was read, and what was written: one of them is 0
  for (char line[4096]; std::fgets(line, sizeof line, pipe) != nullptr;)
    if (const char* const at = std::strstr(line, "\"bw_bytes\" : "); at != nullptr)
      most = std::max(most, std::atof(at + std::strlen("\"bw_bytes\" : ")));
  const bool ended_well = ::pclose(pipe) == 0;
  return ended_well && most > 0 ? std::optional(1e-9 * most) : std::nullopt;
}

struct samples {
  std::vector<double> rates, cpu;  // GB/s; us per operation of the thread that drives it
};
template <class Run>
void sample(const disk_job& j, bool counts, samples& to, Run&& run) {
  const double before = bench::cpu_seconds(), took = bench::seconds(run);
  const auto n = static_cast<double>(j.order.size());
  if (!counts) return;
  to.rates.push_back(1e-9 * n * static_cast<double>(j.bytes) / took);
  to.cpu.push_back(1e6 * (bench::cpu_seconds() - before) / n);
}

// Seconds for the checksum of a block that is not in cache.
double checksum_seconds(const std::byte* memory, std::size_t bytes) {
  static std::size_t at = 0;
  constexpr std::size_t blocks = 16;
  volatile std::uint32_t sum = 0;
  return bench::seconds([&] {
           for (std::size_t i = 0; i < blocks; ++i) {
             at = at + 2 * bytes > hot_bytes ? 0 : at + bytes;
             sum = sum + crc32c({memory + at, bytes});
           }
         }) /
         blocks;
}

void compare(bench::report& out, raw_disk& raw, const std::string& raw_path, std::byte* buffers,
             const std::string& name, const disk_job& j) {
  context ctx;
  cached_disk cache(ctx, j);
  samples ours, theirs;
  std::vector<double> of_fio, beside_fio, checksums;
  const auto pool_seconds = [] { return bench::cpu_seconds(bench::whose::process) - bench::cpu_seconds(); };
  std::uint64_t transfers = 0;
  double pool = 0;
  for (int round = -1; round < out.rounds(); ++round) {
    const auto through_cache = [&] { sample(j, round >= 0, ours, [&] { cache.run(); }); };
    if (round == 0)
      transfers = cache.transfers(), pool = pool_seconds();  // the first round hits what was just written
    if (round % 2 == 0) through_cache();
    sample(j, round >= 0, theirs, [&] { raw.run(j, buffers); });
    if (round % 2 != 0) through_cache();
    if (round >= 0) checksums.push_back(1e6 * checksum_seconds(buffers, j.bytes));
    if (round < 0 || round >= 3) continue;  // fio takes half a second to start
    const std::optional<double> rate = fio(j, raw_path);
    if (!rate) continue;
    of_fio.push_back(*rate);
    beside_fio.push_back(ours.rates.back());
  }
  pool = pool_seconds() - pool;
  const std::uint64_t operations = j.order.size() * static_cast<std::uint64_t>(out.rounds());
  if (cache.transfers() - transfers != operations) give_up(name + ": not every operation came to the disk");

  out.add({.name = name, .unit = "GB/s", .limit_name = "raw io_uring", .goal = 0.97}, ours.rates,
          theirs.rates);
  if (!of_fio.empty())
    out.add({.name = name + ", to fio", .unit = "GB/s", .limit_name = "fio"}, beside_fio, of_fio);
  out.add({name + ", CPU", "us/op", "raw io_uring", bench::better::smaller}, ours.cpu, theirs.cpu);
  std::vector<double> beyond;
  for (std::size_t i = 0; i < ours.cpu.size(); ++i)
    beyond.push_back(std::max(0.01, ours.cpu[i] - theirs.cpu[i] - (j.depth == 1 ? checksums[i] : 0)));
  out.add({name + ", CPU beyond the loop's", "us/op", "5 us", bench::better::smaller, 1.0}, beyond,
          std::vector<double>(beyond.size(), 5.0));
  char text[80];
  if (j.depth == 1)
    std::snprintf(text, sizeof text, "a checksum: %.1f us", bench::median(checksums));
  else
    std::snprintf(text, sizeof text, "the pool, which checks: %.1f us/op",
                  1e6 * pool / static_cast<double>(operations));
  out.note(text);
}

}  // namespace

int main(int argc, char** argv) {
  bench::report out("disk_through_cache", argc, argv);
  const std::string path = bench::scratch_path("raw");
  context ctx;
  auto medium = nvme::open(ctx, {.capacity = file_bytes, .path = path});  // makes the file, and removes it
  if (!medium) give_up(medium.error().message());
  if (!(*medium)->uses_io_uring()) {
    out.note("skipped: io_uring is not available here");
    return out.finish();
  }
  if (!(*medium)->direct()) out.note("through the page cache: this file system has no O_DIRECT");
  if (std::system("command -v fio >/dev/null 2>&1") != 0)
    out.note("fio is not installed: nothing is beside it");
  const bench::memory buffers = bench::huge_memory(hot_bytes);
  std::memset(buffers.get(), 1, hot_bytes);
  raw_disk raw(path);
  raw.run({false, 1_MiB, 8, bench::shuffled_pieces(file_bytes, 1_MiB, file_bytes / 1_MiB)}, buffers.get());
  for (const bool reading : {true, false})
    for (const std::size_t bytes : {1_MiB, 128_KiB})
      for (const std::size_t depth : {std::size_t{1}, std::size_t{8}, std::size_t{32}}) {
        const std::string name = std::string(reading ? "read " : "write ") +
                                 (bytes == 1_MiB ? "1 MiB" : "128 KiB") + ", depth " + std::to_string(depth);
        if (!out.wanted(name)) continue;
        compare(out, raw, path, buffers.get(), name,
                {reading, bytes, depth, bench::shuffled_pieces(file_bytes, bytes, bytes_a_sample / bytes),
                 hot_bytes / bytes});
      }
  return out.finish();
}

#else

int main(int argc, char** argv) {
  bench::report out("disk_through_cache", argc, argv);
  out.note("skipped: there is no liburing to build the raw loop with");
  return out.finish();
}
#endif
