// The nvme medium beside a hand-written io_uring loop over the same file, buffers and offsets: what the medium and its
// senders cost, in throughput and in CPU time per operation. Buffers lie in a ram medium, on huge pages.
#include "report.hpp"
#include "scratch_path.hpp"

#if __has_include(<liburing.h>)
#include <fcntl.h>
#include <liburing.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include "terrace/execution/for_each.hpp"
#include "terrace/execution/sync_wait.hpp"
#include "terrace/medium/nvme.hpp"
#include "terrace/medium/ram.hpp"

namespace {

using namespace terrace;

constexpr std::size_t file_bytes = 512_MiB, most_depth = 32, largest = 1_MiB;
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

// One sample: `order.size()` transfers of `bytes` at order[i] * bytes, `depth` of them at once.
struct job {
  bool reading;
  std::size_t bytes, depth;
  std::vector<std::uint32_t> order;
};

struct sample {
  double gigabytes_a_second, cpu_microseconds;
};
double cpu_seconds() {
  rusage used{};
  ::getrusage(RUSAGE_THREAD, &used);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec);
  };
  return seconds(used.ru_utime) + seconds(used.ru_stime);
}
template <class Run>
sample measure(const job& j, Run&& run) {
  const double before = cpu_seconds(), took = bench::seconds(run);
  const auto count = static_cast<double>(j.order.size());
  return {1e-9 * count * static_cast<double>(j.bytes) / took, 1e6 * (cpu_seconds() - before) / count};
}

// The limit: one thread, one loop, as few calls as there can be.
class raw_loop {
 public:
  explicit raw_loop(const std::string& path) : file_(::open(path.c_str(), O_RDWR | O_DIRECT | O_CLOEXEC)) {
    if (file_ < 0) file_ = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
    const unsigned flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN;
    if (const int status = ::io_uring_queue_init(2 * most_depth, &ring_, flags); status < 0)
      give_up({errc::unavailable, "io_uring is not available", -status});
  }
  raw_loop(const raw_loop&) = delete;
  ~raw_loop() {
    ::io_uring_queue_exit(&ring_);
    ::close(file_);
  }

  void run(const job& j, std::byte* buffers) {
    std::size_t started = 0, ended = 0;
    const auto start = [&](std::size_t slot) {
      io_uring_sqe* const entry = ::io_uring_get_sqe(&ring_);
      const std::uint64_t offset = j.order[started++] * std::uint64_t{j.bytes};
      const auto length = static_cast<unsigned>(j.bytes);
      if (j.reading)
        ::io_uring_prep_read(entry, file_, buffers + slot * largest, length, offset);
      else
        ::io_uring_prep_write(entry, file_, buffers + slot * largest, length, offset);
      ::io_uring_sqe_set_data64(entry, slot);
    };
    while (started < std::min(j.depth, j.order.size())) start(started);
    while (ended < j.order.size()) {
      ::io_uring_submit_and_wait(&ring_, 1);
      io_uring_cqe* done[most_depth];
      const unsigned n = ::io_uring_peek_batch_cqe(&ring_, done, most_depth);
      std::uint64_t slots[most_depth];
      for (unsigned i = 0; i < n; ++i) {
        if (done[i]->res != static_cast<int>(j.bytes))
          give_up({errc::io_error, "a transfer of the raw loop failed", -done[i]->res});
        slots[i] = done[i]->user_data;
      }
      ::io_uring_cq_advance(&ring_, n);
      ended += n;
      for (unsigned i = 0; i < n && started < j.order.size(); ++i) start(slots[i]);
    }
  }

 private:
  int file_;
  io_uring ring_{};
};

// The figure: extents of the medium, in flight through its senders.
void run_medium(context& ctx, nvme& medium, const job& j, std::byte* buffers, std::uint64_t first) {
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

void compare(bench::report& out, context& ctx, nvme& medium, raw_loop& raw, std::byte* buffers) {
  std::mt19937 random(1);
  for (const bool reading : {true, false})
    for (const std::size_t bytes : {1_MiB, 128_KiB})
      for (const std::size_t depth : {std::size_t{1}, std::size_t{8}, std::size_t{32}}) {
        job j{reading, bytes, depth, std::vector<std::uint32_t>(file_bytes / bytes)};
        const std::string name = std::string(reading ? "read " : "write ") +
                                 (bytes == 1_MiB ? "1 MiB" : "128 KiB") + ", depth " + std::to_string(depth);
        if (!out.wanted(name)) continue;  // nor its CPU time
        std::iota(j.order.begin(), j.order.end(), 0u);
        std::shuffle(j.order.begin(), j.order.end(), random);
        j.order.resize(bytes_a_sample / bytes);
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
  raw_loop raw(path);
  job fill{false, largest, 8, std::vector<std::uint32_t>(file_bytes / largest)};
  std::iota(fill.order.begin(), fill.order.end(), 0u);
  raw.run(fill, buffers);  // so that reads do not meet holes
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
