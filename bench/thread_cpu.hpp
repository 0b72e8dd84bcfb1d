#pragma once
#include <sys/resource.h>

namespace bench {

/// Seconds of processor time, user and system, so far: of the calling thread, or of all threads of the process.
enum class whose { thread, process };
inline double cpu_seconds(whose of = whose::thread) {
  rusage used{};
  ::getrusage(of == whose::thread ? RUSAGE_THREAD : RUSAGE_SELF, &used);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec);
  };
  return seconds(used.ru_utime) + seconds(used.ru_stime);
}

}  // namespace bench
