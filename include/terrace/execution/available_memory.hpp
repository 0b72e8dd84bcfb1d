#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "terrace/core/error.hpp"

namespace terrace {

/// Main memory that programs can get without pushing anything out, and the total, in bytes.
struct available_memory {
  std::uint64_t bytes = 0, total = 0;
  /// Share of the total that is available, in [0, 1].
  double share() const noexcept {
    return total == 0 ? 0 : static_cast<double>(bytes) / static_cast<double>(total);
  }
};

/// Reads a few small files of the kernel: microseconds, and allocations.
class memory_readings {
 public:
  /// `root` is prefixed to /proc and /sys, where they are mounted elsewhere.
  explicit memory_readings(std::string root = {}) : root_(std::move(root)) {}

  /// The scarcest, as a share of its total, among the machine (MemAvailable of /proc/meminfo) and the control groups
  /// of this process (their limit less the working set: what is charged, less inactive file pages). Errors:
  /// unavailable where the kernel shows nothing.
  result<available_memory> read() const {
    std::optional<available_memory> least = machine();
    for (const group& g : groups())
      if (const auto m = of_group(g); m && (!least || m->share() < least->share())) least = m;
    if (!least) return fail(errc::unavailable, "the kernel does not say how much memory is available");
    return *least;
  }

  /// Where the kernel reports stalls on memory (PSI): of the control group of this process, then of the
  /// machine. The files need not exist.
  std::vector<std::string> pressure_files() const {
    std::vector<std::string> files;
    for (const group& g : groups())
      if (g.unified) files.push_back(g.folder + "/memory.pressure");
    files.push_back(root_ + "/proc/pressure/memory");
    return files;
  }

 private:
  struct group {
    std::string folder;
    bool unified;  // version 2
  };

  // Small files, read as a whole; empty where there is none.
  static std::string text_of(const std::string& path) {
    struct closed {
      void operator()(std::FILE* f) const noexcept { std::fclose(f); }
    };
    const std::unique_ptr<std::FILE, closed> file(std::fopen(path.c_str(), "re"));
    std::string text;
    if (file == nullptr) return text;
    char piece[1024];
    while (const std::size_t n = std::fread(piece, 1, sizeof piece, file.get())) text.append(piece, n);
    return text;
  }

  // The number that follows `key` at the beginning of a line; an empty key means the first line.
  static std::optional<std::uint64_t> number(std::string_view text, std::string_view key = {}) {
    while (!text.empty()) {
      const std::string line(text.substr(0, text.find('\n')));
      text.remove_prefix(std::min(line.size() + 1, text.size()));
      if (line.compare(0, key.size(), key) != 0) continue;
      char* end = nullptr;
      const unsigned long long value = std::strtoull(line.c_str() + key.size(), &end, 10);
      if (end == line.c_str() + key.size()) return std::nullopt;  // "max", say
      return value;
    }
    return std::nullopt;
  }

  std::optional<available_memory> machine() const {
    const std::string text = text_of(root_ + "/proc/meminfo");
    const auto available = number(text, "MemAvailable:"), total = number(text, "MemTotal:");
    if (!available || !total) return std::nullopt;
    return available_memory{*available << 10, *total << 10};
  }

  // Lines of /proc/self/cgroup: "0::/path" of version 2, "4:memory:/path" of version 1. Inside a container the path
  // may be the host's; the group's own files then lie at the top.
  std::vector<group> groups() const {
    std::vector<group> found;
    const std::string text = text_of(root_ + "/proc/self/cgroup");
    std::string_view left = text;
    while (!left.empty()) {
      const std::string_view line = left.substr(0, left.find('\n'));
      left.remove_prefix(std::min(line.size() + 1, left.size()));
      const std::size_t first = line.find(':'), second = line.find(':', first + 1);
      if (second == std::string_view::npos) continue;
      const std::string_view controllers = line.substr(first + 1, second - first - 1);
      const bool unified = controllers.empty();
      if (!unified && ("," + std::string(controllers) + ",").find(",memory,") == std::string::npos) continue;
      const std::string top = root_ + "/sys/fs/cgroup" + (unified ? "" : "/memory");
      const std::string path(line.substr(second + 1));
      if (path != "/") found.push_back({top + path, unified});
      found.push_back({top, unified});
    }
    return found;
  }

  static std::optional<available_memory> of_group(const group& g) {
    const auto read = [&](const char* name) { return number(text_of(g.folder + "/" + name)); };
    const auto used = read(g.unified ? "memory.current" : "memory.usage_in_bytes");
    if (!used) return std::nullopt;
    std::uint64_t limit = std::numeric_limits<std::uint64_t>::max();
    for (const char* name : {"memory.high", "memory.max", "memory.limit_in_bytes"})
      if (const auto value = read(name)) limit = std::min(limit, *value);
    if (limit >= std::uint64_t{1} << 60) return std::nullopt;  // none
    const std::string_view inactive = g.unified ? "inactive_file " : "total_inactive_file ";
    const std::uint64_t cached = number(text_of(g.folder + "/memory.stat"), inactive).value_or(0);
    const std::uint64_t working_set = *used - std::min(*used, cached);
    return available_memory{limit - std::min(limit, working_set), limit};
  }

  std::string root_;
};

}  // namespace terrace
