// The nvme medium compared with a hand-written io_uring loop over the same file, buffers and offsets: what the medium
// and its senders cost, in throughput and in CPU time per operation. Buffers lie in a ram medium, on huge pages.
#include "raw_disk.hpp"
#include "report.hpp"
#include "scratch_path.hpp"

#if __has_include(<liburing.h>)
#include <cstdint>
#include <cstring>
#include <vector>

#include "terrace/execution/for_each.hpp"
#include "terrace/execution/sync_wait.hpp"
#include "terrace/medium/nvme.hpp"
#include "terrace/medium/ram.hpp"
#include "thread_cpu.hpp"

namespace {

using namespace terrace;
using bench::disk_job, bench::raw_disk;

constexpr std::size_t file_bytes = 512_MiB, most_depth = raw_disk::most_depth, largest = raw_disk::largest;
constexpr std::size_t bytes_a_sample = 128_MiB;

[[noreturn]] void give_up(const error& e) {
  std::fprintf(stderr, "disk: %s\n", e.message().c_str());
  std::exit(1);
}
template <class R>
auto or_give_up(R opened) {
  if (!opened) give_up(opened.error());
  return std::move(*opened);
}

struct sample {
  double gigabytes_a_second, cpu_microseconds;
};
template <class Run>
sample measure(const disk_job& j, Run&& run) {
  const double before = bench::cpu_seconds(), took = bench::seconds(run);
  const auto count = static_cast<double>(j.order.size());
  return {1e-9 * count * static_cast<double>(j.bytes) / took, 1e6 * (bench::cpu_seconds() - before) / count};
}

// The figure: extents of the medium, transferred through its senders.
void run_medium(context& ctx, nvme& medium, const disk_job& j, std::byte* buffers, std::uint64_t first) {
  std::size_t started = 0;
  const auto one = [&](std::size_t slot) noexcept {
    const extent e{first + j.order[started++] * std::uint64_t{j.bytes}, static_cast<std::uint32_t>(j.bytes),
                   0};
    const mutable_bytes buffer(buffers + slot * largest, j.bytes);
    return j.reading ? medium.read(e, buffer) : medium.write(e, buffer);
  };
  const std::size_t a_slot = j.order.size() / j.depth;
  auto all = for_each(j.depth, j.depth, [&](std::size_t slot) noexcept {
    return for_each(a_slot, 1, [&one, slot](std::size_t) noexcept { return one(slot); });
  });
  if (auto done = ctx.sync_wait(std::move(all)); !done) give_up(done.error());
}

void compare(bench::report& out, context& ctx, nvme& medium, raw_disk& raw, std::byte* buffers) {
  for (const bool reading : {true, false})
    for (const std::size_t bytes : {1_MiB, 128_KiB})
      for (const std::size_t depth : {std::size_t{1}, std::size_t{8}, std::size_t{32}}) {
        const disk_job j{reading, bytes, depth,
                         bench::shuffled_pieces(file_bytes, bytes, bytes_a_sample / bytes)};
        const std::string name = std::string(reading ? "read " : "write ") +
                                 (bytes == 1_MiB ? "1 MiB" : "128 KiB") + ", depth " + std::to_string(depth);
        if (!out.wanted(name)) continue;  // nor its CPU time
        std::vector<double> cpu, raw_cpu;
        out.compare(
            {name, "GB/s", "raw io_uring"},
            [&] {
              const sample s = measure(j, [&] { run_medium(ctx, medium, j, buffers, 0); });
              cpu.push_back(s.cpu_microseconds);
              return s.gigabytes_a_second;
            },
            [&] {
              const sample s = measure(j, [&] { raw.run(j, buffers); });
              raw_cpu.push_back(s.cpu_microseconds);
              return s.gigabytes_a_second;
            });
        // The CPU time of those same rounds, without the first, which is not counted.
        cpu.erase(cpu.begin());
        raw_cpu.erase(raw_cpu.begin());
        out.add({name + ", CPU", "us/op", "raw io_uring", bench::better::smaller}, cpu, raw_cpu);
      }
}

}  // namespace

int main(int argc, char** argv) {
  bench::report out("disk", argc, argv);
  const std::string path = bench::scratch_path("disk");
  context ctx;
  const auto medium = or_give_up(nvme::open(ctx, {.capacity = file_bytes, .path = path}));
  const auto memory = or_give_up(ram::open(ctx, {.capacity = most_depth * largest}));
  std::byte* const buffers = memory->address(*memory->reserve(most_depth * largest));
  std::memset(buffers, 1, most_depth * largest);
  if (!medium->uses_io_uring()) {
    out.note("skipped: io_uring is not available here");
    return out.finish();
  }
  if (!medium->direct()) out.note("through the page cache: this file system has no O_DIRECT");
  raw_disk raw(path);
  raw.run({false, largest, 8, bench::shuffled_pieces(file_bytes, largest, file_bytes / largest)},
          buffers);  // so that reads do not meet holes
  compare(out, ctx, *medium, raw, buffers);
  return out.finish();
}

#else

int main(int argc, char** argv) {
  bench::report out("disk", argc, argv);
  out.note("skipped: there is no liburing to build the raw loop with");
  return out.finish();
}
#endif
