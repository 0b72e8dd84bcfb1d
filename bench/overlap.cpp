// How much of a computation bound by memory can be hidden behind a disk, by a raw loop without a cache: what is left
// of it is what a stream could gain. Three ways to divide the work, each compared with the disk alone and the
// computation alone:
//  - separate threads compute, and the one that reads the disk does nothing else;
//  - the owner of the ring computes by itself, one piece between two polls for completions;
//  - it wakes a second thread for half of each piece.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdio>
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

constexpr std::size_t file_bytes = 1_GiB, block = 512_KiB, depth = 32, blocks = file_bytes / block;
// Blocks that are computed between two polls; and the memory read for each block: what came from disk once more, plus
// half as much, as when a tenth of a context is hot and a quarter in RAM.
constexpr std::size_t piece = 8, pieces = blocks / piece, piece_bytes = piece * block * 3 / 2;

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

/// A second thread that takes half of each piece.
class second_thread {
 public:
  explicit second_thread(const std::byte* memory) : memory_(memory), thread_([this] { run(); }) {}
  ~second_thread() {
    asked_.store(over);
    asked_.notify_one();
    thread_.join();
  }
  void begin(std::size_t p) {
    asked_.store(p);
    asked_.notify_one();
  }
  void wait(std::size_t p) const {
    while (done_.load() != p) std::this_thread::yield();
  }

 private:
  static constexpr std::size_t none = static_cast<std::size_t>(-1), over = none - 1;
  void run() {
    for (std::size_t last = none;;) {
      asked_.wait(last);
      last = asked_.load();
      if (last == over) return;
      if (last == none) continue;
      read_memory(memory_ + last * piece_bytes, piece_bytes / 2);
      done_.store(last);
    }
  }

  const std::byte* memory_;
  std::atomic<std::size_t> asked_{none}, done_{none};
  std::thread thread_;
};

class experiment {
 public:
  experiment(raw_disk& disk, std::byte* slots, const std::byte* memory)
      : disk_(disk), slots_(slots), memory_(memory) {}

  double disk_alone() {
    return bench::seconds([&] { disk_.run(reads_, slots_); });
  }

  // --- By separate threads, each with half of every piece.

  template <class Ready>
  void two_threads(Ready ready) {
    const auto half = [&](std::size_t who) {
      for (std::size_t p = 0; p < pieces; ++p) {
        ready(p);
        read_memory(memory_ + p * piece_bytes + who * piece_bytes / 2, piece_bytes / 2);
      }
    };
    std::thread other(half, 1u);
    half(0);
    other.join();
  }
  double threads_alone() {
    return bench::seconds([&] { two_threads([](std::size_t) {}); });
  }
  double threads_beside_disk() {
    std::atomic<std::size_t> come{0};
    return bench::seconds([&] {
      std::thread computing([&] {
        two_threads([&](std::size_t p) {
          for (std::size_t now = come.load(); now < (p + 1) * piece; now = come.load()) come.wait(now);
        });
      });
      disk_.run(reads_, slots_, [&](std::size_t ended) {
        come.store(ended);
        come.notify_all();
        return false;
      });
      computing.join();
    });
  }

  // --- By the owner of the ring, alone or with a second thread.

  void compute(std::size_t p, second_thread* second) {
    const std::byte* const at = memory_ + p * piece_bytes;
    if (second == nullptr) return read_memory(at, piece_bytes);
    second->begin(p);
    read_memory(at + piece_bytes / 2, piece_bytes / 2);
    second->wait(p);
  }
  double owner_alone(second_thread* second) {
    return bench::seconds([&] {
      for (std::size_t p = 0; p < pieces; ++p) compute(p, second);
    });
  }
  double owner_beside_disk(second_thread* second) {
    return bench::seconds([&] {
      std::size_t next = 0;
      disk_.run(reads_, slots_, [&](std::size_t ended) {
        if ((next + 1) * piece <= ended) compute(next++, second);
        return (next + 1) * piece <= ended;
      });
      while (next < pieces) compute(next++, second);
    });
  }

 private:
  raw_disk& disk_;
  std::byte* slots_;
  const std::byte* memory_;
  disk_job reads_{.reading = true,
                  .bytes = block,
                  .depth = depth,
                  .order = bench::shuffled_pieces(file_bytes, block, blocks),
                  .buffers = 2 * depth};
};

/// A row: the share of the computation that hides behind the disk, and how much longer the whole takes than the disk
/// alone.
template <class Both, class Compute>
void measure(bench::report& out, experiment& e, const std::string& name, Both both, Compute compute) {
  if (!out.wanted(name)) return;
  std::vector<double> hidden, longer, computing;
  for (int round = -1; round < out.rounds(); ++round) {
    const double disk = e.disk_alone(), all = both(), alone = compute();
    if (round < 0) continue;
    hidden.push_back((disk + alone - all) / std::min(disk, alone));
    longer.push_back((all - disk) * 1e3);
    computing.push_back(alone * 1e3);
  }
  out.add({name, "of it hidden", "all"}, hidden, std::vector<double>(hidden.size(), 1.0));
  char line[128];
  std::snprintf(line, sizeof line, "  %.0f ms of computing; the disk's time becomes %.0f ms longer",
                bench::median(computing), bench::median(longer));
  out.note(line);
}

}  // namespace

int main(int argc, char** argv) {
  bench::report out("overlap", argc, argv);
  const bench::memory memory = bench::huge_memory(pieces * piece_bytes),
                      slots = bench::huge_memory(2 * depth * block);
  std::memset(memory.get(), 1, pieces * piece_bytes);
  std::memset(slots.get(), 1, 2 * depth * block);
  const std::string path = bench::scratch_path("overlap");
  const int made = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (made < 0) {
    std::fprintf(stderr, "overlap: %s cannot be written\n", path.c_str());
    return 1;
  }
  ::close(made);
  raw_disk disk(path);
  ::unlink(path.c_str());  // nothing is left of it, however the program ends
  disk.run({false, block, depth, bench::shuffled_pieces(file_bytes, block, blocks)}, slots.get());
  experiment e(disk, slots.get(), memory.get());
  measure(
      out, e, "by threads of their own", [&] { return e.threads_beside_disk(); },
      [&] { return e.threads_alone(); });
  measure(
      out, e, "by the ring's owner alone", [&] { return e.owner_beside_disk(nullptr); },
      [&] { return e.owner_alone(nullptr); });
  second_thread second(memory.get());
  measure(
      out, e, "by the owner and a thread it wakes", [&] { return e.owner_beside_disk(&second); },
      [&] { return e.owner_alone(&second); });
  return out.finish();
}

#else

int main(int argc, char** argv) {
  bench::report out("overlap", argc, argv);
  out.note("skipped: there is no liburing to read the disk with");
  return out.finish();
}
#endif
