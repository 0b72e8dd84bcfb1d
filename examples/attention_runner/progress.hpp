#pragma once
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <string>
#include <utility>

namespace runner {

/// A line on the terminal while a run goes on; nothing where there is no terminal.
class progress {
 public:
  explicit progress(std::string what) : what_(std::move(what)), on_(::isatty(STDERR_FILENO) != 0) {}
  progress(const progress&) = delete;
  ~progress() {
    if (on_) std::fputs("\r\033[K", stderr);
  }
  void at(std::uint64_t done, std::uint64_t all) {
    const auto percent = static_cast<unsigned>(all == 0 ? 100 : done * 100 / all);
    if (!on_ || percent == last_) return;
    last_ = percent;
    std::fprintf(stderr, "\r\033[K%s: %u%%", what_.c_str(), percent);
  }

 private:
  std::string what_;
  bool on_;
  unsigned last_ = 101;
};

}  // namespace runner
