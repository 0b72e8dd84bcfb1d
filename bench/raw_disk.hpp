#pragma once
// What a disk delivers to one thread and one io_uring loop with as few calls as possible: the limit for all that
// reads and writes through Terrace. Without liburing there is none (bench::has_raw_disk).
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "terrace/core/bytes.hpp"

#if __has_include(<liburing.h>)
#include <fcntl.h>
#include <liburing.h>
#include <unistd.h>
#endif

namespace bench {

/// Transfers of `bytes` at order[i] * bytes of a file, `depth` of them at once, through `buffers` buffers in turn.
/// Few buffers stay in the processor's caches, which are faster than memory; 0: as many as are in flight.
struct disk_job {
  bool reading;
  std::size_t bytes, depth;
  std::vector<std::uint32_t> order;
  std::size_t buffers = 0;
};

/// The first `count` pieces of a random order of all pieces of `file_bytes`; the order is always the same.
inline std::vector<std::uint32_t> shuffled_pieces(std::size_t file_bytes, std::size_t piece,
                                                  std::size_t count) {
  std::vector<std::uint32_t> order(file_bytes / piece);
  std::iota(order.begin(), order.end(), 0u);
  std::mt19937 random(1);
  std::shuffle(order.begin(), order.end(), random);
  order.resize(std::min(count, order.size()));
  return order;
}

#if __has_include(<liburing.h>)
inline constexpr bool has_raw_disk = true;

/// An existing file, accessed past the page cache where the file system allows it. Errors end the program.
class raw_disk {
 public:
  static constexpr std::size_t most_depth = 32, largest = std::size_t{1} << 20;

  explicit raw_disk(const std::string& path) : file_(::open(path.c_str(), O_RDWR | O_DIRECT | O_CLOEXEC)) {
    if (file_ < 0) file_ = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
    if (file_ < 0) give_up("the file cannot be opened");
    const unsigned flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN;
    if (::io_uring_queue_init(2 * most_depth, &ring_, flags) < 0) give_up("io_uring is not available");
  }
  raw_disk(const raw_disk&) = delete;
  ~raw_disk() {
    ::io_uring_queue_exit(&ring_);
    ::close(file_);
  }

  /// Runs the job; buffers lie j.bytes apart. Preconditions: j.depth is at most most_depth, and j.buffers is 0 or at
  /// least j.depth.
  void run(const disk_job& j, std::byte* at) { run(j, at, nothing{}); }

  /// Likewise, and calls `meanwhile(transfers that have ended)` each time it has submitted what it could; if that
  /// returns true, because it has more to do, the loop does not wait.
  template <class Meanwhile>
  void run(const disk_job& j, std::byte* at, Meanwhile meanwhile) {
    std::vector<std::byte*> free;  // a ring: the buffer that has been idle longest is next
    for (std::size_t b = 0; b < std::max(j.depth, j.buffers); ++b) free.push_back(at + b * j.bytes);
    std::size_t started = 0, ended = 0;
    const auto start = [&] {
      io_uring_sqe* const entry = ::io_uring_get_sqe(&ring_);
      std::byte* const buffer = free[started % free.size()];
      const std::uint64_t offset = j.order[started++] * std::uint64_t{j.bytes};
      const auto length = static_cast<unsigned>(j.bytes);
      if (j.reading)
        ::io_uring_prep_read(entry, file_, buffer, length, offset);
      else
        ::io_uring_prep_write(entry, file_, buffer, length, offset);
      ::io_uring_sqe_set_data(entry, buffer);
    };
    while (started < std::min(j.depth, j.order.size())) start();
    bool more_to_do = false;
    while (ended < j.order.size()) {
      if (more_to_do)
        ::io_uring_submit_and_get_events(&ring_);
      else
        ::io_uring_submit_and_wait(&ring_, 1);
      io_uring_cqe* done[most_depth];
      const unsigned n = ::io_uring_peek_batch_cqe(&ring_, done, most_depth);
      for (unsigned i = 0; i < n; ++i) {
        if (done[i]->res != static_cast<int>(j.bytes)) give_up("a transfer of the raw loop failed");
        free[ended++ % free.size()] = static_cast<std::byte*>(::io_uring_cqe_get_data(done[i]));
      }
      ::io_uring_cq_advance(&ring_, n);
      for (unsigned i = 0; i < n && started < j.order.size(); ++i) start();
      if constexpr (!std::is_same_v<Meanwhile, nothing>) {
        ::io_uring_submit(&ring_);
        more_to_do = meanwhile(ended);
      }
    }
  }

 private:
  struct nothing {};
  [[noreturn]] static void give_up(const char* why) {
    std::fprintf(stderr, "raw disk: %s\n", why);
    std::exit(1);
  }

  int file_;
  io_uring ring_{};
};
#else
inline constexpr bool has_raw_disk = false;
#endif

}  // namespace bench
