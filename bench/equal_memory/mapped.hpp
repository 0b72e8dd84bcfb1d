#pragma once
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <span>
#include <string>
#include <vector>

#include "hand_attention.hpp"
#include "problem.hpp"
#include "report.hpp"

namespace equal_memory {

/// All KV in one mapped file, with the kernel's paging instead of a cache.
///
/// The budget holds without a cgroup, and so without root: what attention has read is unmapped and dropped from the
/// page cache right behind it, except for a part of each layer that stays. No choice is better for a scan that
/// repeats, as every decode step does; the kernel's own, least recently used, would keep nothing. The part is as
/// large as the budget allows beside the most that read-ahead was seen to take; `mincore` measures both.
class mapped : public contestant {
 public:
  /// How the kernel is asked to read.
  struct advice {
    const char* name;
    int pattern;    // MADV_NORMAL, MADV_SEQUENTIAL or MADV_RANDOM
    bool announce;  // MADV_WILLNEED for what comes eight pieces later
    bool populate;  // MADV_POPULATE_READ: a piece's page faults in one call
  };
  static constexpr std::array all_advice {
    advice{"no advice", MADV_NORMAL, false, false}, advice{"SEQUENTIAL", MADV_SEQUENTIAL, false, false},
        advice{"RANDOM", MADV_RANDOM, false, false}, advice{"WILLNEED", MADV_NORMAL, true, false},
        advice{"RANDOM, WILLNEED", MADV_RANDOM, true, false},
#if defined(MADV_POPULATE_READ)
        advice{"RANDOM, WILLNEED, POPULATE_READ", MADV_RANDOM, true, true},
#endif
  };

  mapped(context& ctx, const problem& p, const std::string& path) : problem_(p), attention_(ctx, p) {
    file_ = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
    if (file_ < 0) give_up("the file of KV cannot be opened");
    void* const at = ::mmap(nullptr, p.kv_bytes, PROT_READ, MAP_SHARED, file_, 0);
    if (at == MAP_FAILED) give_up("the file of KV cannot be mapped");
    data_ = static_cast<std::byte*>(at);
    in_core_.resize(p.kv_bytes / page);
  }
  mapped(const mapped&) = delete;
  ~mapped() override {
    ::munmap(data_, problem_.kv_bytes);
    ::close(file_);
  }

  /// The shortest time for one layer with that advice, in seconds, of up to three, from an empty page cache; the
  /// advice stays.
  double try_out(const advice& how) {
    advice_ = how;
    kept_pieces_ = 0;
    ::madvise(data_, problem_.kv_bytes, how.pattern);
    std::vector<float> out(problem::layers * problem::width);
    double least = 0;
    for (int n = 0; n < 3 && least < 1; ++n) {
      drop(0, problem_.kv_bytes);
      const double took = bench::seconds([&] { run_layer(1, out); });
      least = n == 0 ? took : std::min(least, took);
    }
    return least;
  }
  /// Finds how much may stay, and checks that the budget then holds.
  void settle_budget(std::span<float> out) {
    const std::size_t room = problem_.budget - attention_.tail_bytes();
    const std::size_t passing = watched_step(out);
    if (passing >= room) give_up("reading ahead alone takes more than the budget");
    kept_pieces_ = (room - passing) / (problem::layers * piece_bytes());
    step(out);
    while ((peak_ = watched_step(out)) > room && kept_pieces_ != 0) {
      --kept_pieces_;
      drop(0, problem_.kv_bytes);
      step(out);
    }
  }
  /// Bytes of the file that stay from step to step.
  std::size_t kept_bytes() const noexcept { return problem::layers * kept_pieces_ * piece_bytes(); }

  void step(std::span<float> out) override {
    const std::uint64_t before = process_bytes_read();
    for (std::uint32_t layer = 0; layer < problem::layers; ++layer) run_layer(layer, out);
    read_ += process_bytes_read() - before;
  }
  std::size_t peak_bytes() const override { return peak_ + attention_.tail_bytes(); }
  std::uint64_t bytes_read() const override { return read_; }

 private:
  static constexpr std::size_t page = 4096;
  static constexpr std::size_t pieces_a_layer = problem::blocks_a_layer / problem::piece;
  static constexpr std::size_t ahead = 8;  // pieces
  std::size_t piece_bytes() const noexcept { return problem::piece * problem_.block_bytes; }

  void run_layer(std::uint32_t layer, std::span<float> out) {
    attention_.begin(layer);
    for (std::size_t i = 0; i < pieces_a_layer; ++i) {
      const std::size_t piece = layer * pieces_a_layer + i;
      if (advice_.announce)
        ::madvise(at((piece + ahead) % (problem::layers * pieces_a_layer)), piece_bytes(), MADV_WILLNEED);
#if defined(MADV_POPULATE_READ)
      if (advice_.populate) ::madvise(at(piece), piece_bytes(), MADV_POPULATE_READ);
#endif
      std::array<const std::byte*, problem::piece> here{};
      for (std::size_t b = 0; b < here.size(); ++b) here[b] = at(piece) + b * problem_.block_bytes;
      attention_.fold(static_cast<std::uint32_t>(i * problem::piece), here);
      if (watched_ && i % 8 == 7) most_in_core_ = std::max(most_in_core_, bytes_in_core());
      // Together with the pieces before it: a large folio may span them, and goes only as a whole.
      if (i < kept_pieces_) continue;
      const std::size_t first = std::max(kept_pieces_, i < 2 ? 0 : i - 2);
      drop((layer * pieces_a_layer + first) * piece_bytes(), (i + 1 - first) * piece_bytes());
    }
    attention_.finish(layer, out);
  }
  std::byte* at(std::size_t piece) noexcept { return data_ + piece * piece_bytes(); }

  // Drops a range from this process and from the page cache: clean pages that nobody else has mapped go at once.
  void drop(std::size_t offset, std::size_t bytes) noexcept {
    ::madvise(data_ + offset, bytes, MADV_DONTNEED);
    ::posix_fadvise(file_, static_cast<off_t>(offset), static_cast<off_t>(bytes), POSIX_FADV_DONTNEED);
  }
  std::size_t watched_step(std::span<float> out) {
    watched_ = true;
    most_in_core_ = 0;
    step(out);
    watched_ = false;
    return most_in_core_;
  }
  std::size_t bytes_in_core() {
    if (::mincore(data_, problem_.kv_bytes, in_core_.data()) != 0) give_up("mincore is refused");
    return page * static_cast<std::size_t>(
                      std::ranges::count_if(in_core_, [](unsigned char c) { return (c & 1) != 0; }));
  }
  // Bytes that the kernel has read from disks for all threads of the process.
  static std::uint64_t process_bytes_read() {
    std::FILE* const file = std::fopen("/proc/self/io", "r");
    if (file == nullptr) return 0;
    unsigned long long bytes = 0;
    for (char line[128]; std::fgets(line, sizeof line, file) != nullptr;)
      if (std::sscanf(line, "read_bytes: %llu", &bytes) == 1) break;
    std::fclose(file);
    return bytes;
  }

  const problem& problem_;
  hand_attention attention_;
  int file_ = -1;
  std::byte* data_ = nullptr;
  advice advice_ = all_advice[0];
  std::size_t kept_pieces_ = 0;  // of each layer, at its front
  std::vector<unsigned char> in_core_;
  bool watched_ = false;
  std::size_t most_in_core_ = 0, peak_ = 0;
  std::uint64_t read_ = 0;
};

}  // namespace equal_memory
