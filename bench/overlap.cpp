// How much of a computation this machine can hide behind a disk at all: a raw loop reads the disk on a thread of its own,
// always with as much in flight, and the other threads compute as parts of the file arrive. Once they read memory, as
// attention does, and once they stay in registers: what differs is what the two take from one another.
#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "huge_memory.hpp"
#include "raw_disk.hpp"
#include "report.hpp"
#include "scratch_path.hpp"
#include "terrace/core/bytes.hpp"

#if __has_include(<liburing.h>)
namespace {

using namespace terrace;
using bench::disk_job, bench::raw_disk;

constexpr std::size_t file_bytes = 1_GiB, piece = 512_KiB, depth = 32, buffers = 2 * depth;
constexpr std::size_t pieces = file_bytes / piece;
// Of memory for each byte of the disk, as where a tenth of a context is hot and a quarter in RAM.
constexpr std::size_t memory_bytes = file_bytes * 3 / 2;

volatile std::uint64_t sink = 0;

void read_memory(const std::byte* at, std::size_t bytes) {
  std::array<std::uint64_t, 8> sum{};  // independent of one another: memory is the limit, not the adder
  for (std::size_t i = 0; i + sizeof sum <= bytes; i += sizeof sum)
    for (std::size_t s = 0; s < sum.size(); ++s) {
      std::uint64_t word;
      std::memcpy(&word, at + i + s * sizeof word, sizeof word);
      sum[s] += word;
    }
  for (const std::uint64_t s : sum) sink = sink + s;
}

void stay_in_registers(std::size_t rounds) {
  std::uint64_t x = rounds;
  for (std::size_t i = 0; i < rounds; ++i) x = x * 6364136223846793005u + 1;
  sink = sink + x;
}

class experiment {
 public:
  experiment(raw_disk& disk, std::byte* slots, const std::byte* memory)
      : disk_(disk), slots_(slots), memory_(memory) {}

  double disk_alone() {
    return bench::seconds([&] { disk_.run(reads_, slots_); });
  }
  /// Computes in so many steps as there are depths in the file; `ready(step)` returns when a step may begin.
  template <class Ready>
  void compute(bool reads_memory, Ready ready) {
    const auto one = [&](unsigned who) {
      for (std::size_t step = 0; step < steps; ++step) {
        ready(step);
        if (!reads_memory) {
          stay_in_registers(step_bytes / 32);  // about as long as to read them takes
          continue;
        }
        read_memory(memory_ + (step * workers + who) * step_bytes, step_bytes);
      }
    };
    std::thread other(one, 1u);
    one(0);
    other.join();
  }
  double compute_alone(bool reads_memory) {
    return bench::seconds([&] { compute(reads_memory, [](std::size_t) {}); });
  }
  // The loop has the thread that made its ring: this one. So the computation has two of its own.
  double both(bool reads_memory) {
    std::atomic<std::size_t> come{0};
    return bench::seconds([&] {
      std::thread computing([&] {
        compute(reads_memory, [&](std::size_t step) {
          for (std::size_t now = come.load(); now < (step + 1) * depth; now = come.load()) come.wait(now);
        });
      });
      disk_.run(reads_, slots_, [&](std::size_t ended) {
        come.store(ended);
        come.notify_all();
      });
      computing.join();
    });
  }

  static constexpr std::size_t workers = 2, steps = pieces / depth;
  static constexpr std::size_t step_bytes = memory_bytes / steps / workers;

 private:
  raw_disk& disk_;
  std::byte* slots_;
  const std::byte* memory_;
  disk_job reads_{.reading = true,
                  .bytes = piece,
                  .depth = depth,
                  .order = bench::shuffled_pieces(file_bytes, piece, pieces),
                  .buffers = buffers};
};

void write_file(const std::string& path, const std::byte* from) {
  std::FILE* const file = std::fopen(path.c_str(), "wb");
  bool written = file != nullptr;
  for (std::size_t i = 0; written && i < pieces; ++i) written = std::fwrite(from, piece, 1, file) == 1;
  if (file != nullptr) written = std::fclose(file) == 0 && written;
  if (written) return;
  std::fprintf(stderr, "overlap: %s cannot be written\n", path.c_str());
  std::remove(path.c_str());
  std::exit(1);
}

void measure(bench::report& out, experiment& e, const std::string& name, bool reads_memory) {
  if (!out.wanted(name)) return;
  std::vector<double> hidden, longer, computing, all;
  for (int round = -1; round < out.rounds(); ++round) {
    const double disk = e.disk_alone(), both = e.both(reads_memory), compute = e.compute_alone(reads_memory);
    if (round < 0) continue;
    hidden.push_back((disk + compute - both) / std::min(disk, compute));
    longer.push_back((both - disk) * 1e3);
    computing.push_back(compute * 1e3);
    all.push_back(1);
  }
  out.add({name, "of the computation", "all of it"}, hidden, all);
  const auto [least, most] = std::minmax_element(hidden.begin(), hidden.end());
  char line[160];
  std::snprintf(
      line, sizeof line,
      "%.0f ms of it make reading the file %.0f ms longer; hidden in one round %.2f, in another %.2f",
      bench::median(computing), bench::median(longer), *least, *most);
  out.note(line);
}

}  // namespace

int main(int argc, char** argv) {
  bench::report out("overlap", argc, argv);
  const bench::memory memory = bench::huge_memory(memory_bytes), slots = bench::huge_memory(buffers * piece);
  std::memset(memory.get(), 1, memory_bytes);
  std::memset(slots.get(), 1, buffers * piece);
  const std::string path = bench::scratch_path("overlap");
  write_file(path, slots.get());
  {
    raw_disk disk(path);
    experiment e(disk, slots.get(), memory.get());
    measure(out, e, "beside a disk: reading memory", true);
    measure(out, e, "beside a disk: in registers", false);
  }
  std::remove(path.c_str());
  return out.finish();
}

#else

int main(int argc, char** argv) {
  bench::report out("overlap", argc, argv);
  out.note("skipped: there is no liburing to read the disk with");
  return out.finish();
}
#endif
